"""Chips of several sources: the items of each source are paired by id, made apart, and stacked along the band axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seawall.bands import channels_of_sources, qualified_band, short_band, source_of
from seawall.data.chip_format import IGNORE
from seawall.data.index import ChipHeader
from seawall.data.preparation import MAX_GSD_RATIO, EmptyChipError, PreparedChip, prepare_chip
from seawall.data.raw_chips import RejectedItem, SourceItem
from seawall.errors import DataError, UsageError
from seawall.types import fill_of, joint_unit, units_of

Unpaired = Literal["fail", "keep"]
"""What becomes of a chip that lacks the image of a source: it fails, or is kept without that image."""

MISSING_SOURCE = "missing-"
"""What the flag of a chip without the image of a source begins with; the name of the source follows."""


@dataclass(frozen=True)
class ChipItem:
    """One chip to be made.

    Args:
        id: Stable id.
        group: Event or location.
        shape: Rows and columns.
        source: Names of what it is made from, for people.
        parts: The item of each source; None where the chip lacks that image.
    """

    id: str
    group: str
    shape: tuple[int, int]
    source: str
    parts: tuple[SourceItem | None, ...]


def single_items(items: Sequence[SourceItem]) -> list[ChipItem]:
    """Return the chips of one source."""
    return [ChipItem(item.id, item.group, item.shape, item.source, (item,)) for item in items]


def pair_items(
    names: Sequence[str],
    found: Sequence[Sequence[SourceItem]],
    lost: Sequence[Sequence[RejectedItem]],
    unpaired: Unpaired,
) -> tuple[list[ChipItem], list[RejectedItem]]:
    """Return the chips of several sources, and those that cannot be made.

    Args:
        names: Names of the sources.
        found: Items of each.
        lost: Items of each that cannot become a chip.
        unpaired: What becomes of chips that lack an image.
    """
    by_id = [{item.id: item for item in items} for items in found]
    broken = {bad.id: bad for some in lost for bad in some if not bad.absent and not bad.skip}
    made: list[ChipItem] = []
    rejected = list(broken.values())
    for id_ in dict.fromkeys(item.id for items in found for item in items):
        parts = tuple(items.get(id_) for items in by_id)
        there = [part for part in parts if part is not None]
        missing = [name for name, part in zip(names, parts, strict=True) if part is None]
        if id_ in broken:
            continue
        if missing and unpaired == "fail":
            reason = f"expected an image of each of {', '.join(names)}, got none of {', '.join(missing)}; add it, or keep such chips without it (unpaired keep)"
            rejected.append(RejectedItem(id_, reason))
        elif len({(part.group, part.shape) for part in there}) > 1:
            sizes = ", ".join(f"{part.group} {part.shape[0]}x{part.shape[1]}" for part in there)
            rejected.append(RejectedItem(id_, f"expected images of one group and size, got {sizes}; align them"))
        else:
            texts = " + ".join(dict.fromkeys(part.source for part in there))
            made.append(ChipItem(id_, there[0].group, there[0].shape, texts, parts))
    return made, rejected


def bands_of_source(bands: Sequence[str], name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the bands wanted of a source, without its name; none for all that its chips have.

    Args:
        bands: Bands wanted of all sources, such as ("s1", "s2.B03"); empty for all. A source alone stands for all of its bands.
        name: The source, "" where there is one without a name.
        names: All sources.

    Raises:
        UsageError: A name is of no source, or no band of the source is wanted.

    Example:
        >>> bands_of_source(("s1", "s2.B03", "s2.B08"), "s2", ("s1", "s2"))
        ('B03', 'B08')
    """
    if not name or not bands:
        return tuple(bands)
    for band in bands:
        if band not in names and source_of(band) not in names:
            raise UsageError(
                f"bands: expected bands with their source, such as {names[0]}.<band>, or a source for all of it, got {band!r}; the sources "
                f"are {', '.join(names)}"
            )
    if name in bands:
        return ()
    if not (own := tuple(short_band(band) for band in bands if source_of(band) == name)):
        raise UsageError(
            f"bands: expected bands of each source, got none of {name}; name some, or leave the source out"
        )
    return own


def joint_header(names: Sequence[str], headers: Sequence[ChipHeader]) -> ChipHeader:
    """Return the header of chips of several sources: bands with their source, a unit per band where units differ.

    Raises:
        DataError: The sources have different pixel sizes.
    """
    sizes = [header.gsd_m for header in headers]
    if max(sizes) >= MAX_GSD_RATIO * min(sizes):
        raise DataError(
            f"gsd_m: expected sources of one resolution, got {min(sizes):g} to {max(sizes):g} m; resample one of them first"
        )
    bands = [qualified_band(name, band) for name, own in zip(names, headers, strict=True) for band in own.bands]
    units = [unit for own in headers for unit in units_of(own.unit, len(own.bands))]
    return ChipHeader(
        tuple(bands), joint_unit(units), headers[0].classes, sizes[0], _joined(own.sensor for own in headers),
        _joined((own.licence for own in headers), "; "),
    )  # fmt: skip


def _joined(texts: Iterable[str], sign: str = " + ") -> str:
    return sign.join(dict.fromkeys(text for text in texts if text))


def prepare_joint(
    item: ChipItem,
    header: ChipHeader,
    headers: Sequence[ChipHeader],
    *,
    label_map: Mapping[int, int] | None = None,
    keep_empty: bool = False,
) -> PreparedChip:
    """Read the images of one chip, convert each to the header of its source, and stack them.

    Its label counts where that of any source does. A source without an image, or without a seen pixel, is unseen all over.

    Args:
        item: The chip.
        header: Header of all sources.
        headers: Header of each.
        label_map: Class value of each raw label value.
        keep_empty: Keep a chip that no source sees.

    Raises:
        DataError: An image does not fit the header of its source, or the images are not on one grid.
        ImageryError: A file cannot be read, or its unit cannot be detected.
        EmptyChipError: No pixel of any source is seen.
    """
    sources = channels_of_sources(header.bands)
    image = np.empty((len(header.bands), *item.shape), np.float32)
    image[...] = np.array(fill_of(header.unit, len(header.bands)), np.float32)[:, None, None]
    seen = np.zeros(image.shape, np.bool_)
    made: dict[str, PreparedChip] = {}
    for (name, channels), own, part in zip(sources.items(), headers, item.parts, strict=True):
        if part is not None:
            made[name] = chip = prepare_chip(part, own, label_map=label_map, keep_empty=True)
            image[list(channels)], seen[list(channels)] = chip.image, chip.seen
    _check_one_grid(made)
    there = {name: chip for name, chip in made.items() if chip.seen.any()}
    if not there and not keep_empty:
        raise EmptyChipError(f"{item.source}: expected seen pixels, got none in any image; nothing to do")
    label = _joint_label(made)
    gains = {chip.gain for chip in there.values()}
    first = next(iter(there.values() or made.values()))
    found = {
        "not-physical": not header.physical,
        "empty": not there,
        "unlabelled": not ((label != IGNORE) & seen.any(0)).any(),
        **{f"{MISSING_SOURCE}{name}": name not in there for name in sources},
        **{flag: True for chip in there.values() for flag in chip.flags if flag not in ("empty", "unlabelled")},
    }
    # the first notes say of each source how its numbers became physical
    scales = [f"{name}: {made[name].notes[0] if name in made else 'no image'}" for name in sources]
    notes = (*scales, *(f"{name}: {note}" for name, chip in made.items() for note in chip.notes[1:]))
    flags = tuple(flag for flag, on in found.items() if on)
    gain = gains.pop() if len(gains) == 1 else None
    return PreparedChip(image, seen, label, first.grid, gain, first.scale, notes, flags)


def _check_one_grid(made: Mapping[str, PreparedChip]) -> None:
    (first, chip), *others = made.items()
    for name, other in others:
        here = chip.grid.transform is not None and other.grid.transform is not None
        if gap := chip.grid.mismatch(other.grid) if here else "":
            raise DataError(
                f"{name}: expected the grid of {first}, got another one ({gap}); align the images, nothing is resampled here"
            )


def _joint_label(made: Mapping[str, PreparedChip]) -> NDArray[np.uint8]:
    first, *others = (chip.label for chip in made.values())
    label = first.copy()
    for other in others:
        if bool(((label != other) & (label != IGNORE) & (other != IGNORE)).any()):
            raise DataError("label: expected one label for all sources, got two that differ; name one label file")
        label = np.where(label == IGNORE, other, label)
    return label
