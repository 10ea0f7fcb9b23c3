"""Keyed block transforms: what a network sees of an image is scrambled by a secret key."""
