"""Metrics: counts per chip first, ratios of counts last. The figures that reports need are made with NumPy alone."""
