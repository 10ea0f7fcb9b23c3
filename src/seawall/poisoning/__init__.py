"""Poisoned training chips: backdoors, clean-label poisons, and their detection."""
