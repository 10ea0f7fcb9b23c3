"""What the harm is made of: area, bands, sizes of water."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from seawall.report.blocks import Block, Chart, Line, Table, line
from seawall.report.book import CLEAN, WORST, Book, Cell, Count, Setup, key_text, said
from seawall.report.charts import Point, Row, bars
from seawall.report.folder import Run
from seawall.report.robust import Attacked, by_band, families, headline
from seawall.report.scores import say_size, size_bins
from seawall.report.svg import Axis
from seawall.report.words import many, percent, ratio


def point(book: Book, setup: Setup, metric: str, x: float, where: str, klass: str = "") -> Point:
    """Return a figure with its interval and its flags as a point of a curve; every curve over rows is made of these."""
    klass = klass or book.klass
    value, low, high = (book.value(setup, f"{metric}{end}", klass) for end in ("", ".low", ".high"))
    return Point(x, value, low, high, f"{metric}, {where}: {ratio(value, 3)}", book.flags(setup))


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
        flags = book.flags(setup)
        cells = [_area_cells(parts, part, "|".join(setup), len(chosen), hectares, flags) for part in parts]
        rows.append((name, cells[0][0], *cells[1], *cells[2]))
    unit = "ha" if hectares else "km²"
    head = (
        ("Budget", ""), (f"True {book.klass}, {unit}", "area in the labels"), (f"Lost, {unit}", f"{book.klass} that is not found"), ("share", "of the true area"),
        (f"Invented, {unit}", f"land taken for {book.klass}"), ("share", "of the true area"),
    )  # fmt: skip
    return [
        Table(
            f"{book.said(attacked.model)}: {book.klass} area lost and invented",
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
    gsd = run.data.gsd_m
    if not gsd:
        return None
    pixels = {
        "true": sum(c.tp + c.fn for _, c in chosen),
        "lost": sum(c.fn for _, c in chosen),
        "invented": sum(c.fp for _, c in chosen),
    }
    return pixels[part] * gsd * gsd / 1e6


def _area_cells(
    parts: Mapping[str, float | None], part: str, key: str, n: int, hectares: bool, flags: tuple[str, ...]
) -> tuple[Cell, Cell]:
    what = {"true": "tp + fn", "lost": "fn", "invented": "fp"}[part]
    km2, true = parts[part], parts["true"]
    share = km2 / true if km2 is not None and true else None
    title = f"area.{part}_km2: {what}, summed over {many(n, 'chip')}"
    amount = None if km2 is None else km2 * 100 if hectares else km2
    return (
        Cell(ratio(amount, 1 if hectares or (true or 0) >= 100 else 2), title, f"{key}|area.{part}_km2", flags=flags),
        Cell(percent(share), f"{title}, as a share of the true area", f"{key}|area.{part}_share", flags=flags),
    )


def bands(book: Book, model: str) -> list[Block]:
    """Draw what an attack takes with each band alone, where the run tried them one by one."""
    blocks: list[Block] = []
    for (method, size), damages in by_band(book, model).items():
        rows = [
            Row(
                d.band,
                d.lost,
                kind="c1",
                words=ratio(d.lost),
                title=f"{key_text(d.record)}: clean {ratio(d.clean, 3)} less {ratio(d.record.value, 3)}",
                flags=book.flags((d.record.model, d.record.method, d.record.threat)),
            )
            for d in sorted(damages, key=lambda d: -d.lost)
        ]
        full = damages[0].everything
        if full is not None:
            rows.append(
                Row("all bands", full, kind="worst", words=ratio(full), flags=book.flags((model, method, size.text)))
            )
        reach = max(0.05, *(r.y or 0 for r in rows))
        axis = Axis(
            "pooled IoU taken away",
            min(0.0, *(r.y or 0 for r in rows)),
            math.ceil(reach * 20) / 20,
            lambda v: f"{v:.2f}",
        )
        title = f"Which band the adversary needs: {book.said(model)}, {said(method)}, {size.spoken}"
        blocks.append(Chart(title, bars(rows, axis, title), "Loss of pooled IoU when only this band may be changed."))
    return blocks


def size_bias(book: Book) -> list[Block]:
    """Compare how much of small and of large waters is found under each attack."""
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
                    f"{book.said(attacked.model)}: small ponds against big rivers, under attack",
                    head,
                    rows,
                    "Share of the water pixels found, by the size of the water body they belong to.",
                    folded=attacked.model != book.models[0],
                )
            )
    return blocks
