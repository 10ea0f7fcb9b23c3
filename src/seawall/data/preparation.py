"""From what was read to a chip that keeps the contract: bands, unit, grid, label values; or a reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE
from seawall.data.index import ChipHeader
from seawall.data.raw_chips import Item, Piece, nameless
from seawall.data.sources import band_order
from seawall.data.writer import check_label
from seawall.errors import DataError, RadiometryError
from seawall.geo.nodata import nodata_rule
from seawall.geo.radiometry import Detection, Finding, Scale, detect_unit, scale_for, to_physical
from seawall.geo.raster import Grid
from seawall.geo.sensors import are_sentinel_bands, resolve_bands
from seawall.types import Unit

GSD_APART = 2.0  # times larger or smaller is another resolution; degrees near the poles stay within


class Marks(Protocol):
    """A label made by a rule."""

    @property
    def label(self) -> NDArray[np.uint8]: ...
    @property
    def note(self) -> str: ...


class Labeler(Protocol):
    """Labels an image (C, H, W) in data units, such as a water rule; 255 where it cannot tell."""

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> Marks: ...


@dataclass(frozen=True)
class Ready:
    """A chip that keeps the contract.

    Args:
        image: (C, H, W) float32 in data units, bands in the header's order.
        seen: (H, W) bool.
        label: (H, W) uint8, 255 where it does not count.
        grid: Where it is.
        gain: Step of whole digital numbers, or None.
        scale: How it became physical.
        notes: What a person should know.
        flags: Marks that results carry along.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    label: NDArray[np.uint8]
    grid: Grid
    gain: float | None
    scale: Scale
    notes: tuple[str, ...]
    flags: tuple[str, ...]


def name_bands(piece: Piece, product: str) -> Piece:
    """Return the piece with canonical band ids; a picture whose band names mean nothing keeps them.

    Raises:
        DataError: A band has no name, or a name is no band of the sensor and the picture is not 8-bit.
    """
    if are_sentinel_bands(piece.bands) and not nameless(piece.bands):
        return replace(piece, bands=resolve_bands(piece.bands, sensor=product or None))
    if piece.hints.dtype == "uint8":
        return piece
    raise DataError(
        f"bands: expected names of Sentinel bands, got {', '.join(piece.bands)}; name them in file order (names = [...])"
    )


def find_scale(piece: Piece) -> tuple[Detection, Scale]:
    """Tell what the numbers of a piece are.

    Raises:
        RadiometryError: They contradict their metadata, or cannot be told.
    """
    if piece.scale is not None:
        return Detection("unknown", piece.scale.reason, True), piece.scale
    data, seen = piece.sample or (piece.data, piece.seen)
    found = detect_unit(data, seen, piece.bands, piece.hints, piece.nodata)
    return found, scale_for(found, piece.hints)


def prepare(
    item: Item,
    header: ChipHeader,
    *,
    label_map: Mapping[int, int] | None = None,
    labeler: Labeler | None = None,
    keep_empty: bool = False,
) -> Ready:
    """Read one chip and bring it under the contract.

    Raises:
        DataError: Bands, unit, resolution, grid or label do not fit.
        ImageryError: A file cannot be read, or its numbers cannot be told.
        EmptyChipError: No pixel is seen.
    """
    piece = _blank_is_unseen(name_bands(item.read(), header.sensor))
    if missing := [band for band in header.bands if band not in piece.bands]:
        raise DataError(
            f"bands: expected {', '.join(header.bands)}, got {', '.join(piece.bands)} without {', '.join(missing)}; choose bands that all chips have"
        )
    order = [piece.bands.index(band) for band in header.bands]
    where = piece.where or item.source
    _check_empty(where, piece.seen, keep_empty)
    _check_gsd(item, piece, header)
    scale, seen, findings = _seen(piece, order, header)
    _check_empty(where, seen, keep_empty)
    image = to_physical(piece.data[order], seen, scale, header.unit)
    label, more = _label(piece, image, seen, header, label_map, labeler)
    found = {
        "not-physical": not header.physical,
        "empty": not seen.any(),
        "unlabelled": not ((label != IGNORE) & seen).any(),
        **{finding.id: True for finding in findings},
    }
    flags = tuple(flag for flag, on in found.items() if on)
    notes = (str(scale), *piece.notes, *(finding.text for finding in findings), *more)
    return Ready(image, seen, label, piece.grid, step_of(piece, scale), scale, notes, flags)


class EmptyChipError(DataError):
    """No pixel of a chip is seen: it is skipped, not failed."""


def _seen(
    piece: Piece, order: Sequence[int], header: ChipHeader
) -> tuple[Scale, NDArray[np.bool_], tuple[Finding, ...]]:
    """Return how a piece becomes physical, which of its pixels count by the bands that are kept, and what speaks against it."""
    if not piece.seen.any():
        return Scale(1.0, 0.0, header.unit, "nothing seen"), piece.seen, ()
    found, scale = find_scale(piece)
    if scale.unit != header.unit:
        raise DataError(
            f"unit: expected {header.unit} like the other chips, got {scale.unit} ({scale.reason}); curate mixed units apart"
        )
    if piece.mask is None:
        return scale, piece.seen, found.findings
    rule = nodata_rule(scale, [piece.nodata[i] if piece.nodata else None for i in order])
    seen, tally = rule.apply(piece.data[order], piece.mask)
    rule.check(tally)
    return scale, seen, (*found.findings, *rule.findings(tally))


def _check_empty(where: str, seen: NDArray[np.bool_], keep_empty: bool) -> None:
    if not keep_empty and not seen.any():
        raise EmptyChipError(f"{where}: expected seen pixels, got none (all nodata or zero); nothing to do")


def _blank_is_unseen(piece: Piece) -> Piece:
    """A chip whose numbers are all 0 shows nothing, whatever its nodata says."""
    return piece if piece.data[:, piece.seen].any() else replace(piece, seen=np.zeros_like(piece.seen))


def _check_gsd(item: Item, piece: Piece, header: ChipHeader) -> None:
    gsd = piece.grid.gsd_m() or item.gsd_m
    if gsd and not 1 / GSD_APART < gsd / header.gsd_m < GSD_APART:
        raise DataError(f"gsd_m: expected about {header.gsd_m:g} m, got {gsd:.3g} m; resample it or curate it apart")


def _label(
    piece: Piece,
    image: NDArray[np.float32],
    seen: NDArray[np.bool_],
    header: ChipHeader,
    label_map: Mapping[int, int] | None,
    labeler: Labeler | None,
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    if labeler is not None:
        marks = labeler(image, seen, header.bands, header.unit)
        return check_label(marks.label, seen.shape, len(header.classes)), (marks.note,)
    if piece.label is None:
        raise DataError("label: expected a label file or a rule, got neither; give one")
    if piece.label.shape != seen.shape:
        raise DataError(
            f"label: expected {seen.shape[0]}x{seen.shape[1]} pixels, got {piece.label.shape[0]}x{piece.label.shape[1]}; align it with the image"
        )
    notes = _check_grid(piece)
    return read_label(piece.label, len(header.classes), label_map, piece.label_nodata), notes


def _check_grid(piece: Piece) -> tuple[str, ...]:
    grid = piece.label_grid
    if grid is None or (grid.transform is None and piece.grid.transform is None):
        return ()
    if grid.transform is None or piece.grid.transform is None:
        which = "label" if grid.transform is None else "image"
        return (f"the {which} has no georeference: taken as aligned",)
    if gap := piece.grid.mismatch(grid):
        raise DataError(
            f"label: expected the image's grid, got another one ({gap}); align it, nothing is resampled here"
        )
    return ()


def read_label(
    raw: NDArray[np.float32], classes: int, label_map: Mapping[int, int] | None = None, nodata: float | None = None
) -> NDArray[np.uint8]:
    """Translate raw label values into class values, 255 where they do not count.

    Args:
        raw: (H, W) values as stored; NaN does not count.
        classes: How many classes there are.
        label_map: What each raw value means: a class value or 255; if given, it decides alone.
        nodata: Declared nodata, which does not count unless the map says otherwise.

    Raises:
        DataError: A value is unknown, or nodata is also a class value and no map settles which it is.

    Example:
        >>> read_label(np.float32([[-1, 0, 1]]), 2, {-1: 255, 0: 0, 1: 1}).tolist()
        [[255, 0, 1]]
    """
    there = np.isfinite(raw)
    if label_map is not None:
        out = np.full(raw.shape, IGNORE, np.uint8)
        rest = there.copy()
        for value, klass in label_map.items():
            if not (0 <= klass < classes or klass == IGNORE):
                raise DataError(
                    f"label map: expected class values 0 to {classes - 1} or {IGNORE}, got {value} -> {klass}; fix the map"
                )
            out[raw == value] = klass
            rest &= raw != value
        if nodata is not None:
            rest &= raw != nodata
        if rest.any():
            some = ", ".join(f"{v:g}" for v in np.unique(raw[rest])[:5])
            raise DataError(f"label: expected only values of the label map, got {some}; say what they mean")
        return out
    if nodata is not None and np.isfinite(nodata):
        if 0 <= nodata < classes:
            raise DataError(
                f"label: expected nodata apart from the classes, got nodata {nodata:g}, which is a class value; settle it with a label map"
            )
        there &= raw != nodata
    return check_label(np.where(there, raw, IGNORE), raw.shape, classes)


def step_of(piece: Piece, scale: Scale) -> float | None:
    """Return the step of whole numbers, if the image can be kept as such: integers in, and an offset of whole steps.

    None if it has to be kept as floats.
    """
    if piece.step is not None:
        return piece.step
    whole = piece.hints.dtype is not None and not piece.hints.dtype.startswith("float")
    steps = scale.offset / scale.gain
    return scale.gain if whole and not scale.decibel and abs(steps - round(steps)) < 1e-6 else None


T = TypeVar("T")


def choose_header(
    pieces: Mapping[str, Piece],
    gsds: Mapping[str, float | None],
    *,
    product: str,
    licence: str,
    bands: Sequence[str] | None,
    unit: Unit | None,
    classes: Sequence[str],
    gsd_m: float | None,
) -> ChipHeader:
    """Return what a sample of pieces shares.

    Args:
        pieces: Sample of what was read, with canonical bands, by id.
        gsds: Declared ground sampling distance of each.
        product: Product family.
        licence: What may be done with the data.
        bands: Bands wanted; those of the chips if None.
        unit: Unit wanted; that of the chips if None.
        classes: Class names.
        gsd_m: Ground sampling distance wanted; that of the chips if None.

    Raises:
        DataError: The sample is mixed in bands, unit or resolution, and the mix was not settled by an argument.
    """
    chosen = tuple(bands) if bands else _one({id_: p.bands for id_, p in pieces.items()}, "bands", "bands")
    if are_sentinel_bands(chosen) and not nameless(chosen):
        chosen = resolve_bands(chosen, sensor=product or None)
    shared = _one(_units(pieces), "unit", "unit") if unit is None else unit
    if gsd_m is None:
        found = {id_: gsds[id_] or piece.grid.gsd_m() for id_, piece in pieces.items()}
        sizes = sorted(g for g in found.values() if g)
        if not sizes:
            raise DataError("gsd_m: expected a georeference or a declared pixel size, got none; state gsd_m in meters")
        if sizes[-1] >= GSD_APART * sizes[0]:
            raise DataError(
                f"gsd_m: expected one resolution, got {sizes[0]:g} to {sizes[-1]:g} m; curate them apart or state gsd_m"
            )
        gsd_m = round(sizes[len(sizes) // 2], 2)
    return ChipHeader(band_order(chosen), shared, tuple(classes), float(gsd_m), product, licence)


def _units(pieces: Mapping[str, Piece]) -> dict[str, Unit]:
    """Unit of each piece that shows one; a dark or odd chip cannot stop the others."""
    units: dict[str, Unit] = {}
    reason = "no pixel is seen in the chips looked at"
    for id_, piece in pieces.items():
        if not piece.seen.any():
            continue
        try:
            units[id_] = find_scale(piece)[1].unit
        except RadiometryError as bad:
            reason = f"{id_}: {bad}"
    if not units:
        raise DataError(f"unit: expected numbers of a known unit, got none ({reason}); state unit, gain and offset")
    return units


def _one(values: Mapping[str, T], what: str, setting: str) -> T:
    first: dict[T, str] = {}
    for id_, value in values.items():
        first.setdefault(value, id_)
    if len(first) > 1:
        some = "; ".join(f"{_text(value)} ({id_})" for value, id_ in list(first.items())[:4])
        raise DataError(
            f"{what}: expected the same for all chips, got {some}; select chips of one kind, or state {setting} and let the others fail"
        )
    return next(iter(first))


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
