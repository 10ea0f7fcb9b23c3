"""Splits into train, val and test, checked so that no chip, group, image or ground is in two parts.

`split_chips` is the split that every verb uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from seawall.data.chips import ChipFolder
from seawall.data.footprints import center_m, overlaps, within_distance
from seawall.errors import DataError, UsageError
from seawall.split_record import SHA256_PREFIX, SPLIT_PARTS, SplitRecord, SplitSettings

ASSIGNMENT_TRIES = 400  # random orders; more improve the balance by less than a percent


@dataclass(frozen=True)
class Split:
    """Chip ids of each part.

    Args:
        train: Chips for training.
        val: Chips to choose weights by.
        test: Chips for the reported numbers.
        how: Description for the report.
        settings: Settings that reproduce it; None where it was made by hand.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    how: str = ""
    settings: SplitSettings | None = None

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class SplitUnit:
    """Chips that must stay together, with their weight in the balance.

    Args:
        ids: Chip ids.
        chips: How many.
        water: Water pixels.
        valid: Valid pixels.
    """

    ids: tuple[str, ...]
    chips: int
    water: float
    valid: float


def split_chips(folder: ChipFolder, settings: SplitSettings | None = None) -> Split:
    """Return the split of a folder that training, evaluation, attacks and corruption share.

    Only chips with a valid pixel are split. A folder whose labels were corrupted by parts keeps the split that was
    used for it, whatever the seed.

    Args:
        folder: The chips.
        settings: How to split; the defaults of `seawall train` if None.

    Raises:
        UsageError: The folder keeps a split, and the settings ask for another one.
        DataError: There are fewer groups or blocks than parts, or the kept split does not know a chip.
    """
    settings = settings or SplitSettings()
    if folder.header.split is not None:
        return _kept_split(folder, folder.header.split, settings)
    ids = labelled_ids(folder)
    if settings.by == "block":
        split = split_blocks(
            folder, settings.seed, block_m=settings.block_m, val=settings.val, test=settings.test, ids=ids
        )
    else:
        split = split_groups(folder, settings.seed, val=settings.val, test=settings.test, ids=ids)
    return replace(split, settings=settings)


def labelled_ids(folder: ChipFolder) -> tuple[str, ...]:
    """Return the chips with a valid pixel; no others are split."""
    return tuple(row.id for row in folder.rows if row.valid_share > 0)


def record_split(folder: ChipFolder, split: Split, *, selected: bool = True) -> SplitRecord:
    """Return the record of a split that is stored with weights or a folder; `selected` says that weights are chosen by its val part."""
    rows = {part: [folder.row(id_) for id_ in ids] for part, ids in split.parts().items()}
    return SplitRecord(
        {part: tuple(sorted({row.sha256[:SHA256_PREFIX] for row in mine})) for part, mine in rows.items()},
        {part: tuple(sorted({row.group for row in mine})) for part, mine in rows.items()},
        split.settings,
        selected,
    )


def recorded_parts(folder: ChipFolder, record: SplitRecord) -> dict[str, tuple[str, ...]]:
    """Return the labelled chips of a folder by their part in a record; those that it does not know are under ""."""
    found: dict[str, list[str]] = {part: [] for part in (*SPLIT_PARTS, "")}
    for id_ in labelled_ids(folder):
        row = folder.row(id_)
        found[record.part(row.sha256, row.group)].append(id_)
    return {part: tuple(ids) for part, ids in found.items()}


def _kept_split(folder: ChipFolder, record: SplitRecord, wanted: SplitSettings) -> Split:
    _check_kept(folder, record.settings, wanted)
    parts = recorded_parts(folder, record)
    if parts[""]:
        raise DataError(
            f"{folder.root}: expected every labelled chip in the split that the folder keeps, got {parts[''][0]!r}, "
            "which it does not know; corrupt the source folder again"
        )
    how = f"as the labels were corrupted: {record.settings or 'by hand'}"
    split = Split(parts["train"], parts["val"], parts["test"], how, record.settings)
    check_disjoint(folder, split, groups=record.settings is not None and record.settings.by == "group")
    return split


def _check_kept(folder: ChipFolder, kept: SplitSettings | None, wanted: SplitSettings) -> None:
    """Raise if a setting differs from its default and from the kept split.

    The seed is not compared: it also decides weights and noise, which may be drawn again over one split.
    """
    usual, mine = asdict(SplitSettings()), asdict(wanted)
    was = asdict(kept) if kept is not None else {}
    for key, value in mine.items():
        idle = key == "seed" or (key == "block_m" and wanted.by == "group")
        if not idle and value != usual[key] and value != was.get(key):
            raise UsageError(
                f"split.{key}: expected {was.get(key, 'no setting')}, by which the labels of {folder.root} were corrupted, got {value}; "
                "leave it out, or corrupt the source folder again with this split"
            )


def split_groups(
    folder: ChipFolder, seed: int = 0, *, val: float = 0.2, test: float = 0.2, ids: Sequence[str] | None = None
) -> Split:
    """Split by group, balanced by chips and by water share.

    Groups that share an image or overlap on the ground stay together.

    Args:
        folder: The chips.
        seed: Chooses among equally balanced splits.
        val: Share of chips to choose weights by; 0 for none.
        test: Share of chips to report on; 0 for none.
        ids: Chips to split; all if None.

    Raises:
        UsageError: The shares leave nothing to train on.
        DataError: There are fewer groups than parts.
    """
    chosen = tuple(sorted(ids)) if ids is not None else folder.ids
    units = _connected_units(folder, _group_by(chosen, lambda id_: folder.row(id_).group))
    split = _split_units(folder, units, SplitSettings("group", val=val, test=test, seed=seed), "groups")
    check_disjoint(folder, split)
    return split


def split_blocks(
    folder: ChipFolder,
    seed: int = 0,
    *,
    block_m: float,
    val: float = 0.2,
    test: float = 0.2,
    gap_m: float = 0.0,
    ids: Sequence[str] | None = None,
) -> Split:
    """Split by square blocks of ground, balanced by chips and by water share.

    Args:
        folder: The chips; each needs a georeference.
        seed: Chooses among equally balanced splits.
        block_m: Side of a block in meters; a chip belongs to the block of its center.
        val: Share of chips to choose weights by.
        test: Share of chips to report on.
        gap_m: Training chips whose center is nearer than this to a held-out chip's center are left out.
        ids: Chips to split; all if None.

    Raises:
        UsageError: A share, the block or the gap is out of range.
        DataError: A chip has no georeference, or there are fewer blocks than parts.
    """
    settings = SplitSettings("block", block_m, val, test, seed)
    if not gap_m >= 0:
        raise UsageError(f"split.gap_m: expected meters from 0 up, got {gap_m}; 0 leaves no gap")
    chosen = tuple(sorted(ids)) if ids is not None else folder.ids
    places = {id_: center_m(folder.row(id_)) for id_ in chosen}

    def block(id_: str) -> str:
        zone, x, y = places[id_]
        return f"{zone} {math.floor(x / block_m)} {math.floor(y / block_m)}"

    units = _connected_units(folder, _group_by(chosen, block))
    split = _split_units(folder, units, settings, f"blocks of {block_m:g} m")
    if gap_m:
        held = [folder.row(id_) for id_ in (*split.val, *split.test)]
        close = within_distance([folder.row(id_) for id_ in split.train], held, gap_m)
        far = tuple(id_ for id_, is_close in zip(split.train, close, strict=True) if not is_close)
        if not far:
            raise DataError(
                f"split: expected training chips beyond {gap_m:g} m of held-out ones, got none; lower gap_m"
            )
        split = replace(split, train=far, how=f"{split.how}, gap {gap_m:g} m")
    check_disjoint(folder, split, groups=False)
    return split


def kfold_groups(
    folder: ChipFolder, k: int = 5, seed: int = 0, *, ids: Sequence[str] | None = None
) -> tuple[Split, ...]:
    """Return k splits by group whose test parts cover every chip once; their val parts are empty.

    Raises:
        UsageError: k is below 2.
        DataError: There are fewer groups than folds.
    """
    if k < 2:
        raise UsageError(f"kfold: expected k of at least 2, got {k}; raise it")
    chosen = tuple(sorted(ids)) if ids is not None else folder.ids
    units = _connected_units(folder, _group_by(chosen, lambda id_: folder.row(id_).group))
    folds = assign_units(units, [1 / k] * k, seed, f"{k} folds")
    splits = []
    for i, fold in enumerate(folds):
        rest = tuple(sorted(set(chosen) - set(fold)))
        split = Split(rest, (), fold, f"fold {i + 1} of {k} by groups, seed {seed}")
        check_disjoint(folder, split)
        splits.append(split)
    return tuple(splits)


def check_disjoint(folder: ChipFolder, split: Split, *, groups: bool = True) -> None:
    """Check that no chip, group, image or ground is in two parts.

    Args:
        folder: The chips.
        split: The split to check.
        groups: Groups must not be shared either; a split by blocks may share them.

    Raises:
        DataError: Two parts overlap; the message names where.
    """
    home: dict[str, str] = {}
    for part, ids in split.parts().items():
        for id_ in ids:
            if home.setdefault(id_, part) != part:
                raise DataError(f"split: expected {id_!r} in one part, got {home[id_]} and {part}; split again")
        if len(set(ids)) != len(ids):
            raise DataError(f"split: expected each chip once in {part}, got one twice; split again")
    rows = {id_: folder.row(id_) for id_ in home}
    _check_one_part(home, {id_: row.sha256 for id_, row in rows.items()}, "picture")
    if groups:
        _check_one_part(home, {id_: row.group for id_, row in rows.items()}, "group")
    for a, b in overlaps(list(rows.values())):
        if home[a] != home[b]:
            raise DataError(
                f"split: expected no shared ground, got {a!r} ({home[a]}) over {b!r} ({home[b]}); split by larger groups or blocks"
            )


def split_summary(folder: ChipFolder, split: Split) -> dict[str, object]:
    """Return the facts of a split for the report: chips, groups and water share of each part, and warnings.

    The water share is pooled over valid pixels, None where it is undefined. A group without water or without
    valid pixels is no error: its IoU is undefined, and there is a warning.
    """
    klass = folder.header.water
    facts: dict[str, dict[str, object]] = {"groups": {}, "chips_per_part": {}, "water_share": {}}
    warnings: list[str] = []
    for part, ids in split.parts().items():
        rows = [folder.row(id_) for id_ in ids]
        facts["groups"][part] = sorted({row.group for row in rows})
        facts["chips_per_part"][part] = len(rows)
        valid = sum(row.valid for row in rows)
        water = sum(row.class_counts[klass] for row in rows) if klass is not None else 0
        facts["water_share"][part] = water / valid if valid and klass is not None else None
        if rows and not valid:
            warnings.append(f"{part}: no valid pixel, every metric is undefined")
        elif rows and klass is not None and not water:
            warnings.append(f"{part}: no water, its water IoU is undefined or 0")
    dry = groups_without_water(folder, [id_ for ids in split.parts().values() for id_ in ids])
    if dry:
        some = ", ".join(dry[:8]) + (f" and {len(dry) - 8} more" if len(dry) > 8 else "")
        warnings.append(f"no water in {len(dry)} groups ({some}): their own water IoU is undefined or 0")
    return {**facts, "how": split.how, "warnings": warnings}


def groups_without_water(folder: ChipFolder, ids: Iterable[str]) -> tuple[str, ...]:
    """Return the groups in which no valid pixel is water; empty if there is no class of that name."""
    klass = folder.header.water
    if klass is None:
        return ()
    water: dict[str, int] = {}
    for id_ in ids:
        row = folder.row(id_)
        water[row.group] = water.get(row.group, 0) + row.class_counts[klass]
    return tuple(sorted(group for group, n in water.items() if not n))


def _group_by(ids: Iterable[str], name: Callable[[str], str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for id_ in ids:
        found.setdefault(name(id_), []).append(id_)
    return [found[key] for key in sorted(found)]


def _connected_units(folder: ChipFolder, sets: list[list[str]]) -> list[SplitUnit]:
    """Join sets that share an image or ground, which no split may separate."""
    home = {id_: i for i, ids in enumerate(sets) for id_ in ids}
    rows = [folder.row(id_) for id_ in home]
    first: dict[str, str] = {}
    copies = [(first.setdefault(row.sha256, row.id), row.id) for row in rows]
    edges = np.array([(home[a], home[b]) for a, b in (*copies, *overlaps(rows))], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(sets), len(sets)))
    joined: dict[int, list[str]] = {}
    for component, ids in zip(connected_components(graph, directed=False)[1], sets, strict=True):
        joined.setdefault(int(component), []).extend(ids)
    return [_split_unit(folder, ids) for ids in joined.values()]


def _split_unit(folder: ChipFolder, ids: Sequence[str]) -> SplitUnit:
    klass = folder.header.water
    rows = [folder.row(id_) for id_ in ids]
    # Counts before the label was corrupted: a corrupted folder splits as its source does.
    water = sum((row.split_counts or row.class_counts)[klass] for row in rows) if klass is not None else 0
    return SplitUnit(tuple(sorted(ids)), len(rows), float(water), float(sum(row.valid for row in rows)))


def _split_units(folder: ChipFolder, units: list[SplitUnit], settings: SplitSettings, what: str) -> Split:
    val, test, seed = settings.val, settings.test, settings.seed
    shares = {part: share for part, share in zip(SPLIT_PARTS, (1 - val - test, val, test), strict=True) if share > 0}
    assigned = dict(zip(shares, assign_units(units, list(shares.values()), seed, what), strict=True))
    how = f"by {what}, seed {seed}, {len(units)} inseparable sets"
    return Split(assigned["train"], assigned.get("val", ()), assigned.get("test", ()), how, settings)


def _check_one_part(home: Mapping[str, str], value: Mapping[str, str], what: str) -> None:
    first: dict[str, str] = {}
    for id_, key in value.items():
        other = first.setdefault(key, id_)
        if home[other] != home[id_]:
            raise DataError(
                f"split: expected each {what} in one part, got {other!r} ({home[other]}) and {id_!r} ({home[id_]}) of one {what}; split again"
            )


def assign_units(units: list[SplitUnit], shares: list[float], seed: int, what: str) -> list[tuple[str, ...]]:
    """Assign units to parts, by the best balanced of many random greedy assignments, and return the chip ids of each.

    Args:
        units: Sets of chips that must stay together.
        shares: Share of the chips that each part should get; they sum to 1.
        seed: Chooses among equally balanced assignments.
        what: Name of the units, for the message.

    Raises:
        DataError: There are fewer units than parts.
    """
    if len(units) < len(shares):
        raise DataError(
            f"split: expected at least {len(shares)} separable {what}, got {len(units)}; use more groups, fewer parts, or blocks of ground (split.by=block)"
        )
    weight = np.array([[unit.chips, unit.water, unit.valid] for unit in units], np.float64)
    rng = np.random.default_rng([seed, len(units)])
    assignments = [_assign_greedily(weight[:, 0], np.array(shares), rng) for _ in range(ASSIGNMENT_TRIES)]
    # Rounded, so that assignments that differ by the last bit of a sum count as equal on every machine.
    best = min(assignments, key=lambda home: round(_assignment_imbalance(weight, home, np.array(shares)), 12))
    parts: list[list[str]] = [[] for _ in shares]
    for unit, part in zip(units, best, strict=True):
        parts[part].extend(unit.ids)
    return [tuple(sorted(part)) for part in parts]


def _assign_greedily(
    chips: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    order = np.argsort(-chips * rng.uniform(0.5, 1.5, len(chips)), kind="stable")
    load = np.zeros(len(shares))
    home = np.zeros(len(chips), np.int64)
    for place, unit in enumerate(order):
        empty = load == 0
        # The last units fill parts that are still empty, so that no part stays without a unit.
        open_ = empty if empty.sum() >= len(order) - place else np.ones(len(shares), bool)
        lack = np.where(open_, shares * chips.sum() - load, -np.inf)
        home[unit] = int(np.argmax(lack))
        load[home[unit]] += chips[unit]
    return home


def _assignment_imbalance(weight: NDArray[np.float64], home: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    sums = np.stack([weight[home == part].sum(0) for part in range(len(shares))])
    chips = sums[:, 0] / weight[:, 0].sum() - shares
    overall = weight[:, 1].sum() / max(1.0, weight[:, 2].sum())
    water = sums[:, 1] / np.maximum(1.0, sums[:, 2]) - overall
    return float((chips**2 / shares).sum() + (water**2 * shares).sum() / max(overall, 0.05))
