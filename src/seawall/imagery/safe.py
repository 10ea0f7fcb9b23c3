"""Sentinel-2 products as the Copernicus program ships them: a SAFE folder, or a zip of one, with JPEG 2000 bands.

JPEG 2000 has no checksums, so a damaged band may decode to wrong pixels. The product's manifest.safe has a checksum of
each file, which is verified for every file that is read. Products without a manifest are read unverified.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import defusedxml.ElementTree
import numpy as np
from affine import Affine
from defusedxml.common import DefusedXmlException

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import ImageryError, RadiometryError
from seawall.geo.cog import CogWriter
from seawall.geo.grid import Grid
from seawall.geo.radiometry import Hints
from seawall.geo.raster import Raster, Window, open_raster
from seawall.geo.sensors import OPTICAL_BANDS, resolve_bands
from seawall.imagery.download import UnzipLimits, unzip
from seawall.io import is_inside

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

XML_BYTES = 64 * 2**20
_IMAGE = re.compile(r"_(B\d\d|B8A)(?:_(\d\d)m)?\.(?:jp2|tif)$", re.IGNORECASE)
_METADATA = re.compile(r"MTD_MSI(L1C|L2A)\.xml$")
MANIFEST = "manifest.safe"
_MANIFEST_HASHES = {"MD5": "md5", "SHA3-256": "sha3_256", "SHA-256": "sha256", "SHA256": "sha256", "SHA-512": "sha512"}
Checksum = tuple[str, str]
"""Name of the hash in the manifest, and the digest in hexadecimal."""

STACK_TILE = 1024
"""Side in pixels of the windows that `write_stack` copies."""


@dataclass(frozen=True)
class SafeProduct:
    """A Sentinel-2 product on disk.

    Args:
        path: Its SAFE folder.
        level: "L1C" or "L2A".
        baseline: Processing baseline, such as "05.09".
        quantification: Stored number of reflectance 1, without the offset.
        offset: Summand of the stored numbers before the division, such as -1000.
        granule: Name of the granule.
        images: Image file of each band, at its finest resolution.
        checksums: Checksum of each file in the manifest, by path below the product; empty without a manifest.
    """

    path: Path
    level: str
    baseline: str
    quantification: float
    offset: float
    granule: str
    images: Mapping[str, Path]
    checksums: Mapping[str, Checksum] = field(default_factory=dict)

    @property
    def hints(self) -> Hints:
        """Metadata on the stored numbers."""
        return Hints(
            "uint16", "reflectance", 1 / self.quantification, self.offset / self.quantification, None, self.baseline
        )

    @property
    def bands(self) -> tuple[str, ...]:
        """Band ids in the order of the sensor."""
        return tuple(id_ for id_ in OPTICAL_BANDS if id_ in self.images)

    def grid(self, bands: Sequence[str] | None = None) -> Grid:
        """Return the grid of the finest of these bands."""
        grids = []
        for id_ in self.resolve(bands):
            with open_raster(self._image(id_)) as source:
                grids.append(source.grid)
        return max(grids, key=lambda grid: grid.height)

    def read(self, bands: Sequence[str] | None = None, window: Window | None = None) -> Raster:
        """Read bands as stored, on the grid of the finest of them, with nearest-neighbor resampling.

        Args:
            bands: Band names; all if None.
            window: (row, column, height, width) on that grid.

        Raises:
            ImageryError: A band is missing or cannot be read, or bands do not cover the same ground.
        """
        ids = self.resolve(bands)
        grid = self.grid(ids)
        row, col, height, width = window or (0, 0, grid.height, grid.width)
        layers, seen = [], np.ones((height, width), bool)
        for id_ in ids:
            layer, there = _read_layer(self._image(id_), grid, (row, col, height, width))
            layers.append(layer)
            # 0 is nodata in these products; a measured 0 cannot be distinguished.
            seen &= there & (layer > 0)
        scale, offset = 1 / self.quantification, self.offset / self.quantification
        tags = {"PROCESSING_BASELINE": self.baseline, "UNIT": "reflectance"}
        part = grid.window(row, col, height, width)
        count = len(ids)
        return Raster(
            np.stack(layers), seen, ids, part, "uint16", 0.0, tags, ({},) * count, (scale,) * count, (offset,) * count
        )

    def _image(self, id_: str) -> Path:
        """Return the image file of a band, after verifying its checksum."""
        verify_checksum(self.path, self.images[id_], self.checksums)
        return self.images[id_]

    def resolve(self, bands: Sequence[str] | None) -> tuple[str, ...]:
        """Return the ids of these bands, or of all bands if None.

        Raises:
            ImageryError: The product has no such band.
        """
        ids = self.bands if bands is None else resolve_bands(bands)
        missing = [id_ for id_ in ids if id_ not in self.images]
        if missing:
            raise ImageryError(
                f"{self.path}: expected bands {', '.join(ids)}, got none of {', '.join(missing)}; fetch the product again"
            )
        return ids


def open_safe(path: Path, *, granule: str | None = None, unpack_to: Path | None = None) -> SafeProduct:
    """Open a SAFE folder or a zip of one.

    Args:
        path: The folder, the zip, or the metadata file in the folder.
        granule: Name of the granule, needed where there are several.
        unpack_to: New folder for the content of a zip; beside the zip if None.

    Raises:
        ImageryError: It is no product, its metadata is unsafe or has another checksum, or it has several granules and
            `granule` is None.
        RadiometryError: The metadata does not say whether the numbers contain the offset of baseline 04.00.
    """
    if path.is_file() and path.suffix.lower() == ".zip":
        folder = unpack_to or path.with_suffix("")
        if not folder.exists():
            unzip(path, folder, wanted=_is_needed, limits=UnzipLimits())
        path = folder
    root = _find_root(path)
    metadata = _single(
        sorted(p for p in root.iterdir() if _METADATA.search(p.name)), root, "MTD_MSIL1C.xml or MTD_MSIL2A.xml"
    )
    level = str(_METADATA.search(metadata.name)[1])  # type: ignore[index]
    checksums = _manifest(root)
    verify_checksum(root, metadata, checksums)
    tree = _parse(metadata)
    baseline = _first_text(tree, "PROCESSING_BASELINE") or ""
    text = _first_text(tree, "BOA_QUANTIFICATION_VALUE") or _first_text(tree, "QUANTIFICATION_VALUE") or "0"
    quantification = _safe_number(metadata, "quantification value", text)
    if not quantification > 0:
        raise RadiometryError(f"{metadata}: expected a quantification value, got none; fetch the product again")
    chosen = _granule(root, granule)
    offset = _offset(metadata, tree, baseline)
    return SafeProduct(root, level, baseline, quantification, offset, chosen.name, _images(root, chosen), checksums)


def write_stack(
    product: SafeProduct,
    path: Path,
    bands: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write bands of a product as stored into one GeoTIFF with scale and offset, window by window.

    Args:
        product: The product.
        path: Final name.
        bands: Band names; all if None.
        progress: Called with the numbers of windows done and in all.

    Raises:
        ImageryError: A band cannot be read or the file cannot be written.
    """
    ids = product.resolve(bands)
    grid = product.grid(ids)
    places = [(r, c) for r in range(0, grid.height, STACK_TILE) for c in range(0, grid.width, STACK_TILE)]
    hints = product.hints
    writer = CogWriter(
        path,
        grid,
        "uint16",
        bands=ids,
        nodata=0,
        tags={"UNIT": "reflectance", "PROCESSING_BASELINE": product.baseline, "GRANULE": product.granule},
        scales=[hints.gain or 1.0] * len(ids),
        offsets=[hints.offset or 0.0] * len(ids),
    )
    with writer:
        for done, (row, col) in enumerate(places, 1):
            size = min(STACK_TILE, grid.height - row), min(STACK_TILE, grid.width - col)
            piece = product.read(ids, (row, col, *size))
            writer.write(np.where(piece.seen, piece.data, 0).astype(np.uint16), row, col)
            if progress:
                progress(done, len(places))


def verify_checksum(root: Path, path: Path, checksums: Mapping[str, Checksum]) -> None:
    """Verify a file's checksum against the manifest; files that are not listed pass.

    Raises:
        ImageryError: The checksum differs.
    """
    name, digest = checksums.get(path.relative_to(root).as_posix(), ("", ""))
    if not name:
        return
    stat = path.stat()
    found = _manifest_digest(path, name, stat.st_size, stat.st_mtime_ns)
    if found != digest:
        raise ImageryError(
            f"{path}: expected {name} {digest[:16]}... as {MANIFEST} says, got {found[:16]}...; fetch the product again"
        )


@lru_cache(256)
def _manifest_digest(path: Path, name: str, size: int, changed: int) -> str:
    """Return the digest of a file; cached by size and time, because bands are read window by window."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(_MANIFEST_HASHES[name], usedforsecurity=False)).hexdigest()


def _manifest(root: Path) -> dict[str, Checksum]:
    """Return the checksums in the manifest, by path below the product."""
    path = root / MANIFEST
    if not path.is_file():
        return {}
    listed: dict[str, Checksum] = {}
    for stream in _elements(_parse(path), "byteStream"):
        place = next((node.get("href", "") for node in _elements(stream, "fileLocation")), "")
        sums = _elements(stream, "checksum")
        if not place or not sums:
            continue
        name = sums[0].get("checksumName", "").upper()
        if name not in _MANIFEST_HASHES:
            raise ImageryError(
                f"{path}: expected a checksum of {', '.join(_MANIFEST_HASHES)}, got {name or 'no name'!r} for {place}; "
                f"remove {MANIFEST} to read the product without"
            )
        listed[place.removeprefix("./")] = name, (sums[0].text or "").strip().lower()
    return listed


def _safe_number(where: Path, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RadiometryError(f"{where}: expected a number as {what}, got {text[:40]!r}; fetch the product again")
    return value


def _is_needed(name: str) -> bool:
    return bool(
        _METADATA.search(name) or name.endswith(f"/{MANIFEST}") or ("/IMG_DATA/" in name and _IMAGE.search(name))
    )


def _find_root(path: Path) -> Path:
    if path.is_file() and _METADATA.search(path.name):
        return path.parent
    if not path.is_dir():
        raise ImageryError(f"{path}: expected a SAFE folder or a zip of one, got no such folder; check the path")
    if any(_METADATA.search(p.name) for p in path.iterdir()):
        return path
    return _single(sorted(p for p in path.iterdir() if p.suffix == ".SAFE" and p.is_dir()), path, "a SAFE folder")


def _single(found: list[Path], where: Path, what: str) -> Path:
    if len(found) != 1:
        got = ", ".join(p.name for p in found) or "none"
        raise ImageryError(f"{where}: expected {what}, got {got}; name one product")
    return found[0]


def _granule(root: Path, name: str | None) -> Path:
    folder = root / "GRANULE"
    granules = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    names = [p.name for p in granules]
    if name is None and len(granules) > 1:
        raise ImageryError(f"{root}: expected one granule, got {', '.join(names)}; choose one by name")
    for granule in granules:
        if name in (None, granule.name):
            return granule
    raise ImageryError(f"{root}: expected granule {name or 'in GRANULE/'}, got {', '.join(names) or 'none'}; check it")


def _images(root: Path, granule: Path) -> dict[str, Path]:
    finest: dict[str, tuple[int, Path]] = {}
    for path in sorted((granule / "IMG_DATA").rglob("*")):
        found = _IMAGE.search(path.name)
        if not found:
            continue
        if not is_inside(root, path):
            raise ImageryError(f"{path}: expected a file of the product, got a link out of it; copy the product whole")
        id_, gsd = found[1].upper(), int(found[2] or 0)
        if id_ not in finest or gsd < finest[id_][0]:
            finest[id_] = (gsd, path)
    if not finest:
        raise ImageryError(f"{granule}: expected band images in IMG_DATA, got none; fetch the product again")
    return {id_: path for id_, (_, path) in finest.items()}


def _parse(path: Path) -> Element:
    if path.stat().st_size > XML_BYTES:
        raise ImageryError(f"{path}: expected metadata of at most {XML_BYTES} bytes, got more; fetch it again")
    try:
        root: Element = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException as bad:
        raise ImageryError(
            f"{path}: expected plain metadata, got a document type or entities; refuse the product"
        ) from bad
    except (SyntaxError, ValueError) as bad:
        raise ImageryError(f"{path}: expected metadata in XML, got {bad}; fetch the product again") from bad
    return root


def _elements(tree: Element, name: str) -> list[Element]:
    return [node for node in tree.iter() if node.tag.rpartition("}")[2] == name]


def _first_text(tree: Element, name: str) -> str | None:
    found = _elements(tree, name)
    return (found[0].text or "").strip() if found else None


def _offset(where: Path, tree: Element, baseline: str) -> float:
    found = _elements(tree, "BOA_ADD_OFFSET") or _elements(tree, "RADIO_ADD_OFFSET")
    values = {_safe_number(where, "offset", node.text or "0") for node in found}
    if len(values) > 1:
        raise RadiometryError(f"{where}: expected one offset for all bands, got {sorted(values)}; read the bands apart")
    if values:
        return values.pop()
    try:
        late = float(baseline) >= 4.0
    except ValueError:
        late = True
    if late:
        raise RadiometryError(
            f"{where}: expected the offset that baseline {baseline or 'unknown'} brings, got no ADD_OFFSET in the metadata; "
            "fetch the product again"
        )
    return 0.0


def _read_layer(path: Path, grid: Grid, window: Window) -> tuple[FloatArray, BoolArray]:
    """Read one band on a grid that is finer by an integer factor."""
    with open_raster(path) as source:
        factor = grid.height // max(1, source.grid.height)
        t = source.grid.transform
        fine = None if t is None else Affine(t.a / factor, t.b / factor, t.c, t.d / factor, t.e / factor, t.f)
        same = Grid(source.grid.height * factor, source.grid.width * factor, fine, source.grid.crs)
        if gap := grid.mismatch(same):
            raise ImageryError(f"{path}: expected the ground of the other bands, got {gap}; fetch the product again")
        row, col, height, width = window
        top, left = row // factor, col // factor
        bottom, right = -(-(row + height) // factor), -(-(col + width) // factor)
        data, seen = source.read((top, left, bottom - top, right - left))
    at = np.s_[row - top * factor :, col - left * factor :]
    big = data[0].repeat(factor, 0).repeat(factor, 1)[at][:height, :width]
    there = seen.repeat(factor, 0).repeat(factor, 1)[at][:height, :width]
    return big, there
