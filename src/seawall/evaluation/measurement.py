"""Measuring one model: interrogate it, look what is missing, evaluate that. `run`, `evaluate` and `attack` share it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from seawall.data.chips import ChipFolder
from seawall.data.index import dump_header
from seawall.data.loader import whole_chips
from seawall.evaluation.case import Case, fitted
from seawall.evaluation.evaluate import evaluate, missing
from seawall.evaluation.sanity_checks import Interrogation, interrogated, not_interrogated
from seawall.inference.predict import model_digest
from seawall.models.weights import spec_of, split_of, weights_digest
from seawall.records import Record, RecordLog
from seawall.result import StageProgress
from seawall.types import Batch, SegmentationModel
from seawall.version import code_version, module_digest

BATCH = 8
"""Chips in memory at a time; the batch before goes when the next is there."""

WITHOUT_PIXELS = ("empty", "unlabelled")
"""Flags of chips that no number counts, so that they say nothing against one."""

ChipFlags = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class ChipSource:
    """Chips to measure on, read when they are needed.

    Args:
        ids: The chips.
        read: Ids to batches of these chips, one after the other.
        groups: Group (event or location) of each chip.
        digest: Hash of the content of all of them.
        mixed: Ids in the order of how evenly their classes are mixed, for questions to a few chips.
        flags: Flags of a chip's numbers.
    """

    ids: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterable[Batch]]
    groups: Mapping[str, str]
    digest: str
    mixed: Sequence[str]
    flags: ChipFlags = lambda chip: ()

    @staticmethod
    def of_folder(folder: ChipFolder, ids: Sequence[str], flags: ChipFlags = lambda chip: ()) -> ChipSource:
        """Return chips of a folder; their content is known by the checksums of the index, and their flags go along.

        Args:
            folder: The chips.
            ids: Which of them.
            flags: More flags of a chip's numbers.
        """
        rows = [folder.row(id_) for id_ in ids]

        def of_chip(chip: str) -> tuple[str, ...]:
            return (*(flag for flag in folder.row(chip).flags if flag not in WITHOUT_PIXELS), *flags(chip))

        header = {**dump_header(folder.header), "split": None}  # how labels were split changes no measurement
        content = "\x1f".join(f"{row.id} {row.group} {row.sha256} {row.label_sha256}" for row in rows)
        return ChipSource(
            tuple(ids), lambda some: whole_chips(folder, some, BATCH), {row.id: row.group for row in rows},
            _hash(repr(header), content), mixed_chips(folder, ids, len(ids)), of_chip,
        )  # fmt: skip

    @staticmethod
    def of_batch(batch: Batch) -> ChipSource:
        """Return chips that are in memory already."""
        content = hashlib.blake2b(digest_size=8)
        for tensor in (batch.image, batch.label, batch.seen, batch.valid):
            content.update(tensor.detach().cpu().contiguous().numpy().tobytes())

        def read(some: Sequence[str]) -> Iterator[Batch]:
            wanted = set(some)
            yield batch.select([i for i, chip in enumerate(batch.chips) if chip in wanted])

        return ChipSource(batch.chips, read, {}, _hash("\x1f".join(batch.chips), content.hexdigest()), batch.chips)


def measure_model(
    model: nn.Module, chips: ChipSource, cases: Sequence[Case], *, log: RecordLog, recipe: Callable[[Case], str], name: str,
    seed: int, ask: Interrogation | None, say: Callable[[Case], StageProgress], fit: Callable[[], Iterable[Batch]] | None = None,
    show: Collection[str] = (), examples: Path | None = None,
) -> None:  # fmt: skip
    """Measure a model on chips under every case and append the rows to a log; what is there is not done again.

    Chips are read batch by batch for each case, so memory is bounded by a batch whatever their number.

    Args:
        model: A module with a spec, on the device to compute on.
        chips: Where to measure.
        cases: What is done to the images.
        log: Where rows go.
        recipe: Case to the recipe id of its rows; it guards what counts as done.
        name: Model name in the rows.
        seed: Seed of attacks and of the interrogation.
        ask: Questions to the model before its attacks are measured, kept beside the log; None asks none, and a flag says so.
        say: Case to a callback with (batches done, batches in all, note); the interrogation has a case of that name.
        fit: Gives the chips that an attack with one noise for a set is fitted to; the measured ones where None.
        show: Chips that the last case writes to `examples`.
        examples: Folder of the example files.
    """
    net, classes = cast(SegmentationModel, model), spec_of(model).classes

    def left(case: Case, ids: Sequence[str]) -> list[str]:
        return missing(log, ids, recipe=recipe(case), name=name, classes=classes, groups=chips.groups, attacks=[case])

    if ask is None:
        cases = not_interrogated(cases)
    elif any(case.threat is not None and left(case, chips.ids) for case in cases):
        cases = interrogated(
            net, chips.read(chips.mixed[: ask.chips]), cases, seed, ask,
            home=log.path.parent, progress=say(Case("interrogation")),
        )  # fmt: skip
    for number, case in enumerate(cases, 1):
        key = recipe(case)
        todo = [(flags, left(case, ids)) for flags, ids in _by_flags(chips).items()]
        if any(ids for _, ids in todo):
            [case] = fitted([case], net, fit or (lambda: chips.read(chips.ids)), seed)
        total, done = sum(-(-len(ids) // BATCH) for _, ids in todo), 0
        for flags, ids in todo:
            if ids:
                evaluate(
                    net, chips.read(ids), log=log, recipe=key, name=name, groups=chips.groups,
                    attacks=[replace(case, flags=(*case.flags, *flags))], seed=seed, examples=examples,
                    show=show if number == len(cases) else (), progress=_of_total(say(case), done, total),
                )  # fmt: skip
            done += -(-len(ids) // BATCH)


def recipe_ids(model: nn.Module, chips: ChipSource, seed: int, ask: Interrogation | None) -> Callable[[Case], str]:
    """Return case to a recipe id that covers all that decides its rows, where no recipe does.

    That is the model and the split of its training, the chips, the seed, the attack with all its settings, the threat,
    the interrogation and the code.
    """
    split, weights = split_of(model), model_digest(model)
    base = (weights, split.digest if split is not None else "", chips.digest, str(seed), code_version())

    def of(case: Case) -> str:
        asked = "" if case.act is None else repr(ask)
        settings = (case.method, settings_text(case.act), settings_text(case.threat), case.spoken, asked)
        return f"{weights[:8]}-{_hash(*base, *settings, repr(case.measures), str(case.label_free))}"

    return of


def rows_of(log: RecordLog, cases: Sequence[Case], recipe: Callable[[Case], str], chips: ChipSource) -> list[Record]:
    """Return the rows of these cases and chips under one recipe id, so that cases can be held against each other."""
    wanted = {(recipe(case), case.method, case.spoken) for case in cases}
    common, held = _hash(*sorted(id_ for id_, _, _ in wanted)), set(chips.ids)
    return [
        replace(row, recipe=common)
        for row in log
        if (row.recipe, row.method, row.threat) in wanted and (row.chip in held or not row.chip)
    ]


def settings_text(value: object) -> str:
    """Return a value with all its settings as text, the same in every process.

    Example:
        >>> from seawall.attacks.gradient import PGD
        >>> settings_text(PGD(steps=3)) == settings_text(PGD(steps=4))
        False
    """
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{f.name}={settings_text(getattr(value, f.name))}" for f in fields(value))
        return f"{_name(type(value))}({inner})"
    if isinstance(value, nn.Module):
        return f"{_name(type(value))}({weights_digest(value)})"
    if isinstance(value, Tensor):
        return f"tensor({_hash(repr(value.detach().cpu().contiguous().numpy().tobytes()))}, {tuple(value.shape)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {settings_text(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(settings_text, value))}]"
    if value is None or isinstance(value, bool | int | float | str | Path):
        return repr(value)
    own = "" if callable(value) and hasattr(value, "__qualname__") else settings_text(getattr(value, "__dict__", {}))
    return f"{_name(value if own == '' else type(value))}({own})"


def mixed_chips(chips: ChipFolder, ids: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the chips whose classes are most evenly mixed: pictures of nothing but land show nothing."""
    counts = {id_: chips.row(id_).class_counts for id_ in ids}
    even = {id_: 1 - max(found) / max(sum(found), 1) for id_, found in counts.items()}
    return tuple(sorted(even, key=lambda id_: (-even[id_], id_))[:count])


def _name(value: object) -> str:
    """Name a class or function; one of another package with a hash of its file, because its version is not ours."""
    module = str(getattr(value, "__module__", ""))
    outside = "" if module.split(".")[0] in ("seawall", "builtins") else f"@{module_digest(module)}"
    return f"{module}.{getattr(value, '__qualname__', '')}{outside}"


def _by_flags(chips: ChipSource) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for id_ in chips.ids:
        found.setdefault(chips.flags(id_), []).append(id_)
    return found


def _of_total(say: StageProgress, before: int, total: int) -> StageProgress:
    """Tell how many batches there will be, which a stream of them cannot; chips of other sizes make a few more."""
    return lambda done, _, note: say(before + done, max(before + done, total), note)


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\x1e".join(texts).encode(), digest_size=8).hexdigest()
