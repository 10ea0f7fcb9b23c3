"""Which chips of a folder are measured, and which of them were in the model's training or validation part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seawall.data.chips import ChipFolder
from seawall.data.splits import labelled_ids, recorded_parts, split_chips
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.split_record import SPLIT_PARTS, SplitRecord

MEASURED_PARTS = ("auto", "all", *SPLIT_PARTS)
SEEN_IN_TRAINING = "chips-seen-in-training"
"""Flag of every number over a chip that the model learned from or was chosen by."""

SEEN_IN_CALIBRATION = "chips-seen-in-calibration"
"""Flag of every number over a chip of a scene that the predictor was calibrated on."""


@dataclass(frozen=True)
class Selection:
    """Chips to measure.

    Args:
        ids: The chips.
        seen: Those of them that the model learned from or was chosen by.
        part: Which part they are, in words.
        split: Which split says so, in words.
    """

    ids: tuple[str, ...]
    seen: frozenset[str]
    part: str
    split: str

    def facts(self) -> dict[str, str | int]:
        """Return what a verb prints about them."""
        return {"part": self.part, "chips": len(self.ids), "split": self.split}

    def flags(self, chip: str) -> tuple[str, ...]:
        """Return the flags of a chip's numbers."""
        return (SEEN_IN_TRAINING,) if chip in self.seen else ()


def check_part(part: str, known: Sequence[str] = MEASURED_PARTS) -> None:
    """Check the name of a part.

    Raises:
        UsageError: It is unknown; the message has the known ones.
    """
    if part not in known:
        raise UsageError(f"part: unknown {part!r}; {did_you_mean(part, known)}")


def select_chips(folder: ChipFolder, record: SplitRecord | None, part: str) -> Selection:
    """Return the chips of a part, by the split that the model was trained with.

    Args:
        folder: The chips; they are found again by image content, and else by group.
        record: The split of the model's training; None where the model does not say it.
        part: "train", "val" or "test" of that split; "all" for every chip; "auto" for every labelled chip that the
            model neither learned from nor was chosen by, or for all where it knows none of them.

    Raises:
        UsageError: There is no such part.
        DataError: No chip of the folder is in it.
    """
    check_part(part)
    if record is None:
        return _select_unrecorded(folder, part)
    parts = recorded_parts(folder, record)
    learned = frozenset(id_ for name in record.learned_parts for id_ in parts[name])
    split = _split_text(folder, record, parts)
    if part == "all" or (part == "auto" and not learned):
        return Selection(folder.ids, learned, "all", split)
    held_out = tuple(id_ for id_ in labelled_ids(folder) if id_ not in learned)
    chosen = held_out if part == "auto" else parts[part]
    if not chosen:
        hint = "--part all measures them, with a flag" if learned else "--part all measures the folder"
        raise DataError(f"{folder.root}: expected chips of part {part!r}, got none; the split is {split}; {hint}")
    name = "held out: every labelled chip that the weights neither learned from nor were chosen by"
    return Selection(chosen, learned.intersection(chosen), name if part == "auto" else part, split)


def _select_unrecorded(folder: ChipFolder, part: str) -> Selection:
    unknown = "the weights do not say what they learned from, so they may have learned from these chips"
    if part in ("auto", "all"):
        return Selection(folder.ids, frozenset(), "all", unknown)
    split = split_chips(folder)
    return Selection(split.parts()[part], frozenset(), part, f"{split.how}; {unknown}")


def _split_text(folder: ChipFolder, record: SplitRecord, parts: Mapping[str, Sequence[str]]) -> str:
    how = f"of the weights ({record.settings or 'made by hand'})"
    known = [folder.row(id_) for name in SPLIT_PARTS for id_ in parts[name]]
    if not known:
        return f"{how}; it shares no image and no group with these chips"
    val = "chosen by" if record.selected else "validated on"
    counts = f"{len(parts['train'])} chips learned from, {len(parts['val'])} {val}, {len(parts['test'])} held out"
    new = f", {len(parts[''])} new" if parts[""] else ""
    by_group = sum(not record.has_image(row.sha256) for row in known)
    return f"{how}; {counts}{new}" + (f"; {by_group} of them known by their group alone" if by_group else "")
