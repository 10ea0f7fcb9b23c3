"""Evaluation that resumes: sanity checks of a model, then the records that the log lacks. `run`, `evaluate` and `attack` share it."""

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
from seawall.evaluation.case import Case, fit_set_attacks
from seawall.evaluation.evaluate import evaluate_model, missing_chips
from seawall.evaluation.sanity_checks import SanityChecks
from seawall.evaluation.sanity_flags import with_sanity_flags, without_sanity_checks
from seawall.inference.predict import model_digest
from seawall.models.weights import spec_of, split_of, weights_digest
from seawall.records import Record, RecordLog
from seawall.result import Progress, StageProgress, stage_progress
from seawall.types import Batch, SegmentationModel
from seawall.version import code_version, module_digest

CHIPS_IN_MEMORY = 8
"""Chips of a batch; one batch is in memory at a time."""

WITHOUT_PIXELS = ("empty", "unlabelled")
"""Flags of chips without counted pixels, which do not concern the numbers."""

ChipFlags = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class ChipSource:
    """Chips to measure on, read when they are needed.

    Args:
        ids: The chips.
        read: Ids to batches of these chips, one after the other.
        groups: Group (event or location) of each chip.
        digest: Hash of the content of all of them.
        mixed: Ids in the order of how evenly their classes are mixed, for the sanity checks.
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
            tuple(ids), lambda some: whole_chips(folder, some, CHIPS_IN_MEMORY), {row.id: row.group for row in rows},
            _hash_texts(repr(header), content), most_mixed_chips(folder, ids, len(ids)), of_chip,
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

        return ChipSource(
            batch.chips, read, {}, _hash_texts("\x1f".join(batch.chips), content.hexdigest()), batch.chips
        )


def check_and_evaluate(
    model: nn.Module, chips: ChipSource, cases: Sequence[Case], *, log: RecordLog, recipe: Callable[[Case], str], name: str,
    seed: int, checks: SanityChecks | None, progress: Callable[[Case], StageProgress], fit: Callable[[], Iterable[Batch]] | None = None,
    show: Collection[str] = (), examples: Path | None = None,
) -> None:  # fmt: skip
    """Run the sanity checks of a model, evaluate it on chips under every case and append the records that the log lacks.

    Chips are read batch by batch for each case, so memory is bounded by a batch whatever their number.

    Args:
        model: A module with a spec, on the device to compute on.
        chips: Where to measure.
        cases: What is done to the images.
        log: Where rows go.
        recipe: Case to the recipe id of its rows; it guards what counts as done.
        name: Model name in the rows.
        seed: Seed of the attacks and of the sanity checks.
        checks: Sanity checks before the attacks are measured, kept beside the log; None runs none, and each attack gets a flag.
        progress: Case to a callback with (batches done, batches in all, note); the sanity checks have the case "sanity checks".
        fit: Gives the chips that an attack with one noise for a set is fitted to; the measured ones where None.
        show: Chips that the last case writes to `examples`.
        examples: Folder of the example files.
    """
    net, classes = cast(SegmentationModel, model), spec_of(model).classes

    def left(case: Case, ids: Sequence[str]) -> list[str]:
        return missing_chips(
            log, ids, recipe=recipe(case), name=name, classes=classes, groups=chips.groups, attacks=[case]
        )

    if checks is None:
        cases = without_sanity_checks(cases)
    elif any(case.threat is not None and left(case, chips.ids) for case in cases):
        cases = with_sanity_flags(
            net, chips.read(chips.mixed[: checks.chips]), cases, seed, checks,
            home=log.path.parent, progress=progress(Case("sanity checks")),
        )  # fmt: skip
    for number, case in enumerate(cases, 1):
        key = recipe(case)
        todo = [(flags, left(case, ids)) for flags, ids in _chips_by_flags(chips).items()]
        if any(ids for _, ids in todo):
            [case] = fit_set_attacks([case], net, fit or (lambda: chips.read(chips.ids)), seed)
        total, done = sum(-(-len(ids) // CHIPS_IN_MEMORY) for _, ids in todo), 0
        for flags, ids in todo:
            if ids:
                evaluate_model(
                    net, chips.read(ids), log=log, recipe=key, name=name, groups=chips.groups,
                    attacks=[replace(case, flags=(*case.flags, *flags))], seed=seed, examples=examples,
                    show=show if number == len(cases) else (), progress=_progress_of_total(progress(case), done, total),
                )  # fmt: skip
            done += -(-len(ids) // CHIPS_IN_MEMORY)


def case_progress(progress: Progress, cases: Sequence[Case], name: str = "") -> Callable[[Case], StageProgress]:
    """Return case to its callback: a stage per attack, and one for all corruptions, which are many and short.

    Args:
        progress: The callback of the verb.
        cases: All cases.
        name: Model name, with which the names of the stages begin.
    """
    corrupted = [(case.method, case.threat_text) for case in cases if case.corruption is not None]
    start = f"{name}: " if name else ""

    def of(case: Case) -> StageProgress:
        what = f"{case.method} {case.threat_text}".rstrip()
        if case.corruption is None:
            return stage_progress(progress, start + what)
        at = corrupted.index((case.method, case.threat_text))
        return lambda done, total, note: progress(f"{start}corruptions", at + (done >= total), len(corrupted), what)

    return of


def recipe_ids(model: nn.Module, chips: ChipSource, seed: int, checks: SanityChecks | None) -> Callable[[Case], str]:
    """Return case to a recipe id that covers all that decides its rows, where no recipe does.

    That is the model and the split of its training, the chips, the seed, the attack or the corruption with all its
    settings, the threat or the severity, the sanity checks and the code.
    """
    split, weights = split_of(model), model_digest(model)
    base = (weights, split.digest if split is not None else "", chips.digest, str(seed), code_version())

    def of(case: Case) -> str:
        checked = "" if case.attack is None else repr(checks)
        settings = [case.method, settings_text(case.attack), settings_text(case.threat), case.threat_text, checked]
        settings += [] if case.corruption is None else [settings_text(case.corruption)]
        return f"{weights[:8]}-{_hash_texts(*base, *settings, repr(case.measures), str(case.label_free))}"

    return of


def records_of_cases(
    log: RecordLog, cases: Sequence[Case], recipe: Callable[[Case], str], chips: ChipSource
) -> list[Record]:
    """Return the rows of these cases and chips under one recipe id, so that cases can be compared."""
    wanted = {(recipe(case), case.method, case.threat_text) for case in cases}
    common, held = _hash_texts(*sorted(id_ for id_, _, _ in wanted)), set(chips.ids)
    return [
        replace(row, recipe=common)
        for row in log
        if (row.recipe, row.method, row.threat) in wanted and (row.chip in held or not row.chip)
    ]


def settings_text(value: object) -> str:
    """Return a value with all its settings as text, the same in every process.

    Example:
        >>> from seawall.attacks.pgd import PGD
        >>> settings_text(PGD(steps=3)) == settings_text(PGD(steps=4))
        False
    """
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{f.name}={settings_text(getattr(value, f.name))}" for f in fields(value))
        return f"{_setting_name(type(value))}({inner})"
    if isinstance(value, nn.Module):
        return f"{_setting_name(type(value))}({weights_digest(value)})"
    if isinstance(value, Tensor):
        return f"tensor({_hash_texts(repr(value.detach().cpu().contiguous().numpy().tobytes()))}, {tuple(value.shape)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {settings_text(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(settings_text, value))}]"
    if value is None or isinstance(value, bool | int | float | str | Path):
        return repr(value)
    own = "" if callable(value) and hasattr(value, "__qualname__") else settings_text(getattr(value, "__dict__", {}))
    return f"{_setting_name(value if own == '' else type(value))}({own})"


def most_mixed_chips(chips: ChipFolder, ids: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the chips whose classes are most evenly mixed."""
    counts = {id_: chips.row(id_).class_counts for id_ in ids}
    even = {id_: 1 - max(found) / max(sum(found), 1) for id_, found in counts.items()}
    return tuple(sorted(even, key=lambda id_: (-even[id_], id_))[:count])


def _setting_name(value: object) -> str:
    """Return the name of a class or function, with a hash of its file where it is from another package."""
    module = str(getattr(value, "__module__", ""))
    outside = "" if module.split(".")[0] in ("seawall", "builtins") else f"@{module_digest(module)}"
    return f"{module}.{getattr(value, '__qualname__', '')}{outside}"


def _chips_by_flags(chips: ChipSource) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for id_ in chips.ids:
        found.setdefault(chips.flags(id_), []).append(id_)
    return found


def _progress_of_total(progress: StageProgress, before: int, total: int) -> StageProgress:
    """Return a callback that replaces the unknown number of batches of a stream by its estimate."""
    return lambda done, _, note: progress(before + done, max(before + done, total), note)


def _hash_texts(*texts: str) -> str:
    return hashlib.blake2b("\x1e".join(texts).encode(), digest_size=8).hexdigest()
