"""Segmenters: networks and water-index thresholds, data units in, logits out."""
