"""Defenses: what training minimizes, or what wraps a model at inference."""
