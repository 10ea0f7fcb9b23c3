"""Sources of imagery: SAFE products, STAC catalogs, Earth Engine, downloads."""
