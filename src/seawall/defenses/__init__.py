"""Defenses beyond the loss: where a network is sensitive, and images that are changed for training."""
