"""Rasters and units: grids, guarded reads, cloud-optimized GeoTIFFs, sensors, and what stored numbers mean."""
