"""Losses per pixel: for training, for training on wrong labels, and for attacks."""
