"""Converts a raw chip to the header of its folder: bands, unit, grid and label values, or raises why it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE
from seawall.data.index import ChipHeader
from seawall.data.raw_chips import RawChip, SourceItem, has_default_names
from seawall.data.writer import check_label
from seawall.errors import DataError, RadiometryError
from seawall.geo.nodata import nodata_rule
from seawall.geo.radiometry import Detection, Finding, Scale, detect_unit, scale_for, to_physical
from seawall.geo.raster import Grid
from seawall.geo.sensors import OPTICAL_BANDS, RADAR_BANDS, are_sentinel_bands, resolve_bands
from seawall.types import Unit, single_unit

MAX_GSD_RATIO = 2.0  # a larger or smaller ratio is another resolution; degrees near the poles stay within it


class LabelerResult(Protocol):
    """A label made by a rule."""

    @property
    def label(self) -> NDArray[np.uint8]: ...
    @property
    def note(self) -> str: ...


class Labeler(Protocol):
    """Labels an image (C, H, W) in data units, such as a water rule; 255 where it is undefined."""

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> LabelerResult: ...


@dataclass(frozen=True)
class PreparedChip:
    """A chip with the bands, unit and classes of its header.

    Args:
        image: (C, H, W) float32 in data units, bands in the header's order.
        seen: (H, W) bool; of several sources (C, H, W).
        label: (H, W) uint8, 255 where it does not count.
        grid: Where it is.
        gain: Step of whole digital numbers, or None.
        scale: Conversion to the physical unit.
        notes: Remarks for people.
        flags: Marks that results carry.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    label: NDArray[np.uint8]
    grid: Grid
    gain: float | None
    scale: Scale
    notes: tuple[str, ...]
    flags: tuple[str, ...]


def name_bands(raw_chip: RawChip, product: str) -> RawChip:
    """Return the chip with canonical band ids; an 8-bit picture with other band names keeps them.

    Raises:
        DataError: A band has no name, or a name is no band of the sensor and the picture is not 8-bit.
    """
    if are_sentinel_bands(raw_chip.bands) and not has_default_names(raw_chip.bands):
        return replace(raw_chip, bands=resolve_bands(raw_chip.bands, sensor=product or None))
    if raw_chip.hints.dtype == "uint8":
        return raw_chip
    raise DataError(
        f"bands: expected names of Sentinel bands, got {', '.join(raw_chip.bands)}; name them in file order (names = [...])"
    )


def find_scale(raw_chip: RawChip) -> tuple[Detection, Scale]:
    """Detect the unit of a raw chip's numbers, and their conversion to it.

    Raises:
        RadiometryError: The numbers contradict their metadata, or the unit cannot be detected.
    """
    if raw_chip.scale is not None:
        return Detection("unknown", raw_chip.scale.reason, True), raw_chip.scale
    data, seen = raw_chip.sample or (raw_chip.data, raw_chip.seen)
    found = detect_unit(data, seen, raw_chip.bands, raw_chip.hints, raw_chip.nodata)
    return found, scale_for(found, raw_chip.hints)


def prepare_chip(
    item: SourceItem,
    header: ChipHeader,
    *,
    label_map: Mapping[int, int] | None = None,
    labeler: Labeler | None = None,
    keep_empty: bool = False,
) -> PreparedChip:
    """Read one chip and convert it to the header.

    Raises:
        DataError: Bands, unit, resolution, grid or label do not fit.
        ImageryError: A file cannot be read, or its unit cannot be detected.
        EmptyChipError: No pixel is seen.
    """
    raw_chip = _unsee_all_zero(name_bands(item.read(), header.sensor))
    if missing := [band for band in header.bands if band not in raw_chip.bands]:
        raise DataError(
            f"bands: expected {', '.join(header.bands)}, got {', '.join(raw_chip.bands)} without {', '.join(missing)}; choose bands that all chips have"
        )
    order = [raw_chip.bands.index(band) for band in header.bands]
    where = raw_chip.where or item.source
    _check_empty(where, raw_chip.seen, keep_empty)
    _check_gsd(item, raw_chip, header)
    scale, seen, findings = _scale_and_seen(raw_chip, order, header)
    _check_empty(where, seen, keep_empty)
    image = to_physical(raw_chip.data[order], seen, scale, single_unit(header.unit, "curate"))
    label, more = _class_label(raw_chip, image, seen, header, label_map, labeler)
    found = {
        "not-physical": not header.physical,
        "empty": not seen.any(),
        "unlabelled": not ((label != IGNORE) & seen).any(),
        **{finding.id: True for finding in findings},
    }
    flags = tuple(flag for flag, on in found.items() if on)
    notes = (str(scale), *raw_chip.notes, *(finding.text for finding in findings), *more)
    return PreparedChip(image, seen, label, raw_chip.grid, integer_step(raw_chip, scale), scale, notes, flags)


class EmptyChipError(DataError):
    """No pixel of a chip is seen; the chip is skipped and does not count as failed."""


def _scale_and_seen(
    raw_chip: RawChip, order: Sequence[int], header: ChipHeader
) -> tuple[Scale, NDArray[np.bool_], tuple[Finding, ...]]:
    """Return the conversion of a raw chip, its seen pixels by the bands that are kept, and the findings against it."""
    if not raw_chip.seen.any():
        return Scale(1.0, 0.0, single_unit(header.unit, "curate"), "nothing seen"), raw_chip.seen, ()
    found, scale = find_scale(raw_chip)
    if scale.unit != header.unit:
        raise DataError(
            f"unit: expected {header.unit} like the other chips, got {scale.unit} ({scale.reason}); curate mixed units apart"
        )
    if raw_chip.mask is None:
        return scale, raw_chip.seen, found.findings
    rule = nodata_rule(scale, [raw_chip.nodata[i] if raw_chip.nodata else None for i in order])
    seen, tally = rule.apply(raw_chip.data[order], raw_chip.mask)
    rule.check(tally)
    return scale, seen, (*found.findings, *rule.findings(tally))


def _check_empty(where: str, seen: NDArray[np.bool_], keep_empty: bool) -> None:
    if not keep_empty and not seen.any():
        raise EmptyChipError(f"{where}: expected seen pixels, got none (all nodata or zero); nothing to do")


def _unsee_all_zero(raw_chip: RawChip) -> RawChip:
    """Mark every pixel unseen if all numbers are 0, whatever nodata is declared."""
    return raw_chip if raw_chip.data[:, raw_chip.seen].any() else replace(raw_chip, seen=np.zeros_like(raw_chip.seen))


def _check_gsd(item: SourceItem, raw_chip: RawChip, header: ChipHeader) -> None:
    gsd = raw_chip.grid.gsd_m() or item.gsd_m
    if gsd and not 1 / MAX_GSD_RATIO < gsd / header.gsd_m < MAX_GSD_RATIO:
        raise DataError(f"gsd_m: expected about {header.gsd_m:g} m, got {gsd:.3g} m; resample it or curate it apart")


def _class_label(
    raw_chip: RawChip,
    image: NDArray[np.float32],
    seen: NDArray[np.bool_],
    header: ChipHeader,
    label_map: Mapping[int, int] | None,
    labeler: Labeler | None,
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    if labeler is not None:
        marks = labeler(image, seen, header.bands, single_unit(header.unit, "labels"))
        return check_label(marks.label, seen.shape, len(header.classes)), (marks.note,)
    if raw_chip.label is None:
        raise DataError("label: expected a label file or a rule, got neither; give one")
    if raw_chip.label.shape != seen.shape:
        raise DataError(
            f"label: expected {seen.shape[0]}x{seen.shape[1]} pixels, got {raw_chip.label.shape[0]}x{raw_chip.label.shape[1]}; align it with the image"
        )
    notes = _check_label_grid(raw_chip)
    return read_label(raw_chip.label, len(header.classes), label_map, raw_chip.label_nodata), notes


def _check_label_grid(raw_chip: RawChip) -> tuple[str, ...]:
    grid = raw_chip.label_grid
    if grid is None or (grid.transform is None and raw_chip.grid.transform is None):
        return ()
    if grid.transform is None or raw_chip.grid.transform is None:
        which = "label" if grid.transform is None else "image"
        return (f"the {which} has no georeference: taken as aligned",)
    if gap := raw_chip.grid.mismatch(grid):
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
        label_map: Class value or 255 of each raw value; other values are refused.
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


def integer_step(raw_chip: RawChip, scale: Scale) -> float | None:
    """Return the step of whole numbers, if the image can be kept as such: integers in, and an offset of whole steps.

    None if it has to be kept as floats.
    """
    if raw_chip.step is not None:
        return raw_chip.step
    whole = raw_chip.hints.dtype is not None and not raw_chip.hints.dtype.startswith("float")
    steps = scale.offset / scale.gain
    return scale.gain if whole and not scale.decibel and abs(steps - round(steps)) < 1e-6 else None


Shared = TypeVar("Shared")


def choose_header(
    raw_chips: Mapping[str, RawChip],
    gsds: Mapping[str, float | None],
    *,
    product: str,
    licence: str,
    bands: Sequence[str] | None,
    unit: Unit | None,
    classes: Sequence[str],
    gsd_m: float | None,
) -> ChipHeader:
    """Return the header that a sample of raw chips shares.

    Args:
        raw_chips: Sample of raw chips with canonical bands, by id.
        gsds: Declared ground sampling distance of each.
        product: Product family.
        licence: Licence of the data.
        bands: Bands wanted; those of the chips if None.
        unit: Unit wanted; that of the chips if None.
        classes: Class names.
        gsd_m: Ground sampling distance wanted; that of the chips if None.

    Raises:
        DataError: The sample is mixed in bands, unit or resolution, and the mix was not settled by an argument.
    """
    chosen = tuple(bands) if bands else _shared_value({id_: p.bands for id_, p in raw_chips.items()}, "bands", "bands")
    if are_sentinel_bands(chosen) and not has_default_names(chosen):
        chosen = resolve_bands(chosen, sensor=product or None)
    shared = _shared_value(_chip_units(raw_chips), "unit", "unit") if unit is None else unit
    if gsd_m is None:
        found = {id_: gsds[id_] or raw_chip.grid.gsd_m() for id_, raw_chip in raw_chips.items()}
        sizes = sorted(g for g in found.values() if g)
        if not sizes:
            raise DataError("gsd_m: expected a georeference or a declared pixel size, got none; state gsd_m in meters")
        if sizes[-1] >= MAX_GSD_RATIO * sizes[0]:
            raise DataError(
                f"gsd_m: expected one resolution, got {sizes[0]:g} to {sizes[-1]:g} m; curate them apart or state gsd_m"
            )
        gsd_m = round(sizes[len(sizes) // 2], 2)
    return ChipHeader(band_order(chosen), shared, tuple(classes), float(gsd_m), product, licence)


def band_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort canonical ids by wavelength, then polarization; names that are not canonical keep their order."""
    order = (*OPTICAL_BANDS, *RADAR_BANDS)
    return tuple(sorted(names, key=order.index)) if all(name in order for name in names) else tuple(names)


def _chip_units(raw_chips: Mapping[str, RawChip]) -> dict[str, Unit]:
    """Return the unit of each chip where it is detected; a dark or odd chip does not stop the others."""
    units: dict[str, Unit] = {}
    reason = "no pixel is seen in the chips looked at"
    for id_, raw_chip in raw_chips.items():
        if not raw_chip.seen.any():
            continue
        try:
            units[id_] = find_scale(raw_chip)[1].unit
        except RadiometryError as bad:
            reason = f"{id_}: {bad}"
    if not units:
        raise DataError(f"unit: expected numbers of a known unit, got none ({reason}); state unit, gain and offset")
    return units


def _shared_value(values: Mapping[str, Shared], what: str, setting: str) -> Shared:
    first: dict[Shared, str] = {}
    for id_, value in values.items():
        first.setdefault(value, id_)
    if len(first) > 1:
        some = "; ".join(f"{_value_text(value)} ({id_})" for value, id_ in list(first.items())[:4])
        raise DataError(
            f"{what}: expected the same for all chips, got {some}; select chips of one kind, or state {setting} and let the others fail"
        )
    return next(iter(first))


def _value_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
