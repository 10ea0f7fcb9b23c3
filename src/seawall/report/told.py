"""The page's first words: what a reader who stops after one paragraph should know, every number with its record."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.report.adversary import worst_cell
from seawall.report.blocks import Sentence, said
from seawall.report.book import CLEAN, Book, Cell, Setup
from seawall.report.folder import Run, tree
from seawall.report.noise import corrupted, taken_apart
from seawall.report.robust import families
from seawall.report.scenes import result
from seawall.report.words import area, many, percent


@dataclass(frozen=True)
class Tile:
    """A key number: its name, the number, what it is set against."""

    name: str
    cell: Cell
    under: str


def main_model(run: Run, book: Book) -> str:
    """Return the model that the page is about: the recipe's network, else the first trained one, else the first."""
    plain = [m for m in book.models if taken_apart(m) is None] or list(book.models)
    wanted = str(tree(run.recipe, "model").get("name", ""))
    trained = [m for m in plain if any(row["model"] == m for row in run.history)]
    return next((m for m in (wanted, *trained, *plain) if m in plain), "")


def baseline(run: Run, book: Book) -> tuple[str, Cell] | None:
    """Return the best baseline that was not trained here, by pooled IoU."""
    mine = main_model(run, book)
    trained = {str(row["model"]) for row in run.history}
    known = [
        (value, m)
        for m in book.models
        if m != mine and m not in trained and taken_apart(m) is None
        and (value := book.value((m, *CLEAN), "iou.pooled", book.klass)) is not None
    ]  # fmt: skip
    return (max(known)[1], book.cell((max(known)[1], *CLEAN), "iou.pooled")) if known else None


def summary(run: Run, book: Book) -> tuple[Sentence, ...]:
    """Return the opening sentences."""
    model = main_model(run, book)
    if not model:
        return (("This run has not measured anything yet.",),)
    sentences = [*_accuracy(run, book, model), *_attack(book, model), *_labels(book, model), *_scene(run)]
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
        f"{where}, the {said(model)} finds ",
        recall,
        f" of the {book.klass} area it should, and ",
        precision,
        f" of what it marks as {book.klass} is {book.klass}: a pooled IoU of ",
        iou,
    ]
    if iou.low:
        parts.append(f" (95 % interval {iou.low} to {iou.high})")
    if other := baseline(run, book):
        parts += ["; the best simple rule, ", said(other[0]), ", reaches ", other[1]]
    return [(*parts, ".")]


def _attack(book: Book, model: str) -> list[Sentence]:
    held = [a for a in families(book) if a.model == model]
    if not held:
        return []
    size, cell = worst_cell(held[0])
    everywhere = "each band of each pixel" if size.norm == "linf" and not size.rest else "the image"
    return [(f"An adversary who may change {everywhere} by up to {size.spoken} takes it down to ", cell, ".")]


def _labels(book: Book, model: str) -> list[Sentence]:
    held = [c for c in corrupted(book) if c.base == model and c.rate is not None and not c.loss]
    if not held:
        return []
    most = max(held, key=lambda c: c.rate or 0.0)
    rate = percent(most.rate) if (most.rate or 0) <= 1 else f"{most.rate:g}"
    cell = book.cell((most.model, *CLEAN), "iou.pooled")
    return [(f"Trained on masks corrupted by {most.noise} within a budget of {rate}, it reaches ", cell, ".")]


def _scene(run: Run) -> list[Sentence]:
    for name, told in run.scenes.items():
        water, unsure = result(told, "water_km2"), result(told, "unsure_share")
        if water is not None:
            cell = Cell(area(water), f"water_km2 of scenes/{name}.json", f"scenes/{name}.json|water_km2")
            parts: list[str | Cell] = ["Over the whole scene it maps ", cell, f" of {run.klass}"]
            if unsure is not None:
                parts += [
                    " and is unsure of ",
                    Cell(percent(unsure, 1), f"unsure_share of scenes/{name}.json", f"scenes/{name}.json|unsure_share"),
                    " of the pixels",
                ]
            return [(*parts, ".")]
    return []


def tiles(run: Run, book: Book) -> tuple[Tile, ...]:
    """Return up to four key numbers."""
    model = main_model(run, book)
    made = []
    iou = book.cell((model, *CLEAN), "iou.pooled")
    if iou.key:
        other = baseline(run, book)
        made.append(
            Tile(
                f"{run.klass} IoU, pooled",
                iou,
                f"{said(other[0])}: {other[1].text}" if other else "all test pixels together",
            )
        )
        made.append(
            Tile(
                f"{run.klass} IoU, per chip",
                book.cell((model, *CLEAN), "iou.per_chip"),
                "small waters count as much as large",
            )
        )
    held = [a for a in families(book) if a.model == model]
    if held:
        size, cell = worst_cell(held[0])
        made.append(Tile("under attack", cell, f"worst case within {size.spoken}"))
    noisy = [c for c in corrupted(book) if c.base == model and c.rate is not None]
    if noisy:
        most = max(noisy, key=lambda c: c.rate or 0.0)
        made.append(
            Tile(
                "after wrong labels",
                book.cell((most.model, *CLEAN), "iou.pooled"),
                f"{most.noise}, {percent(most.rate)} budget" if (most.rate or 0) <= 1 else most.kind,
            )
        )
    return tuple(made)
