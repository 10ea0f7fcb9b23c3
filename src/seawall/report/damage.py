"""What an adversary does to a model: curves over eps, the worst case, winners, area, bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from seawall.metrics.worst_case import worst_ratio
from seawall.records import Record
from seawall.report.charts import Point, Row, Series, bars, lines, palette
from seawall.report.elements import Block, Chart, Line, Table, line
from seawall.report.formatting import Budget, many, percent, ratio
from seawall.report.record_index import CLEAN, WORST, Book, Cell, Count, Setup, key_text, said
from seawall.report.run_reader import Run
from seawall.report.scores import say_size, size_bins
from seawall.report.svg import Axis


@dataclass(frozen=True)
class Attacked:
    """One model under one family of threats: the same norm and unit, several sizes.

    Args:
        book: The records.
        model: Name of the model.
        budgets: Sizes of the family, smallest first.
        methods: Attacks that were run, in the order of the file.
    """

    book: Book
    model: str
    budgets: tuple[Budget, ...]
    methods: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Unit of the sizes, as a reader says it."""
        return self.budgets[0].unit

    @property
    def name(self) -> str:
        """The family as a reader says it."""
        return self.budgets[0].name

    def setup(self, method: str, size: Budget) -> Setup:
        """Return the key of one attack at one size."""
        return (self.model, method, size.text)

    def chosen(self, size: Budget) -> list[tuple[Setup, Count]]:
        """Return each chip's counts under the choice of attacks that makes the pooled IoU smallest, clean included."""
        setups = [(self.model, *CLEAN), *(self.setup(method, size) for method in self.methods)]
        piles = [self.book.counts(setup) for setup in setups]
        chips = sorted(set().union(*piles))
        there = np.array([[chip in pile for chip in chips] for pile in piles])
        tp, union = (
            np.array([[getattr(pile[c], part) if c in pile else 0.0 for c in chips] for pile in piles])
            for part in ("tp", "union")
        )
        _, best = worst_ratio(tp, union, there)
        return [(setups[a], piles[a][chip]) for a, chip in zip(best, chips, strict=True)]

    def winners(self, size: Budget) -> Mapping[str, Record]:
        """Return, per chip, the row that says which attack leaves the lowest IoU."""
        place = (self.model, WORST, size.text)
        return {
            r.chip: r
            for r in self.book.rows
            if r.chip and r.metric.startswith("won.") and (r.model, r.method, r.threat) == place
        }


def families(book: Book) -> list[Attacked]:
    """Return every model with every family of threats on all bands, the largest family first."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, list[Budget]]] = {}
    for model, method, threat in book.setups:
        size = book.budget(threat)
        if method in (CLEAN[0], WORST) or not size.norm or size.bands:
            continue
        found.setdefault((model, size.family), {}).setdefault(method, []).append(size)
    made = []
    for (model, _), methods in found.items():
        sizes = sorted({size for some in methods.values() for size in some}, key=lambda b: (b.size, b.text))
        made.append(Attacked(book, model, tuple(sizes), tuple(methods)))
    order = {model: i for i, model in enumerate(book.models)}
    return sorted(made, key=lambda a: (order[a.model], -len(a.budgets) * len(a.methods), a.name))


USUAL = {"reflectance": 0.01, "dB": 0.5}
"""The size that one sentence names, per unit, where it was run."""


def headline(attacked: Attacked) -> Budget:
    """Return the size that one sentence should name: 1 % reflectance or 0.5 dB where it was run, else the largest."""
    for size in attacked.budgets:
        usual = USUAL.get(size.unit)
        if usual is not None and len(set(size.eps)) == 1 and abs(size.size - usual) < 1e-9:
            return size
    return attacked.budgets[-1]


@dataclass(frozen=True)
class BandDamage:
    """How much pooled IoU an adversary takes with one band alone, next to all bands at the same size."""

    band: str
    record: Record
    clean: float
    lost: float
    everything: float | None


def by_band(book: Book, model: str) -> Mapping[tuple[str, Budget], list[BandDamage]]:
    """Return, per attack and budget on all bands, the damage with each band alone."""
    clean = book.value((model, *CLEAN), "iou.pooled", book.klass)
    whole = {
        (method, replace(size, text="")): size
        for _, method, threat in book.setups
        if not (size := book.budget(threat)).bands
    }
    found: dict[tuple[str, Budget], list[BandDamage]] = {}
    for name, method, threat in book.setups:
        size = book.budget(threat)
        row = book.record((model, method, threat), "iou.pooled", book.klass)
        if name != model or len(size.bands) != 1 or clean is None or row is None or row.value is None:
            continue
        everywhere = replace(size, text="", bands=())
        beside = whole.get((method, everywhere))
        full = None if beside is None else book.value((model, method, beside.text), "iou.pooled", book.klass)
        damage = BandDamage(size.bands[0], row, clean, clean - row.value, None if full is None else clean - full)
        found.setdefault((method, beside or everywhere), []).append(damage)
    return found


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


PANELS = (
    ("fooled", "fooled: share of {} that is predicted as something else"),
    ("preserved", "preserved: share of everything else that is predicted as before"),
)


def hiding(book: Book, model: str) -> list[Block]:
    """Return two curves over eps per hidden class, and a table with the spread over chips."""
    blocks: list[Block] = []
    klasses = dict.fromkeys(r.klass for r in book.rows if r.metric == "fooled.per_chip" and r.model == model)
    for klass in klasses:
        runs: dict[str, list[Budget]] = {}
        for name, method, threat in book.setups:
            size = book.budget(threat)
            if name == model and size.norm and book.record((model, method, threat), "fooled.per_chip", klass):
                runs.setdefault(method, []).append(size)
        for metric, words in PANELS:
            blocks.append(_panel(book, model, klass, metric, words.format(klass), runs))
        blocks.append(_table(book, model, klass, runs))
    return blocks


def _panel(book: Book, model: str, klass: str, metric: str, words: str, runs: dict[str, list[Budget]]) -> Chart:
    series = []
    for i, (method, sizes) in enumerate(runs.items()):
        points = [Point(0, 0.0 if metric == "fooled" else 1.0, title="no noise")]
        for size in sorted(sizes, key=lambda size: size.size):
            where = f"{said(method)}, {size.spoken}"
            points.append(point(book, (model, method, size.text), f"{metric}.per_chip", size.size, where, klass))
        series.append(Series(said(method), tuple(points), palette(i), i))
    every = [size for sizes in runs.values() for size in sizes]
    top, unit = max(size.size for size in every) or 1.0, every[0].unit
    ticks = "{:.1%}".format if every[0].unit == "reflectance" else "{:g}".format
    title = f"{book.said(model)}, hiding {klass}; {words}"
    x, y = (
        Axis(f"eps: largest change per band and pixel, {unit}", 0, top, ticks),
        Axis("mean over chips", 0, 1, "{:.0%}".format),
    )
    return Chart(
        title, lines(series, x, y, title), "Mean over the chips where the class is predicted, with its 95 % interval."
    )


def _table(book: Book, model: str, klass: str, runs: dict[str, list[Budget]]) -> Table:
    rows = []
    for method, sizes in runs.items():
        for size in sorted(sizes, key=lambda size: size.size):
            setup = (model, method, size.text)
            cells = [
                book.cell(setup, f"{metric}.{part}", klass, say=percent)
                for metric in ("fooled", "preserved")
                for part in ("per_chip", "std")
            ]
            skipped = book.cell(setup, "fooled.skipped", klass, say=lambda v: "" if v is None else f"{v:.0f}")
            rows.append(line(said(method), size.spoken, *cells, skipped))
    head = (
        ("Attack", ""), ("Budget", ""), ("Fooled", "mean over chips"), ("± std", "over chips"), ("Preserved", "mean over chips"),
        ("± std", "over chips"), ("Skipped", "chips where the class is not predicted"),
    )  # fmt: skip
    return Table(
        f"{book.said(model)}, hiding {klass}",
        head,
        tuple(rows),
        "Shares of pixels by the clean prediction; labels play no part.",
        folded=True,
    )
