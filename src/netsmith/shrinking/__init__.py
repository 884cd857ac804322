"""A trained network made smaller at once, in closed form: no labels, no gradient step."""
