"""What the chips of a folder must agree on, told from a sample of them before the work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from seawall.datasets.index import ChipHeader
from seawall.datasets.pieces import Piece, nameless
from seawall.datasets.prepare import GSD_APART, find_scale
from seawall.datasets.sources import band_order
from seawall.errors import DataError, RadiometryError
from seawall.geo.sensors import known, resolve
from seawall.types import Unit

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
    if known(chosen) and not nameless(chosen):
        chosen = resolve(chosen, sensor=product or None)
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
