"""Simulated Sentinel-1 and Sentinel-2 scenes with exact truth."""
