"""Splits that prove what they promise: no chip, group, content or ground in two parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from seawall.datasets.chips import ChipFolder
from seawall.datasets.deal import Unit, deal
from seawall.datasets.ground import overlaps, place_m
from seawall.errors import DataError, UsageError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Chip ids of each part.

    Args:
        train: To learn from.
        val: To choose by.
        test: To report on.
        how: How it was made, for the report.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    how: str = ""

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def split_groups(
    folder: ChipFolder, seed: int = 0, *, val: float = 0.2, test: float = 0.2, ids: Sequence[str] | None = None
) -> Split:
    """Split by group, balanced by chips and by water share.

    Groups that share a picture or overlap on the ground stay together.

    Args:
        folder: The chips.
        seed: Chooses among equally balanced splits.
        val: Share of chips to choose by; 0 for none.
        test: Share of chips to report on; 0 for none.
        ids: Chips to split; all if None.

    Raises:
        UsageError: The shares leave nothing to train on.
        DataError: There are fewer groups than parts.
    """
    chosen = tuple(sorted(ids)) if ids is not None else folder.ids
    units = _joined(folder, _by(chosen, lambda id_: folder.row(id_).group))
    split = _assign(folder, units, seed, val, test, "groups")
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
        val: Share of chips to choose by.
        test: Share of chips to report on.
        gap_m: Training chips whose center is nearer than this to a held-out chip's center are left out.
        ids: Chips to split; all if None.

    Raises:
        UsageError: A share, the block or the gap is out of range.
        DataError: A chip has no georeference, or there are fewer blocks than parts.
    """
    if not block_m > 0 or not gap_m >= 0:
        raise UsageError(
            f"split: expected block_m above 0 and gap_m of at least 0, got {block_m} and {gap_m}; fix them"
        )
    chosen = tuple(sorted(ids)) if ids is not None else folder.ids
    places = {id_: place_m(folder.row(id_)) for id_ in chosen}

    def block(id_: str) -> str:
        zone, x, y = places[id_]
        return f"{zone} {math.floor(x / block_m)} {math.floor(y / block_m)}"

    units = _joined(folder, _by(chosen, block))
    split = _assign(folder, units, seed, val, test, f"blocks of {block_m:g} m")
    if gap_m:
        held = [places[id_] for id_ in (*split.val, *split.test)]
        far = tuple(id_ for id_ in split.train if not _near(places[id_], held, gap_m))
        if not far:
            raise DataError(
                f"split: expected training chips beyond {gap_m:g} m of held-out ones, got none; lower gap_m"
            )
        split = Split(far, split.val, split.test, f"{split.how}, gap {gap_m:g} m")
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
    units = _joined(folder, _by(chosen, lambda id_: folder.row(id_).group))
    folds = deal(units, [1 / k] * k, seed, f"{k} folds")
    splits = []
    for i, fold in enumerate(folds):
        rest = tuple(sorted(set(chosen) - set(fold)))
        split = Split(rest, (), fold, f"fold {i + 1} of {k} by groups, seed {seed}")
        check_disjoint(folder, split)
        splits.append(split)
    return tuple(splits)


def check_disjoint(folder: ChipFolder, split: Split, *, groups: bool = True) -> None:
    """Prove that no chip, group, picture or ground is in two parts.

    Args:
        folder: The chips.
        split: The split to prove.
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
    _one_home(home, {id_: row.sha256 for id_, row in rows.items()}, "picture")
    if groups:
        _one_home(home, {id_: row.group for id_, row in rows.items()}, "group")
    for a, b in overlaps(list(rows.values())):
        if home[a] != home[b]:
            raise DataError(
                f"split: expected no shared ground, got {a!r} ({home[a]}) over {b!r} ({home[b]}); split by larger groups or blocks"
            )


def split_facts(folder: ChipFolder, split: Split) -> dict[str, object]:
    """Return what a report says about a split: chips, groups, water share of each part, and warnings.

    The water share is pooled over valid pixels, None where it is undefined. A group without water or without
    valid pixels is no error: its own IoU is undefined, and the warning says so.
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


def _by(ids: Iterable[str], name: Callable[[str], str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for id_ in ids:
        found.setdefault(name(id_), []).append(id_)
    return [found[key] for key in sorted(found)]


def _joined(folder: ChipFolder, sets: list[list[str]]) -> list[Unit]:
    """Join sets that share a picture or ground, so that no split can part them."""
    home = {id_: i for i, ids in enumerate(sets) for id_ in ids}
    parent = list(range(len(sets)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    rows = [folder.row(id_) for id_ in home]
    first: dict[str, str] = {}
    pairs = [(first.setdefault(row.sha256, row.id), row.id) for row in rows]
    for a, b in (*pairs, *overlaps(rows)):
        parent[max(root(home[a]), root(home[b]))] = min(root(home[a]), root(home[b]))
    joined: dict[int, list[str]] = {}
    for i, ids in enumerate(sets):
        joined.setdefault(root(i), []).extend(ids)
    return [_unit(folder, ids) for ids in joined.values()]


def _unit(folder: ChipFolder, ids: Sequence[str]) -> Unit:
    klass = folder.header.water
    rows = [folder.row(id_) for id_ in ids]
    water = sum(row.class_counts[klass] for row in rows) if klass is not None else 0
    return Unit(tuple(sorted(ids)), len(rows), float(water), float(sum(row.valid for row in rows)))


def _assign(folder: ChipFolder, units: list[Unit], seed: int, val: float, test: float, what: str) -> Split:
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"split: expected val and test shares that leave some to train on, got {val} and {test}")
    shares = {part: share for part, share in zip(PARTS, (1 - val - test, val, test), strict=True) if share > 0}
    dealt = dict(zip(shares, deal(units, list(shares.values()), seed, what), strict=True))
    how = f"by {what}, seed {seed}, {len(units)} inseparable sets"
    return Split(dealt["train"], dealt.get("val", ()), dealt.get("test", ()), how)


def _one_home(home: Mapping[str, str], value: Mapping[str, str], what: str) -> None:
    first: dict[str, str] = {}
    for id_, key in value.items():
        other = first.setdefault(key, id_)
        if home[other] != home[id_]:
            raise DataError(
                f"split: expected each {what} in one part, got {other!r} ({home[other]}) and {id_!r} ({home[id_]}) of one {what}; split again"
            )


def _near(place: tuple[str, float, float], others: Iterable[tuple[str, float, float]], gap: float) -> bool:
    return any(zone == place[0] and math.hypot(x - place[1], y - place[2]) < gap for zone, x, y in others)
