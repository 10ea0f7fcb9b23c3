"""What the harm is made of: area, bands, sizes of water, and what happens without any adversary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from seawall.report.blocks import Block, Chart, Line, Section, Table, line, said
from seawall.report.book import CLEAN, WORST, Book, Cell, Count, Setup, key_text
from seawall.report.charts import Point, Row, Series, bars, lines, palette
from seawall.report.folder import Run, number
from seawall.report.robust import Attacked, by_band, families, headline, natural
from seawall.report.scores import say_size, size_bins
from seawall.report.svg import Axis
from seawall.report.words import budget, many, percent, ratio


def point(book: Book, setup: Setup, metric: str, x: float, where: str) -> Point:
    """Return a figure with its interval as a point of a curve."""
    value, low, high = (book.value(setup, f"{metric}{end}", book.klass) for end in ("", ".low", ".high"))
    return Point(x, value, low, high, f"{metric}, {where}: {ratio(value, 3)}")


def water(run: Run, attacked: Attacked) -> list[Block]:
    """Say how much area is lost and invented, where pixels have a size."""
    book, clean = attacked.book, (attacked.model, *CLEAN)
    sets = [("clean", clean, [(clean, c) for c in book.counts(clean).values()])]
    sets += [(size.spoken, attacked.setup(WORST, size), attacked.chosen(size)) for size in attacked.budgets]
    rows: list[Line] = []
    hectares = False
    for name, setup, chosen in sets:
        parts = {part: _km2(run, book, chosen, part) for part in ("true", "lost", "invented")}
        if parts["true"] is None:
            return []
        hectares = (parts["true"] or 0) < 1
        cells = [_area_cells(parts, part, "|".join(setup), len(chosen), hectares) for part in parts]
        rows.append((name, cells[0][0], *cells[1], *cells[2]))
    unit = "ha" if hectares else "km²"
    head = (
        ("Budget", ""), (f"True {book.klass}, {unit}", "area in the labels"), (f"Lost, {unit}", f"{book.klass} that is not found"), ("share", "of the true area"),
        (f"Invented, {unit}", f"land taken for {book.klass}"), ("share", "of the true area"),
    )  # fmt: skip
    return [
        Table(
            f"{said(attacked.model)}: {book.klass} area lost and invented",
            head,
            tuple(rows),
            "Under the worst case for the pooled IoU.",
        )
    ]


def _km2(run: Run, book: Book, chosen: Sequence[tuple[Setup, Count]], part: str) -> float | None:
    """Add up an area over chips, from their own rows, else from pixel counts and the ground sampling distance."""
    rows = [book.record(setup, f"area.{part}_km2", book.klass, chip=c.chip) for setup, c in chosen]
    if rows and all(row is not None and row.value is not None for row in rows):
        return sum(row.value or 0.0 for row in rows if row)
    gsd = number(run.data.get("gsd_m"))
    if not gsd:
        return None
    pixels = {
        "true": sum(c.tp + c.fn for _, c in chosen),
        "lost": sum(c.fn for _, c in chosen),
        "invented": sum(c.fp for _, c in chosen),
    }
    return pixels[part] * gsd * gsd / 1e6


def _area_cells(parts: Mapping[str, float | None], part: str, key: str, n: int, hectares: bool) -> tuple[Cell, Cell]:
    what = {"true": "tp + fn", "lost": "fn", "invented": "fp"}[part]
    km2, true = parts[part], parts["true"]
    share = km2 / true if km2 is not None and true else None
    title = f"area.{part}_km2: {what}, summed over {many(n, 'chip')}"
    amount = None if km2 is None else km2 * 100 if hectares else km2
    return (
        Cell(ratio(amount, 1 if hectares or (true or 0) >= 100 else 2), title, f"{key}|area.{part}_km2"),
        Cell(percent(share), f"{title}, as a share of the true area", f"{key}|area.{part}_share"),
    )


def bands(book: Book, model: str) -> list[Block]:
    blocks: list[Block] = []
    for (method, threat), damages in by_band(book, model).items():
        rows = [
            Row(
                d.band,
                d.lost,
                kind="c1",
                words=ratio(d.lost),
                title=f"{key_text(d.record)}: clean {ratio(d.clean, 3)} less {ratio(d.record.value, 3)}",
            )
            for d in sorted(damages, key=lambda d: -d.lost)
        ]
        full = damages[0].everything
        if full is not None:
            rows.append(Row("all bands", full, kind="worst", words=ratio(full)))
        reach = max(0.05, *(r.y or 0 for r in rows))
        axis = Axis(
            "pooled IoU taken away",
            min(0.0, *(r.y or 0 for r in rows)),
            math.ceil(reach * 20) / 20,
            lambda v: f"{v:.2f}",
        )
        title = f"Which band the adversary needs: {said(model)}, {said(method)}, {budget(threat).spoken}"
        blocks.append(Chart(title, bars(rows, axis, title), "Loss of pooled IoU when only this band may be changed."))
    return blocks


def size_bias(book: Book) -> list[Block]:
    sizes, blocks = size_bins(book), list[Block]()
    for attacked in families(book) if sizes else []:
        setups = [("clean", (attacked.model, *CLEAN))]
        size = headline(attacked)
        setups += [(f"{said(m)}, {size.spoken}", attacked.setup(m, size)) for m in attacked.methods]
        setups = [
            (name, s) for name, s in setups if any(book.record(s, f"size.recall.{bin_}", book.klass) for bin_ in sizes)
        ]
        rows = tuple(line(say_size(bin_), *(book.cell(s, f"size.recall.{bin_}") for _, s in setups)) for bin_ in sizes)
        if len(setups) > 1:
            head = (
                ("Size of the water body", ""),
                *((name, "share of its pixels that are found") for name, _ in setups),
            )
            blocks.append(
                Table(
                    f"{said(attacked.model)}: small ponds against big rivers, under attack",
                    head,
                    rows,
                    "Share of the water pixels found, by the size of the water body they belong to.",
                    folded=attacked.model != book.models[0],
                )
            )
    return blocks


def perturbed(book: Book) -> Section | None:
    """Show natural perturbations by severity."""
    blocks: list[Block] = []
    for model, kinds in natural(book).items():
        series = []
        for i, (kind, steps) in enumerate(kinds.items()):
            points = [Point(0, book.value((model, *CLEAN), "iou.pooled", book.klass))]
            points += [
                point(book, (model, kind, threat), "iou.pooled", severity, f"severity {severity:g}")
                for severity, threat in steps
                if severity > 0
            ]
            series.append(Series(said(kind), tuple(points), palette(i), i))
        top = max(severity for steps in kinds.values() for severity, _ in steps) or 1.0
        title = f"{said(model)}: {book.klass} IoU under natural perturbations"
        x, y = (
            Axis("severity (0 none, 1 strongest)", 0, top, "{:g}".format),
            Axis(f"pooled {book.klass} IoU", 0, 1, "{:.1f}".format),
        )
        blocks += [Chart(title, lines(series, x, y, title)), _natural_table(book, model, kinds)]
    lead = "What the atmosphere and the sensor do without any adversary, in physical units."
    return Section("natural", "Natural perturbations", lead, blocks) if blocks else None


def _natural_table(book: Book, model: str, kinds: Mapping[str, list[tuple[float, str]]]) -> Table:
    severities = sorted({severity for steps in kinds.values() for severity, _ in steps if severity > 0})
    rows = []
    for kind, steps in kinds.items():
        texts = dict(steps)
        across = [book.cell((model, kind, texts.get(s, f"severity {s:g}")), "iou.pooled") for s in severities]
        rows.append(line(said(kind), book.cell((model, *CLEAN), "iou.pooled"), *across))
    head = (("Perturbation", ""), ("none", "clean"), *((f"{s:g}", f"severity {s:g}") for s in severities))
    return Table(f"Pooled {book.klass} IoU of {said(model)} by severity", head, tuple(rows))
