"""Recipes: an experiment as a file and as a frozen value."""
