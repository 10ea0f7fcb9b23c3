"""seawall: robust semantic segmentation of Sentinel imagery, in physical units."""

__version__ = "0.1.0"
