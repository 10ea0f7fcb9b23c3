"""The page's first words: what a reader who stops after one paragraph should know, every number with its record."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.report.damage import families
from seawall.report.elements import Sentence
from seawall.report.formatting import area, many, percent, ratio
from seawall.report.record_index import CLEAN, Book, Cell, Corrupted, Setup
from seawall.report.robustness import worst_cell
from seawall.report.run_reader import Run, Scene
from seawall.report.scenes import against_truth, shifted, value


@dataclass(frozen=True)
class Tile:
    """A key number: its name, the number, what it is set against."""

    name: str
    cell: Cell
    under: str


def main_model(run: Run, book: Book) -> str:
    """Return the model that the page is about: the recipe's network, else the first trained one, else the first."""
    plain = [m for m in book.models if m not in book.noises] or list(book.models)
    wanted = run.recipe.model.name if run.recipe else ""
    trained = [m for m in plain if m in run.trained]
    return next((m for m in (wanted, *trained, *plain) if m in plain), "")


def baseline(run: Run, book: Book) -> tuple[str, Cell] | None:
    """Return the best baseline that was not trained here, by pooled IoU."""
    mine = main_model(run, book)
    known = [
        (value, m)
        for m in book.models
        if m != mine and m not in run.trained and m not in book.noises
        and (value := book.value((m, *CLEAN), "iou.pooled", book.klass)) is not None
    ]  # fmt: skip
    return (max(known)[1], book.cell((max(known)[1], *CLEAN), "iou.pooled")) if known else None


def summary(run: Run, book: Book) -> tuple[Sentence, ...]:
    """Return the opening sentences."""
    model = main_model(run, book)
    if not model:
        return (("This run has not measured anything yet.",),)
    sentences = [*_accuracy(run, book, model), *_scene(run), *_attack(book, model), *_labels(book, model)]
    return tuple(sentences) or (("This run has not measured anything yet.",),)


def _accuracy(run: Run, book: Book, model: str) -> list[Sentence]:
    setup: Setup = (model, *CLEAN)
    iou = book.cell(setup, "iou.pooled")
    if not iou.key:
        return []
    recall, precision = (book.cell(setup, m, say=percent) for m in ("recall.pooled", "precision.pooled"))
    where = f"On {many(len(book.groups), 'place')} never seen in training" if book.groups else "On the test part"
    if book.value(setup, "iou.pooled", book.klass) is None:
        return [(f"{where}, neither labels nor predictions hold any {book.klass}, so there is no score to give.",)]
    parts: list[str | Cell] = [
        f"{where}, the {book.said(model)} finds ",
        recall,
        f" of the {book.klass} area it should, and ",
        precision,
        f" of what it marks as {book.klass} is {book.klass}: a pooled IoU of ",
        iou,
    ]
    if iou.low:
        parts.append(f" (95 % interval {iou.low} to {iou.high})")
    if other := baseline(run, book):
        parts += ["; the best simple rule, ", book.said(other[0]), ", reaches ", other[1]]
    return [(*parts, ".")]


def _attack(book: Book, model: str) -> list[Sentence]:
    held = [a for a in families(book) if a.model == model]
    if not held:
        return []
    size, cell = worst_cell(held[0])
    everywhere = "each band of each pixel" if size.norm == "linf" and not (size.region or size.limits) else "the image"
    return [(f"An adversary who may change {everywhere} by up to {size.spoken} takes it down to ", cell, ".")]


def _most(book: Book, model: str) -> Corrupted | None:
    """Return the network of this kind that learned from the most wrong labels."""
    held = [c for c in book.corrupted if c.base == model and c.reached is not None and not c.objective]
    return max(held, key=lambda c: c.reached or 0.0) if held else None


def _labels(book: Book, model: str) -> list[Sentence]:
    most = _most(book, model)
    if most is None:
        return []
    cell = book.cell((most.model, *CLEAN), "iou.pooled")
    words = f"Trained on masks of which {most.noise} changed {most.changed} of the pixels ({most.rate} asked for), it reaches "
    return [(words, cell, ".")]


def _scene(run: Run) -> list[Sentence]:
    for name, scene in run.scenes.items():
        if scene.result.area_km2 is None:
            continue
        mapped = value(scene, name, "area_km2", area(scene.result.area_km2))
        parts: list[str | Cell] = [f"Over the whole {_called(run)} it maps ", mapped, f" of {scene.result.klass}"]
        if scene.truth is not None:
            parts += against_truth(scene, name)
        if scene.result.unsure_share is not None:
            unsure = value(scene, name, "unsure_share", percent(scene.result.unsure_share, 1))
            parts += [", and is unsure of ", unsure, " of the pixels"]
        sentences: list[Sentence] = [(*parts, ".")]
        return sentences + [(text,) for text in shifted(run, scene)]
    return []


def _called(run: Run) -> str:
    simulated = run.recipe is not None and run.recipe.scene is not None and run.recipe.scene.source == "simulated"
    return "simulated scene" if simulated else "scene"


def tiles(run: Run, book: Book) -> tuple[Tile, ...]:
    """Return up to five key numbers."""
    model = main_model(run, book)
    made = []
    iou = book.cell((model, *CLEAN), "iou.pooled")
    if iou.key:
        other = baseline(run, book)
        beside = f"{book.said(other[0])}: {other[1].text}" if other else "all test pixels together"
        made.append(Tile(f"{run.klass} IoU, pooled", iou, beside))
        per_chip = book.cell((model, *CLEAN), "iou.per_chip")
        made.append(Tile(f"{run.klass} IoU, per chip", per_chip, "small waters count as much as large"))
    made += [_truth_tile(scene, name) for name, scene in run.scenes.items() if scene.truth is not None][:1]
    held = [a for a in families(book) if a.model == model]
    if held:
        size, cell = worst_cell(held[0])
        made.append(Tile("under attack", cell, f"worst case within {size.spoken}"))
    most = _most(book, model)
    if most is not None:
        made.append(Tile("after wrong labels", book.cell((most.model, *CLEAN), "iou.pooled"), most.label))
    return tuple(made)


def _truth_tile(scene: Scene, name: str) -> Tile:
    truth = scene.truth
    iou = value(scene, name, "truth.iou", ratio(truth.iou if truth else None))
    true_km2 = area(truth.true_km2 if truth else None)
    return Tile(f"{scene.result.klass} IoU, whole scene", iou, f"maps {area(scene.result.area_km2)}, true {true_km2}")
