"""Sentinel imagery: sensors, radiometry, guarded rasters, products, catalogs and simulated scenes."""
