"""The robustness card: curves over eps, what each attack does, who wins where, area and bands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from seawall.report.charts import Point, Series, lines, palette
from seawall.report.damage import Attacked, bands, families, headline, hiding, point, size_bias, water
from seawall.report.elements import Block, Chart, Line, Section, Table, line
from seawall.report.formatting import Budget, listed, many, percent, plain, ratio, seconds
from seawall.report.record_index import CLEAN, WORST, Book, Cell, Setup, key_text, said
from seawall.report.run_reader import Run
from seawall.report.svg import Axis

MANY_CHIPS = 60


def robustness(run: Run, book: Book) -> Section | None:
    """Show what an adversary does to every network that was attacked."""
    blocks: list[Block] = []
    held = families(book)
    blocks += _compared(held)
    for attacked in held:
        mine = [_curves(run, attacked), *_card(attacked), *_winners(attacked), *water(run, attacked)]
        # the first model is the one the page is about: of the others the tables are there for who asks
        blocks += mine if attacked.model == book.models[0] else [_folded(block) for block in mine]
    for model in book.models:
        blocks += bands(book, model) + hiding(book, model)
    blocks += size_bias(book)
    lead = (
        "The adversary knows the model and may change every band of every seen pixel by up to eps. Smaller is worse for the "
        "model; the worst case takes, chip by chip, the attack that hurts most, because a real adversary would. "
        "An attack can only show weakness: every figure is an upper bound on what the model really holds."
    )
    return Section("robustness", "Under attack", lead, blocks) if blocks else None


def _folded(block: Block) -> Block:
    return replace(block, folded=True) if isinstance(block, Table) else block


def _compared(held: Sequence[Attacked]) -> list[Block]:
    """Draw the worst case of several networks under one family of threats, where more than one was attacked."""
    blocks: list[Block] = []
    for family in dict.fromkeys(a.budgets[0].family for a in held):
        same = [a for a in held if a.budgets[0].family == family]
        if len(same) < 2:
            continue
        series = [
            replace(_worst_curve(a, pooled=True), name=a.book.said(a.model), kind=palette(i), shape=i)
            for i, a in enumerate(same)
        ]
        book, top = same[0].book, max(size.size for a in same for size in a.budgets) or 1.0
        x = Axis(_axis(same[0]), 0, top, _tick(same[0]))
        several = len({a.budgets[0].family for a in held}) > 1
        title = "Which network holds: worst case, pooled" + (f" ({same[0].name})" if several else "")
        blocks.append(Chart(title, lines(series, x, Axis(f"{book.klass} IoU", 0, 1, "{:.1f}".format), title)))
    return blocks


def _tick(attacked: Attacked) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:g} %") if attacked.budgets[0].unit == "reflectance" else (lambda v: f"{v:g}")


def _curves(run: Run, attacked: Attacked) -> Chart:
    book, setup = attacked.book, (attacked.model, *CLEAN)
    series = [_worst_curve(attacked, pooled=True), _worst_curve(attacked, pooled=False)]
    start = point(book, setup, "iou.pooled", 0.0, "clean")
    for i, method in enumerate(attacked.methods):
        points = [Point(0, start.y, flags=start.flags)]
        for size in attacked.budgets:
            here = attacked.setup(method, size)
            if book.record(here, "iou.pooled", book.klass):
                found = point(book, here, "iou.pooled", size.size, f"{said(method)}, {size.spoken}")
                points.append(replace(found, low=None, high=None))
        series.append(Series(said(method), tuple(points), palette(i + 1), i + 1))
    top = attacked.budgets[-1].size or 1.0
    ticks = (0.0, *(size.size for size in attacked.budgets))
    x = Axis(_axis(attacked), 0, top, _tick(attacked), ticks, _noise_scale(run, attacked, ticks))
    y = Axis(f"{book.klass} IoU", 0, 1, "{:.1f}".format)
    title = f"{attacked.book.said(attacked.model)}: {book.klass} IoU against the adversary’s budget ({attacked.name})"
    note = "Thick: worst case over all attacks, pooled (with its 95 % interval) and mean per chip. Thin: each attack alone, pooled."
    return Chart(title, lines(series, x, y, title, height=330), note)


def _axis(attacked: Attacked) -> str:
    norm = {"linf": "largest change per band and pixel", "l2": "length of the change over the image (l2)"}
    first = attacked.budgets[0]
    words = norm.get(first.norm, first.norm)
    if len(set(first.eps)) > 1:
        words = "of the band that may change most"
    return f"eps: {words}, {attacked.unit}".rstrip(", ")


def _worst_curve(attacked: Attacked, *, pooled: bool) -> Series:
    metric = "iou.pooled" if pooled else "iou.per_chip"
    book = attacked.book
    points = [point(book, (attacked.model, *CLEAN), metric, 0.0, "clean")]
    points += [point(book, attacked.setup(WORST, size), metric, size.size, size.spoken) for size in attacked.budgets]
    if not pooled:
        points = [replace(p, low=None, high=None) for p in points]
    name = "worst, pooled" if pooled else "worst, per chip"
    return Series(name, tuple(points), "worst" if pooled else "worst2", 0 if pooled else 3)


def _noise_scale(run: Run, attacked: Attacked, ticks: tuple[float, ...]) -> tuple[str, tuple[tuple[float, str], ...]]:
    """Return eps in multiples of the median band's sensor noise, where the run says what that is."""
    sigmas = [s for s in run.data.noise.values() if s]
    if not sigmas or attacked.budgets[0].norm != "linf" or len(set(attacked.budgets[0].eps)) > 1:
        return ("", ())
    sigma = statistics.median(sigmas)
    return (
        "eps, multiples of the sensor’s noise (median band)",
        tuple((t, f"{plain(float(f'{t / sigma:.2g}'))}×") for t in ticks),
    )


def _card(attacked: Attacked) -> list[Block]:
    """Return one table per averaging: attacks down, budgets across, the worst case last."""
    blocks: list[Block] = []
    for metric, how in (("iou.pooled", "pooled"), ("iou.per_chip", "per chip")):
        rows = [line(said(m), *_across(attacked, m, metric), *_costs(attacked, m)) for m in attacked.methods]
        rows.append(line(WORST, *_across(attacked, WORST, metric), "", ""))
        head = (
            ("Attack", ""),
            ("clean", "no attack"),
            *((size.amount, f"{size.spoken}: {size.text}") for size in attacked.budgets),
            ("Passes", "forward and backward passes per chip at the largest budget"),
            ("Time", "seconds over all chips and budgets"),
        )
        keep = [j for j in range(len(head)) if j < len(head) - 2 or any(row[j] for row in rows)]
        title = f"{attacked.book.said(attacked.model)}: {attacked.book.klass} IoU, {how}, by attack and budget ({attacked.name})"
        note = (
            "Worst case: the choice of attack on every chip that makes the pooled IoU smallest, found exactly."
            if metric == "iou.pooled"
            else "Worst case: on every chip the attack that leaves it the lowest IoU."
        )
        picked = tuple(tuple(row[j] for j in keep) for row in rows)
        blocks.append(
            Table(title, tuple(head[j] for j in keep), picked, note, folded=metric != "iou.pooled", total=True)
        )
    return blocks


def _across(attacked: Attacked, method: str, metric: str) -> list[Cell]:
    book = attacked.book
    if method == WORST:
        across = [_worst_cell(attacked, size, metric) for size in attacked.budgets]
    else:
        across = [book.cell(attacked.setup(method, size), metric) for size in attacked.budgets]
    return [book.cell((attacked.model, *CLEAN), metric), *across]


def _costs(attacked: Attacked, method: str) -> tuple[Cell | str, Cell | str]:
    book, setups = attacked.book, [attacked.setup(method, size) for size in attacked.budgets]
    found = next((row for s in reversed(setups) if (row := book.record(s, "passes"))), None)
    passes = Cell(plain(found.value), "passes: mean per chip", key_text(found)) if found else ""
    spent = [t for s in setups if (t := book.seconds(s))]
    what = "field seconds of the rows of " + "; ".join("|".join(s) for s in setups)
    return passes, Cell(seconds(sum(spent)), what, "|".join((*setups[0][:2], "", "seconds"))) if spent else ""


def _worst_cell(attacked: Attacked, size: Budget, metric: str) -> Cell:
    cell = attacked.book.cell(attacked.setup(WORST, size), metric)
    return replace(
        cell, title=f"{cell.title} · made from the counts under {listed([said(m) for m in attacked.methods])}"
    )


def worst_cell(attacked: Attacked) -> tuple[Budget, Cell]:
    """Return the worst pooled IoU at the size that one sentence should name."""
    size = headline(attacked)
    return size, _worst_cell(attacked, size, "iou.pooled")


def _winners(attacked: Attacked) -> list[Block]:
    if len(attacked.methods) < 2:
        return []
    names = [*attacked.methods, "none"]
    rows = tuple(
        line(
            size.spoken,
            *(attacked.book.cell(attacked.setup(WORST, size), f"won.{name}", say=percent) for name in names),
        )
        for size in attacked.budgets
    )
    head = (
        ("Budget", ""),
        *((said(name), "share of chips on which this attack leaves the lowest IoU") for name in names),
    )
    won = {
        name
        for name in attacked.methods
        for size in attacked.budgets
        if attacked.book.value(attacked.setup(WORST, size), f"won.{name}")
    }
    note = "Share of chips on which each attack leaves the lowest IoU" + (
        "; no single attack is enough." if len(won) > 1 else "."
    )
    return [
        Table(f"{attacked.book.said(attacked.model)}: which attack wins", head, rows, note),
        _winner_per_chip(attacked),
    ]


def _winner_per_chip(attacked: Attacked) -> Table:
    size, book, clean = attacked.budgets[-1], attacked.book, (attacked.model, *CLEAN)
    won = attacked.winners(size)
    rows: list[Line] = []
    for chip, row in sorted(won.items())[:MANY_CHIPS]:
        method = row.metric.removeprefix("won.")
        setup = clean if method == "none" else attacked.setup(method, size)
        rows.append((chip, row.group, _chip_cell(book, clean, chip), _chip_cell(book, setup, chip), said(method)))
    head = (
        ("Chip", ""),
        ("Place", ""),
        ("Clean IoU", "IoU of the chip"),
        ("Attacked IoU", "lowest IoU of the chip"),
        ("Attack", "the one that wins"),
    )
    rest = len(won) - len(rows)
    note = f"{many(rest, 'more chip')} in the records." if rest > 0 else ""
    return Table(
        f"{attacked.book.said(attacked.model)}: which attack wins on which chip, {size.spoken}",
        head,
        tuple(rows),
        note,
        folded=True,
    )


def _chip_cell(book: Book, setup: Setup, chip: str) -> Cell:
    found, held = book.record(setup, "tp", book.klass, chip=chip), book.counts(setup).get(chip)
    what = f"tp / (tp + fp + fn) of chip {chip} under {setup[1]} {setup[2]}".rstrip()
    return Cell(ratio(held.iou if held else None), what, key_text(found) if found else "", flags=book.flags(setup))
