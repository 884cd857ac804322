"""The k best paths through alternatives, under budgets, exactly."""
