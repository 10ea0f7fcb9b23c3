"""Sentinel-2 SAFE products as scenes to map: a folder, or a zip of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.geo.raster import Window, open_raster
from seawall.imagery.safe import SafeProduct


def is_safe(path: Path) -> bool:
    """Return whether a path stands for a SAFE product: a folder with its metadata, a zip, or the metadata file."""
    if path.is_dir():
        return path.suffix.lower() == ".safe" or any(path.glob("MTD_MSI*.xml"))
    return path.suffix.lower() == ".zip" or (path.suffix == ".xml" and path.name.startswith("MTD_MSI"))


class SafeSource:
    """Bands of a SAFE product on one grid, read like a `seawall.geo.raster.RasterSource`.

    The grid is that of the finest of these bands. Pixels of coarser bands (20 m, 60 m) are repeated, not interpolated.
    A pixel with 0 in any of the bands has no data; it is read as 0 in all of them.

    Args:
        product: The product.
        bands: Band ids, in the order in which they are read.

    Raises:
        ImageryError: A band is missing, or its file cannot be opened.
    """

    def __init__(self, product: SafeProduct, bands: Sequence[str]) -> None:
        self.path = product.path
        self.bands = tuple(bands)
        self.grid = product.grid(bands)
        self.dtype = "uint16"
        self.nodata = 0.0
        self.tags = {"PROCESSING_BASELINE": product.baseline, "UNIT": "reflectance", "GRANULE": product.granule}
        self.scales = (1 / product.quantification,) * len(self.bands)
        self.offsets = (product.offset / product.quantification,) * len(self.bands)
        self._product = product
        self.block = (0, 0)
        for band in self.bands:
            with open_raster(product.images[band]) as image:
                if image.grid.height == self.grid.height:
                    self.block = image.block

    def read(self, window: Window | None, bands: Sequence[str]) -> tuple[FloatArray, BoolArray]:
        """Read stored numbers (C, H, W) and seen (H, W); the seen pixels have data in all bands of this source.

        Args:
            window: (row, column, height, width) on the grid; all of it if None.
            bands: Some of the bands of this source.

        Raises:
            ImageryError: A band cannot be read, or is not what the manifest of the product says.
        """
        raster = self._product.read(self.bands, window)
        data = np.where(raster.seen, raster.data[[self.bands.index(band) for band in bands]], np.float32(0))
        return data, raster.seen

    def mask(self, window: Window) -> BoolArray:
        """Return all pixels: a product has no mask beside its nodata value."""
        return np.ones(window[2:], np.bool_)

    def nodata_of(self, bands: Sequence[str]) -> tuple[float, ...]:
        """Return the nodata value of each of these bands, 0."""
        return (self.nodata,) * len(bands)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that decide the pixels: the metadata, and the image of each band."""
        return (*sorted(self.path.glob("MTD_MSI*.xml")), *(self._product.images[band] for band in self.bands))
