"""Settings, tasks and the one loop that trains."""
