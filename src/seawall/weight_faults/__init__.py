"""Flipped bits in the weights of a network: 8-bit weights, searches for harmful bits, defenses, the damage on held-out chips."""
