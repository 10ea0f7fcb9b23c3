"""Segmentation models: networks and water-index thresholds, from data units to logits; weights files."""
