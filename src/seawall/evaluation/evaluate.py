"""Evaluation of a model on chips under cases, as records; what the log holds already is not measured again."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from seawall.attacks.cost import count_passes
from seawall.attacks.minimum_norm import MinimumNormResult
from seawall.class_names import body_classes
from seawall.errors import DataError, ModelError
from seawall.evaluation.case import CLEAN_CASE, Case, hidden_class
from seawall.evaluation.examples import write_example
from seawall.evaluation.rows import MEASURE_RECORDS, BatchCache, EvaluationSettings, hiding_records, hiding_values
from seawall.metrics.counts import confusion, count_records
from seawall.modules import checked_forward, device_of, eval_mode
from seawall.records import Record, RecordLog
from seawall.result import StageProgress
from seawall.types import Batch, SegmentationModel

NON_FINITE = "non-finite logits"


def evaluate_model(
    model: SegmentationModel,
    batches: Iterable[Batch],
    *,
    log: RecordLog,
    recipe: str,
    name: str,
    groups: Mapping[str, str] | None = None,
    attacks: Sequence[Case] = (CLEAN_CASE,),
    seed: int = 0,
    device: torch.device | str | None = None,
    bins: int = 15,
    bodies: tuple[str, ...] | None = None,
    pixel_area_m2: float | Mapping[str, float] | None = None,
    show: Collection[str] = (),
    examples: Path | None = None,
    progress: StageProgress | None = None,
) -> list[Record]:
    """Measure a model on every chip under every case and append the rows to the log.

    A chip's rows are written together as soon as they are there; a run that was killed goes on at the next missing
    (chip, case). The model is in eval mode meanwhile and is left as it was found, also after an exception. A chip
    without valid pixels has counts of zero, and figures over it are undefined.

    Args:
        model: Data units in, logits (B, K, H, W) out.
        batches: Chips; each chip once. Batch size and order mean nothing.
        log: Where rows go and what is done already.
        recipe: Recipe id.
        name: Model name in the rows.
        groups: Group (event or location) of each chip; a chip without one is its own.
        attacks: The cases, clean included where it is wanted.
        seed: Seed of the attacks.
        device: Where to compute; the model's own where None.
        bins: Confidence bins of the calibration.
        bodies: Classes whose connected bodies are sorted by size; water, or all classes but the first.
        pixel_area_m2: Area of a pixel, for all chips or chip by chip; the square of the model's gsd where None.
        show: Chips to write to `examples`, under every case but the clean one.
        examples: Folder of the example files.
        progress: Called with (done, total, note) after each case of a batch; total is 0 where it is not known.

    Returns:
        The new rows.

    Raises:
        ModelError: The logits do not have the shape of the labels and one channel per class.
        DataError: A valid pixel has a label outside the classes.
    """
    classes = model.spec.classes
    known = body_classes(classes)
    chosen = known if bodies is None else bodies
    for klass in chosen:
        model.spec.klass(klass)
    settings = EvaluationSettings(recipe, name, groups or {}, seed, bins, chosen, pixel_area_m2, show, examples)
    new = [row for case in attacks if (row := _sanity_cost_record(settings, case)) and row.key not in log]
    log.append(new)
    total = len(batches) * len(attacks) if isinstance(batches, Sequence) else 0
    done = 0
    with _eval_mode(model):
        for batch in batches:
            cache = BatchCache(batch.to(device or device_of(model) or batch.image.device), settings)
            for case in attacks:
                todo = [i for i, chip in enumerate(batch.chips) if not settings.done(log, case, chip, len(classes))]
                if todo:
                    rows = list(_case_records(model, cache, todo, case))
                    log.append(rows)
                    new += rows
                done += 1
                if progress:
                    progress(done, total, f"{case.method} {case.threat_text}".rstrip())
    return new


def _sanity_cost_record(settings: EvaluationSettings, case: Case) -> Record | None:
    """Return the record, of no chip, with the cost of the sanity checks behind the flags of a case."""
    if case.check_cost is None:
        return None
    base = replace(settings.row(case, ""), group="", chip="")
    return base.measured(
        "sanity_checks.passes", case.check_cost.passes, case.check_cost.chips, seconds=case.check_cost.seconds
    )


def missing_chips(
    log: RecordLog, chips: Iterable[str], *, recipe: str, name: str, classes: Sequence[str],
    groups: Mapping[str, str] | None = None, attacks: Sequence[Case] = (CLEAN_CASE,), bodies: tuple[str, ...] | None = None,
) -> list[str]:  # fmt: skip
    """Return the chips that some case has not measured yet, so that no others need be read."""
    known = body_classes(classes)
    settings = EvaluationSettings(recipe, name, groups or {}, bodies=known if bodies is None else bodies)
    return [c for c in chips if not all(settings.done(log, case, c, len(classes)) for case in attacks)]


def write_examples(
    model: SegmentationModel,
    batches: Iterable[Batch],
    case: Case,
    folder: Path,
    *,
    name: str,
    chips: Collection[str] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    restricted: Case | None = None,
) -> None:
    """Write what a case does to chips, clean beside attacked or corrupted, without measuring it.

    Args:
        model: Data units in, logits (B, K, H, W) out.
        batches: Chips.
        case: The attack or corruption; the same seed gives the images that `evaluate` measured.
        folder: Where the files go.
        name: Model name in the run.
        chips: Which chips; all where None.
        seed: Seed of the case.
        device: Where to compute; the model's own where None.
        restricted: The same attack on the pixels of the class alone, shown beside it.
    """
    with _eval_mode(model):
        for batch in batches:
            chosen = [i for i, chip in enumerate(batch.chips) if chips is None or chip in chips]
            if chosen:
                part = batch.select(chosen).to(device or device_of(model) or batch.image.device)
                after = case.corrupted(part, seed)
                image = case.image(model, after, seed)
                pred = _finite_logits(model, image, after)[0].argmax(1)
                beside = None if restricted is None else restricted.image(model, part, seed)
                _write_case_examples(
                    model,
                    part,
                    replace(after, image=image),
                    pred,
                    case,
                    EvaluationSettings("", name, show=part.chips, examples=folder),
                    beside,
                )


def _eval_mode(model: SegmentationModel) -> AbstractContextManager[None]:
    return eval_mode(model) if isinstance(model, nn.Module) else nullcontext()


def _case_records(model: SegmentationModel, cache: BatchCache, todo: list[int], case: Case) -> Iterator[Record]:
    """Yield the rows of the chosen chips of a batch under one case."""
    settings = cache.settings
    clean = cache.batch.select(todo)
    start = time.monotonic()
    batch = case.corrupted(clean, settings.seed)
    if batch is not clean:  # labels may have moved, and with them the objects in them
        cache = BatchCache(batch, settings)
    with count_passes(model) as passes:
        image, solved = case.images(model, batch, settings.seed)
    spent = passes.forward / len(batch)
    logits, finite = _finite_logits(model, image, batch)
    pred = logits.argmax(1)
    seconds = (time.monotonic() - start) / len(batch)
    counts = _confusion_of_chips(pred, batch, len(model.spec.classes))
    parts = {
        name: MEASURE_RECORDS[name](model, cache, batch, logits, pred) for name in case.applicable(logits.shape[1])
    }
    hidden = hidden_class(case.attack) if "hiding" in parts else ""
    hiding = hiding_values(model, batch, pred, hidden) if hidden else []
    away = _distances(image, batch) if case.attack is not None else None
    for i, chip in enumerate(batch.chips):
        flags = () if finite[i] else (NON_FINITE,)
        base = settings.row(case, chip, flags, seconds)
        if away is not None:
            seen = int(batch.seen[i].sum())
            for norm, value in zip(("linf", "l2"), away[i], strict=True):
                yield base.measured(f"distance.{norm}", value if seen else None, seen)
            yield base.measured("passes", spent, 1)
            if solved is not None:
                yield from _free_norm_records(base, solved, batch, i)
        for part in parts.values():
            yield from part(i, base)
        if hiding:
            yield from hiding_records(base, hiding[i])
        if case.corruption is not None:
            yield base.measured("pixels.clean", float(clean.valid[i].sum()), int(clean.seen[i].sum()))
        if "counts" in case.measures:
            yield from count_records(base, counts[i], model.spec.classes)
    _write_case_examples(model, clean, replace(batch, image=image), pred, case, settings)


def _finite_logits(model: SegmentationModel, image: Tensor, batch: Batch) -> tuple[Tensor, list[bool]]:
    """Return finite logits, and for each chip whether they were finite before.

    NaN becomes the lowest logit, and the chip carries a flag.
    """
    with torch.no_grad():
        logits = checked_forward(model, image)
    wanted = (len(batch), len(model.spec.classes), *batch.label.shape[1:])
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"evaluate: expected logits of shape {wanted}, got {got}; wrap the module with adapt()")
    finite = torch.isfinite(logits)
    bad = (~finite.all(1) & batch.valid).flatten(1).any(1)
    return torch.nan_to_num(logits.float(), nan=-1e4, posinf=1e4, neginf=-1e4), [not b for b in bad.tolist()]


def _confusion_of_chips(pred: Tensor, batch: Batch, classes: int) -> Tensor:
    try:
        return confusion(pred, batch.label, batch.valid, classes).cpu()
    except DataError as bad:
        raise DataError(f"{', '.join(batch.chips)}: {bad}") from bad


def _free_norm_records(base: Record, solved: MinimumNormResult, batch: Batch, i: int) -> Iterator[Record]:
    """Yield the norms of the smallest noise that is a success, undefined where none was found."""
    seen, reached = int(batch.seen[i].sum()), bool(solved.reached[i])
    change = (solved.free[i] - batch.image[i]).flatten().double()
    for norm, size in (("linf", change.abs().amax()), ("l2", change.norm())):
        yield base.measured(f"distance.free.{norm}", float(size) if reached else None, seen)
    yield base.measured("distance.free.reached", float(reached), 1)


def _distances(image: Tensor, batch: Batch) -> list[tuple[float, float]]:
    """Return the linf and l2 distance of each image from the clean one, in data units."""
    change = (image - batch.image).flatten(1).double()
    far, long = change.abs().amax(1), change.norm(dim=1)
    return list(zip(far.tolist(), long.tolist(), strict=True))


def _write_case_examples(
    model: SegmentationModel, batch: Batch, made: Batch, pred: Tensor, case: Case, settings: EvaluationSettings, beside: Tensor | None = None
) -> None:  # fmt: skip
    """Write the requested examples, one per chip and case."""
    chosen = [i for i, chip in enumerate(batch.chips) if chip in settings.show]
    if settings.examples is None or (case.attack is None and case.corruption is None) or not chosen:
        return
    corrupted = case.corruption is not None
    facts = case.corruption_facts
    part = batch.select(chosen)
    logits = _finite_logits(model, part.image, part)[0]
    target = case.target(model.spec, part, logits)
    other = None if beside is None else beside[chosen]
    after = None if other is None else _finite_logits(model, other, part)[0].argmax(1)
    for j, i in enumerate(chosen):
        chip = batch.chips[i]
        write_example(
            settings.examples,
            chip=chip,
            method=case.method,
            threat=case.threat_text,
            model=settings.name,
            clean=part.image[j].cpu().numpy(),
            attacked=made.image[i].cpu().numpy(),
            label=part.label[j].cpu().numpy(),
            pred_clean=logits[j].argmax(0).cpu().numpy(),
            pred_attacked=pred[i].cpu().numpy(),
            seen=part.seen[j].cpu().numpy(),
            valid=part.valid[j].cpu().numpy(),
            bands=model.spec.bands,
            target=None if target is None else target[j].cpu().numpy(),
            restricted=None if other is None else other[j].cpu().numpy(),
            pred_restricted=None if after is None else after[j].cpu().numpy(),
            label_after=made.label[i].cpu().numpy() if corrupted else None,
            valid_after=made.valid[i].cpu().numpy() if corrupted else None,
            extra={name: value for name, value in facts._asdict().items() if value is not None} if corrupted else None,
            name="@".join(word for word in (chip, settings.name, case.method, case.threat_text) if word),
        )
