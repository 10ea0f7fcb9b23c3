"""A scene read for a model: a raster or a Sentinel-2 SAFE product, its bands by name, its values in the model's unit, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.bands import channels_of_sources, short_band
from seawall.errors import ImageryError, ModelError, RadiometryError, UsageError
from seawall.geo.nodata import NodataRule, PixelCounts, nodata_rule
from seawall.geo.radiometry import Finding, Hints, Scale, detect_unit, hints_of, scale_for, to_physical
from seawall.geo.raster import Raster, RasterSource, Window, open_raster
from seawall.geo.sensors import are_sentinel_bands, resolve_bands
from seawall.imagery.safe import SafeProduct, open_safe
from seawall.io import file_sha256
from seawall.types import FILL, ModelSpec, single_unit


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


SceneSource = RasterSource | SafeSource
PIECE_NUMBERS = 2**22
"""Values read at once, which bounds the copies made by the conversion to physical units."""
SAMPLE_WINDOWS, SAMPLE_SIDE = 24, 256
"""Number and side, in pixels, of the windows from which the unit of a scene is detected."""


@dataclass(frozen=True)
class SceneReader:
    """An open scene whose bands and unit fit a model.

    Args:
        name: Name of its file or SAFE product.
        source: The open raster or SAFE product.
        bands: Its bands in the order of the model's.
        scale: How stored numbers become the model's unit; None if nothing in the scene is seen.
        spec: The model's specification.
        digest: SHA-256 of the file; for a SAFE product, over its metadata and the images of these bands.
        findings: Findings that do not need every pixel, such as a missing nodata value.
    """

    name: str
    source: SceneSource
    bands: tuple[str, ...]
    scale: Scale | None
    spec: ModelSpec
    digest: str
    findings: tuple[str, ...]

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Findings about the scene, those of every pixel included.

        Raises:
            ImageryError: As `pixel_counts`.
        """
        findings = () if self.rule is None else self.rule.findings(self.pixel_counts)
        return (*self.findings, *map(str, findings))

    @cached_property
    def rule(self) -> NodataRule | None:
        """The rule for which pixels count as seen; None if no pixel is."""
        return None if self.scale is None else nodata_rule(self.scale, self.source.nodata_of(self.bands))

    @cached_property
    def pixel_counts(self) -> PixelCounts:
        """Counts of seen and unseen pixels of the whole scene, by reason; reads the scene once, before any of it is mapped.

        So an unusable scene is refused before the work, the shares in the flags do not depend on what is resumed, and
        every block is compared with its checksum.

        Raises:
            ImageryError: A block cannot be read, too many values are impossible in the unit, or all pixels are 0.
        """
        height, width = self.source.grid.height, self.source.grid.width
        whole = PixelCounts()
        if self.rule is None:
            return whole
        for piece in cut_window((0, 0, height, width), self.source.block, len(self.bands)):
            data, _ = self.source.read(piece, self.bands)
            whole += self.rule.apply(data, self.source.mask(piece))[1]
        try:
            self.rule.check(whole)
        except RadiometryError as bad:
            raise RadiometryError(f"{self.source.path}: {bad}") from bad
        return whole

    @property
    def chunk(self) -> int:
        """Rows to fetch at once so that each block is decoded once."""
        height = self.source.block[0]
        return 256 // height * height if height <= 256 else min(height, 1024)

    def fetch(self, row: int, col: int, height: int, width: int) -> tuple[FloatArray, BoolArray]:
        """Read a window: data (C, H, W) in the model's unit, unseen pixels filled, and seen (H, W)."""
        unit = single_unit(self.spec.unit, "scene")
        some_unseen = self.rule is not None and self.pixel_counts.seen < self.pixel_counts.pixels
        data = np.empty((len(self.bands), height, width), np.float32)
        seen = np.empty((height, width), np.bool_)
        for r, c, h, w in cut_window((row, col, height, width), self.source.block, len(self.bands)):
            stored, there = self.source.read((r, c, h, w), self.bands)
            if some_unseen and self.rule is not None:
                there, _ = self.rule.apply(stored, self.source.mask((r, c, h, w)))
            at = (slice(r - row, r - row + h), slice(c - col, c - col + w))
            seen[at] = there
            if self.scale is None or not there.any():
                data[(slice(None), *at)] = FILL[unit]
            else:
                data[(slice(None), *at)] = to_physical(stored, there, self.scale, unit)
        return data, seen


@contextmanager
def open_scene(
    path: Path, spec: ModelSpec, *, bands: Sequence[str] = (), sensor: str = "", hints: Hints = Hints()
) -> Iterator[OpenScene]:
    """Open a scene for a model; unsuitable scenes are refused before any work.

    Args:
        path: A raster file, or a Sentinel-2 SAFE product: its folder, its metadata file, or a zip, which is unpacked
            beside itself once. See `SafeSource` for how bands of 10, 20 and 60 m get one grid.
        spec: Specification of the model.
        bands: Names of the file's bands, where the file itself has none.
        sensor: Product family whose own band names count first, such as "hls-s30".
        hints: Unit, scale and offset where the file does not state them.

    Raises:
        UsageError: Bands are named for a SAFE product, or not as many as the file has.
        ImageryError: The file cannot be read, is incomplete, or lacks a band.
        RadiometryError: Its unit is not the model's, or cannot be detected.
    """
    sources = channels_of_sources(spec.bands)
    if len(sources) > 1 and is_safe(path):
        raise UsageError(
            f"{path}: expected one raster with the bands of {', '.join(sources)}, got a SAFE product, which has one source; stack "
            "the images of all sources on one grid into a GeoTIFF whose bands are named as the model's, or use a model of one source"
        )
    with _open_source(path, spec, bands, sensor) as (source, picked):
        if isinstance(source, SafeSource):
            name, digest = source.path.name, file_sha256s(source.files)
        else:
            name, digest = path.name, file_sha256(path)
        parts = []
        for channels in sources.values():
            own, of = tuple(picked[at] for at in channels), spec.of_channels(channels)
            scale, findings = _detect_scale(source, own, of, hints)
            texts = tuple(map(str, (*findings, *_geometry_findings(source, of))))
            parts.append(SceneReader(name, source, own, scale, of, digest, texts))
        yield parts[0] if len(parts) == 1 else JointScene(spec, tuple(sources.items()), tuple(parts))


@contextmanager
def _open_source(
    path: Path, spec: ModelSpec, bands: Sequence[str], sensor: str
) -> Iterator[tuple[SceneSource, tuple[str, ...]]]:
    """Open a raster or a SAFE product; give it with its names of the model's bands."""
    if not is_safe(path):
        with open_raster(path) as source:
            yield source, match_bands(str(path), bands or source.bands, source.bands, spec, sensor)
        return
    if bands:
        raise UsageError(
            f"bands: expected no names for a SAFE product, which has its own, got {', '.join(bands)}; leave them out"
        )
    product = open_safe(path)
    picked = match_bands(str(path), product.bands, product.bands, spec, sensor)
    yield SafeSource(product, picked), picked


def match_bands(
    where: str, names: Sequence[str], own: Sequence[str], spec: ModelSpec, sensor: str = ""
) -> tuple[str, ...]:
    """Return the file's names of a model's bands, in the model's order.

    Args:
        where: For messages.
        names: Band names as the user gave them, else those of the file.
        own: Band names of the file.
        spec: The model's specification.
        sensor: Product family whose names count first.

    Raises:
        UsageError: The user named another number of bands than the file has.
        ImageryError: A band is missing, or there twice.
    """
    if len(names) != len(own):
        raise UsageError(f"bands: expected a name for each of the {len(own)} bands of {where}, got {len(names)}")
    have: dict[str, list[str]] = {}
    for name, mine in zip(names, own, strict=True):
        have.setdefault(_canonical(name, sensor), []).append(mine)
    wanted = [_canonical(name, sensor) for name in spec.bands]
    if missing := [name for name in wanted if name not in have]:
        raise ImageryError(
            f"{where}: expected the bands {', '.join(spec.bands)} that the model was trained on, got {', '.join(names)} "
            f"without {', '.join(missing)}; "
            + ("name the bands" if all(n.startswith("band") for n in names) else "add the bands or use another model")
        )
    for name in wanted:
        if len(have[name]) > 1:
            raise ImageryError(f"{where}: expected one band {name}, got {len(have[name])}; rename or drop the others")
    return tuple(have[name][0] for name in wanted)


@dataclass(frozen=True)
class JointScene:
    """An open scene of several sources in one file, each read and converted apart.

    Args:
        spec: The model's specification.
        sources: Name and channels of each source.
        parts: The scene as each source has it.
    """

    spec: ModelSpec
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    parts: tuple[SceneReader, ...]

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.parts[0].name

    @property
    def source(self) -> SceneSource:
        """The open file."""
        return self.parts[0].source

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return self.parts[0].digest

    @property
    def bands(self) -> tuple[str, ...]:
        """The file's bands in the order of the model's."""
        names = {
            at: name
            for (_, own), part in zip(self.sources, self.parts, strict=True)
            for at, name in zip(own, part.bands, strict=True)
        }
        return tuple(names[at] for at in range(len(names)))

    @property
    def scale(self) -> str:
        """How the stored numbers of each source become its unit."""
        return "; ".join(
            f"{name}: {part.scale or 'nothing seen'}" for (name, _), part in zip(self.sources, self.parts, strict=True)
        )

    @property
    def flags(self) -> tuple[str, ...]:
        """Findings about each source."""
        named = zip(self.sources, self.parts, strict=True)
        return tuple(f"{name}: {flag}" for (name, _), part in named for flag in part.flags)

    @property
    def chunk(self) -> int:
        """Rows to fetch at once so that each block is decoded once."""
        return self.parts[0].chunk

    def fetch(self, row: int, col: int, height: int, width: int) -> tuple[FloatArray, BoolArray]:
        """Read a window: data (C, H, W) in the units of the model's bands, unseen pixels filled, and where any source is seen (H, W)."""
        data = np.empty((len(self.spec.bands), height, width), np.float32)
        seen = np.zeros((height, width), np.bool_)
        for (_, channels), part in zip(self.sources, self.parts, strict=True):
            data[list(channels)], own = part.fetch(row, col, height, width)
            seen |= own
        return data, seen


OpenScene = SceneReader | JointScene


def cut_window(window: Window, block: tuple[int, int], bands: int) -> Iterator[Window]:
    """Cut a window along blocks into pieces of about `PIECE` numbers.

    Example:
        >>> list(cut_window((0, 0, 512, 9000), (512, 512), 2))[:2]
        [(0, 0, 512, 4096), (0, 4096, 512, 4096)]
    """
    row, col, height, width = window
    tall, wide = block
    if wide >= col + width:  # strips: cut between rows only
        rows, cols = max(PIECE_NUMBERS // (width * bands) // tall, 1) * tall, width
    else:
        rows, cols = height, max(PIECE_NUMBERS // (height * bands) // wide, 1) * wide
    r = row
    while r < row + height:
        below = min((r // rows + 1) * rows, row + height)
        c = col
        while c < col + width:
            right = min((c // cols + 1) * cols, col + width) if cols < width else col + width
            yield r, c, below - r, right - c
            c = right
        r = below


def file_sha256s(paths: Sequence[Path]) -> str:
    """Return a SHA-256 over the names and contents of files."""
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in paths).encode()).hexdigest()


def _canonical(name: str, sensor: str) -> str:
    try:
        return resolve_bands((name,), sensor or None)[0]
    except ImageryError:
        return name.lower()  # not a band of a known sensor: matched by its own name


def _detect_scale(
    source: SceneSource, bands: tuple[str, ...], spec: ModelSpec, hints: Hints
) -> tuple[Scale | None, list[Finding]]:
    data, seen = _sample(source, bands)
    if not seen.any():
        return None, [Finding("nothing-seen", "nothing in the scene is seen: every product is nodata")]
    if not data[:, seen].any():
        raise ImageryError(
            f"{source.path}: expected pixels, got a raster that is 0 in every band and declares no nodata value; it is the "
            "leftover of a killed writer or an empty download, write or fetch it again"
        )
    stated = _hints(source, data, seen, bands, hints)
    pairs = ((short_band(name), short_band(wanted)) for name, wanted in zip(bands, spec.bands, strict=True))
    names = [name if are_sentinel_bands((name,)) else wanted for name, wanted in pairs]
    try:
        found = detect_unit(data, seen, names, stated, source.nodata_of(bands))
        scale = scale_for(found, stated)
        to_physical(data[:, :1, :1], seen[:1, :1], scale, single_unit(spec.unit, str(source.path)))
    except RadiometryError as bad:
        raise RadiometryError(f"{source.path}: {bad}") from bad
    findings = list(found.findings)
    if source.nodata is None and not np.issubdtype(np.dtype(source.dtype), np.floating):
        text = "the scene declares no nodata value: all pixels count as seen but those that are 0 in every band"
        findings.append(Finding("no-nodata", text))
    if spec.unit == "stretched":
        text = "the scene is an 8-bit picture of unknown stretch: its numbers are not physical"
        findings.append(Finding("not-physical", text))
    return scale, findings


def _hints(source: SceneSource, data: FloatArray, seen: BoolArray, bands: tuple[str, ...], more: Hints) -> Hints:
    """Return the file's metadata on these bands; hints of the user take precedence."""
    at = [source.bands.index(name) for name in bands]
    raster = Raster(
        data,
        seen,
        bands,
        source.grid,
        source.dtype,
        source.nodata,
        source.tags,
        scales=tuple(source.scales[i] for i in at),
        offsets=tuple(source.offsets[i] for i in at),
    )
    stated = hints_of(raster)
    return replace(stated, **{f.name: getattr(more, f.name) for f in fields(more) if getattr(more, f.name) is not None})


def _sample(source: SceneSource, bands: tuple[str, ...]) -> tuple[FloatArray, BoolArray]:
    """Read windows spread over the scene; if all are 0 or unseen, read on until a seen value other than 0."""
    height, width = source.grid.height, source.grid.width
    side = max(round(SAMPLE_WINDOWS**0.5), 1)
    rows = np.linspace(0, max(height - SAMPLE_SIDE, 0), side).astype(int)
    cols = np.linspace(0, max(width - SAMPLE_SIDE, 0), side).astype(int)
    spread = [
        (int(r), int(c), min(SAMPLE_SIDE, height), min(SAMPLE_SIDE, width))
        for r in dict.fromkeys(rows)
        for c in dict.fromkeys(cols)
    ]
    found = [source.read(window, bands) for window in spread]
    if not any(data[:, seen].any() for data, seen in found):
        last = None
        for window in cut_window((0, 0, height, width), source.block, len(bands)):
            data, seen = source.read(window, bands)
            if data[:, seen].any():
                return data, seen
            last = (data, seen) if seen.any() or last is None else last
        if last is not None:
            return last
    data = np.concatenate([d.reshape(len(bands), 1, -1) for d, _ in found], 2)
    return data, np.concatenate([s.reshape(1, -1) for _, s in found], 1)


def _geometry_findings(source: SceneSource, spec: ModelSpec) -> list[Finding]:
    gsd = source.grid.gsd_m()
    if gsd is None:
        return [Finding("no-area", f"{source.grid.why_no_area()}: areas are unknown")]
    if not spec.gsd_m > 0:
        raise ModelError(f"model: expected a ground sampling distance above 0 m, got {spec.gsd_m}; correct its spec")
    if not 2 / 3 < gsd / spec.gsd_m < 1.5:
        return [Finding("pixel-size", f"pixels of {gsd:.3g} m, but the model was trained on {spec.gsd_m:.3g} m")]
    return []
