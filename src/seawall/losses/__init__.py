"""Losses per pixel that training minimizes, on right labels and on wrong ones."""
