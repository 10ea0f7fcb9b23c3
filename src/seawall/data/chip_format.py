"""The file format of a chip: an uncompressed GeoTIFF whose pixels can be memory-mapped.

Reflectance made from whole digital numbers is stored as int16 without loss, in half the bytes of float32; anything
else is float32. There is one strip per band, bands after each other, so that a random window is read by one copy.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from seawall.errors import DataError
from seawall.geo.raster import Grid
from seawall.geo.raster_guards import COMPLETE_TAG, WRITER_TAG
from seawall.types import Units, fill_of

IGNORE = 255  # label of a pixel that does not count, in files only; in memory the mask `valid` is False there
UNSEEN_INT16 = -9999  # int16 value of an unseen pixel; float32 files hold NaN
PIXEL_ALIGN = 16  # bytes
_GDAL_OPTIONS = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_NUM_THREADS": "1"}


Channels = Sequence[tuple[int, ...]] | None
"""Channels of each source; None where there is one source."""


@dataclass(frozen=True)
class Encoded:
    """A GeoTIFF in memory.

    Args:
        data: Bytes of the file.
        dtype: Pixel type: "int16", "float32" or "uint8".
        gain: value = stored * gain.
        at: Byte offset of the pixels.
    """

    data: bytes
    dtype: str
    gain: float
    at: int


def encode_image(
    image: NDArray[np.float32], seen: NDArray[np.bool_], grid: Grid, bands: tuple[str, ...], gain: float | None = None
) -> Encoded:
    """Encode an image (C, H, W) in data units; unseen pixels become nodata, in every band or in those where they are unseen.

    Args:
        image: (C, H, W) float32 in data units.
        seen: (H, W) bool, or (C, H, W) of images whose bands are seen apart.
        grid: Where it is.
        bands: Band ids.
        gain: Step of the digital numbers that the image was made from; stored as int16 if all fit. None for float32.

    Raises:
        DataError: A seen pixel is not finite.
    """
    seen = np.broadcast_to(seen, image.shape)
    if not np.isfinite(image[seen]).all():
        raise DataError("image: expected finite seen pixels, got NaN or infinity; mark them unseen")
    if gain is not None:
        steps = np.rint(np.where(seen, image, 0.0) / gain)
        if np.abs(steps).max(initial=0) <= np.iinfo(np.int16).max and not (steps == UNSEEN_INT16).any():
            stored = np.where(seen, steps, UNSEEN_INT16).astype(np.int16)
            return _encode(stored, grid, bands, float(UNSEEN_INT16), gain)
    return _encode(np.where(seen, image, np.float32(np.nan)).astype(np.float32), grid, bands, float("nan"), 1.0)


def encode_label(label: NDArray[np.uint8], grid: Grid) -> Encoded:
    """Encode a label (H, W) uint8 with 255 where it does not count."""
    return _encode(np.asarray(label, np.uint8)[None], grid, ("label",), float(IGNORE), 1.0)


def decode_image(
    stored: NDArray[np.int16 | np.float32], gain: float, unit: Units, out: NDArray[np.float32], sources: Channels = None
) -> NDArray[np.bool_]:
    """Fill `out` (C, H, W) with data units and return seen (S, H, W) of each source; unseen pixels get the unit's fill.

    Args:
        stored: (C, H, W) as in the file; the bands of a source are unseen together.
        gain: data = stored * gain, of int16.
        unit: Unit of the bands.
        out: The image.
        sources: Channels of each source; None for one source of all bands.
    """
    fill, known = fill_of(unit, len(stored)), []
    out[...] = stored
    if stored.dtype == np.int16:
        out *= np.float32(gain)
    for channels in sources or [tuple(range(len(stored)))]:
        first = stored[channels[0]]
        seen = np.asarray(first != UNSEEN_INT16 if stored.dtype == np.int16 else ~np.isnan(first))
        if not seen.all():
            for channel in channels:
                out[channel, ~seen] = fill[channel]
        known.append(seen)
    return np.stack(known)


def map_pixels(path: Path, at: int, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Map the pixels of a stored file into memory, read-only.

    Raises:
        DataError: The file is missing, truncated, or of another shape than the index says.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as bad:
        raise DataError(f"{path}: expected a chip file, got {_open_error(bad)}; curate the folder again") from bad
    if at < 0 or len(view) != at + size:
        raise DataError(
            f"{path}: expected {at + size} bytes for {'x'.join(map(str, shape))} pixels of {dtype} from byte {at}, got "
            f"{len(view)}; curate the folder again"
        )
    return np.frombuffer(view, dtype=dtype, count=size // np.dtype(dtype).itemsize, offset=at).reshape(shape)


def _encode(stored: NDArray[np.generic], grid: Grid, bands: tuple[str, ...], nodata: float, gain: float) -> Encoded:
    count, height, width = stored.shape
    if (height, width) != (grid.height, grid.width) or count != len(bands):
        raise DataError(
            f"chip: expected {len(bands)} bands of {grid.height}x{grid.width} pixels, got {stored.shape}; align them"
        )
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": count, "dtype": stored.dtype.name,
        "nodata": nodata, "crs": grid.crs, "transform": grid.transform or Affine.identity(),
        "tiled": False, "blockysize": height, "interleave": "band", "compress": "none",
    }  # fmt: skip
    raw = np.ascontiguousarray(stored).tobytes()
    _, at = _write_tiff(stored, profile, bands, gain, ".")
    # Unaligned pixels are copied several times slower; padding in a tag aligns them.
    data, at = _write_tiff(stored, profile, bands, gain, "." * (1 + -at % PIXEL_ALIGN))
    if data[at : at + len(raw)] != raw:
        raise DataError("chip: expected GDAL to write plain strips, got another layout; report this GDAL version")
    return Encoded(data, stored.dtype.name, gain, at)


def _write_tiff(
    stored: NDArray[np.generic], profile: dict[str, object], bands: tuple[str, ...], gain: float, pad: str
) -> tuple[bytes, int]:
    with rasterio.Env(**_GDAL_OPTIONS), MemoryFile() as memory:
        with memory.open(**profile) as sink:
            sink.descriptions = bands
            sink.update_tags(**{WRITER_TAG: "seawall", COMPLETE_TAG: "yes", "PAD": pad})
            if gain != 1.0:
                sink.scales = (gain,) * len(bands)
            sink.write(stored)
        with memory.open() as source:
            start = source.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1)
        return bytes(memory.getbuffer()), int(start or 0)


def _open_error(bad: Exception) -> str:
    return "no file" if isinstance(bad, FileNotFoundError) else "an empty or unreadable one"
