"""Rasters and units: grids, guarded reads, cloud-optimized GeoTIFFs, sensors, and the units of stored numbers."""
