"""Where images come from: SAFE products, STAC catalogs, Earth Engine, downloads."""
