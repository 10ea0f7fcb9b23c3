"""Wrong labels on purpose, within exact budgets, with a record of what was changed."""
