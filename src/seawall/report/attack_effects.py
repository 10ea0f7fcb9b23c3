"""What attacks do to a model: families of threats, worst-case counts, water area, single bands, hidden classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seawall.metrics.worst_case import WORST, worst_ratio
from seawall.records import Record
from seawall.report.charts import ChartRow, CurvePoint, Series, bar_chart, line_chart, series_color
from seawall.report.elements import Chart, PageBlock, Table, TableRow, table_row
from seawall.report.formatting import ThreatLabel, percent_text, plural, ratio_text
from seawall.report.record_index import (
    CLEAN_METHOD,
    ChipCounts,
    MeasurementKey,
    RecordIndex,
    TableCell,
    display_name,
    record_key_text,
)
from seawall.report.run_reader import RunFolder
from seawall.report.scores import size_table
from seawall.report.svg import ChartAxis


@dataclass(frozen=True)
class AttackedModel:
    """One model under one family of threats: the same norm and unit, several budgets.

    Args:
        index: The records.
        model: Name of the model.
        threats: Threats of the family, the smallest budget first.
        methods: Attacks that were run, in the order of the file.
    """

    index: RecordIndex
    model: str
    threats: tuple[ThreatLabel, ...]
    methods: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Unit of the budgets, such as "reflectance"."""
        return self.threats[0].facts.unit

    @property
    def name(self) -> str:
        """Name of the family of threats."""
        return self.threats[0].family_name

    def setup(self, method: str, threat: ThreatLabel) -> MeasurementKey:
        """Return the key of one attack within one threat."""
        return (self.model, method, threat.text)

    def worst_case_counts(self, threat: ThreatLabel) -> list[tuple[MeasurementKey, ChipCounts]]:
        """Return each chip's counts under the choice of attacks, no attack included, that makes the pooled IoU smallest."""
        setups = [(self.model, *CLEAN_METHOD), *(self.setup(method, threat) for method in self.methods)]
        counts = [self.index.counts(setup) for setup in setups]
        chips = sorted(set().union(*counts))
        there = np.array([[chip in of_chip for chip in chips] for of_chip in counts])
        tp, union = (
            np.array([[getattr(of_chip[c], part) if c in of_chip else 0.0 for c in chips] for of_chip in counts])
            for part in ("tp", "union")
        )
        _, best = worst_ratio(tp, union, there)
        return [(setups[a], counts[a][chip]) for a, chip in zip(best, chips, strict=True)]

    def winners(self, threat: ThreatLabel) -> Mapping[str, Record]:
        """Return per chip the `won.<attack>` row of the attack that leaves the lowest IoU."""
        place = (self.model, WORST, threat.text)
        return {
            r.chip: r
            for r in self.index.rows
            if r.chip and r.metric.startswith("won.") and (r.model, r.method, r.threat) == place
        }


def attacked_models(index: RecordIndex) -> list[AttackedModel]:
    """Return every model with every family of threats on all bands, the largest family first."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, list[ThreatLabel]]] = {}
    for model, method, text in index.setups:
        threat = index.threat(text)
        if method in (CLEAN_METHOD[0], WORST) or not threat.facts.norm or threat.facts.bands:
            continue
        found.setdefault((model, threat.family), {}).setdefault(method, []).append(threat)
    made = []
    for (model, _), methods in found.items():
        sizes = sorted({threat for some in methods.values() for threat in some}, key=lambda b: (b.largest_eps, b.text))
        made.append(AttackedModel(index, model, tuple(sizes), tuple(methods)))
    order = {model: i for i, model in enumerate(index.models)}
    return sorted(made, key=lambda a: (order[a.model], -len(a.threats) * len(a.methods), a.name))


HEADLINE_EPS = {"reflectance": 0.01, "dB": 0.5}
"""Budget that the summary names, per unit, where it was run."""


def headline_budget(attacked: AttackedModel) -> ThreatLabel:
    """Return the threat that the summary names: 1 % reflectance or 0.5 dB where it was run, else the largest."""
    for threat in attacked.threats:
        usual = HEADLINE_EPS.get(threat.facts.unit)
        if usual is not None and not threat.per_band and abs(threat.largest_eps - usual) < 1e-9:
            return threat
    return attacked.threats[-1]


@dataclass(frozen=True)
class BandEffect:
    """Loss of pooled IoU when one band alone may be changed, and with all bands within the same budget."""

    band: str
    record: Record
    clean: float
    lost: float
    everything: float | None


def band_effects(index: RecordIndex, model: str) -> Mapping[tuple[str, ThreatLabel], list[BandEffect]]:
    """Return per attack and threat on all bands the loss of pooled IoU with each band alone."""
    clean = index.value((model, *CLEAN_METHOD), "iou.pooled", index.klass)
    whole = {
        (method, threat.facts): threat
        for _, method, text in index.setups
        if not (threat := index.threat(text)).facts.bands
    }
    found: dict[tuple[str, ThreatLabel], list[BandEffect]] = {}
    for name, method, text in index.setups:
        threat = index.threat(text)
        row = index.record((model, method, text), "iou.pooled", index.klass)
        if name != model or len(threat.facts.bands) != 1 or clean is None or row is None or row.value is None:
            continue
        everywhere = threat.facts._replace(bands=())
        beside = whole.get((method, everywhere))
        full = None if beside is None else index.value((model, method, beside.text), "iou.pooled", index.klass)
        damage = BandEffect(
            threat.facts.bands[0], row, clean, clean - row.value, None if full is None else clean - full
        )
        found.setdefault((method, beside or ThreatLabel("", everywhere)), []).append(damage)
    return found


def curve_point(
    index: RecordIndex, setup: MeasurementKey, metric: str, x: float, where: str, klass: str = ""
) -> CurvePoint:
    """Return a metric with its interval and its flags as a point of a curve."""
    klass = klass or index.klass
    value, low, high = (index.value(setup, f"{metric}{end}", klass) for end in ("", ".low", ".high"))
    return CurvePoint(x, value, low, high, f"{metric}, {where}: {ratio_text(value, 3)}", index.flags(setup))


def area_tables(run: RunFolder, attacked: AttackedModel) -> list[PageBlock]:
    """Tabulate the water area that is lost and invented; nothing where the pixel size is unknown."""
    index, clean = attacked.index, (attacked.model, *CLEAN_METHOD)
    sets = [("clean", clean, [(clean, c) for c in index.counts(clean).values()])]
    sets += [
        (threat.budget, attacked.setup(WORST, threat), attacked.worst_case_counts(threat))
        for threat in attacked.threats
    ]
    rows: list[TableRow] = []
    hectares = False
    for name, setup, chosen in sets:
        parts = {part: _area_km2(run, index, chosen, part) for part in ("true", "lost", "invented")}
        if parts["true"] is None:
            return []
        hectares = (parts["true"] or 0) < 1
        flags = index.flags(setup)
        cells = [_area_cells(parts, part, "|".join(setup), len(chosen), hectares, flags) for part in parts]
        rows.append((name, cells[0][0], *cells[1], *cells[2]))
    unit = "ha" if hectares else "km²"
    head = (
        ("Budget", ""), (f"True {index.klass}, {unit}", "area in the labels"), (f"Lost, {unit}", f"{index.klass} that is not found"), ("share", "of the true area"),
        (f"Invented, {unit}", f"land taken for {index.klass}"), ("share", "of the true area"),
    )  # fmt: skip
    return [
        Table(
            f"{index.display_name(attacked.model)}: {index.klass} area lost and invented",
            head,
            tuple(rows),
            "Under the worst case for the pooled IoU.",
        )
    ]


def _area_km2(
    run: RunFolder, index: RecordIndex, chosen: Sequence[tuple[MeasurementKey, ChipCounts]], part: str
) -> float | None:
    """Sum an area over chips, from the area rows, else from pixel counts and the ground sampling distance."""
    rows = [index.record(setup, f"area.{part}_km2", index.klass, chip=c.chip) for setup, c in chosen]
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
) -> tuple[TableCell, TableCell]:
    what = {"true": "tp + fn", "lost": "fn", "invented": "fp"}[part]
    km2, true = parts[part], parts["true"]
    share = km2 / true if km2 is not None and true else None
    title = f"area.{part}_km2: {what}, summed over {plural(n, 'chip')}"
    amount = None if km2 is None else km2 * 100 if hectares else km2
    return (
        TableCell(
            ratio_text(amount, 1 if hectares or (true or 0) >= 100 else 2), title, f"{key}|area.{part}_km2", flags=flags
        ),
        TableCell(
            percent_text(share), f"{title}, as a share of the true area", f"{key}|area.{part}_share", flags=flags
        ),
    )


def band_charts(index: RecordIndex, model: str) -> list[PageBlock]:
    """Draw the loss of pooled IoU with each band alone, where the run attacked single bands."""
    blocks: list[PageBlock] = []
    for (method, threat), damages in band_effects(index, model).items():
        rows = [
            ChartRow(
                d.band,
                d.lost,
                kind="c1",
                text=ratio_text(d.lost),
                title=f"{record_key_text(d.record)}: clean {ratio_text(d.clean, 3)} less {ratio_text(d.record.value, 3)}",
                flags=index.flags((d.record.model, d.record.method, d.record.threat)),
            )
            for d in sorted(damages, key=lambda d: -d.lost)
        ]
        full = damages[0].everything
        if full is not None:
            rows.append(
                ChartRow(
                    "all bands",
                    full,
                    kind="worst",
                    text=ratio_text(full),
                    flags=index.flags((model, method, threat.text)),
                )
            )
        reach = max(0.05, *(r.y or 0 for r in rows))
        axis = ChartAxis(
            "pooled IoU taken away",
            min(0.0, *(r.y or 0 for r in rows)),
            math.ceil(reach * 20) / 20,
            lambda v: f"{v:.2f}",
        )
        title = f"Which band the adversary needs: {index.display_name(model)}, {display_name(method)}, {threat.budget}"
        blocks.append(
            Chart(title, bar_chart(rows, axis, title), "Loss of pooled IoU when only this band may be changed.")
        )
    return blocks


def size_tables(index: RecordIndex) -> list[PageBlock]:
    """Tabulate the recall by size of the water body, clean and under each attack."""
    blocks: list[PageBlock] = []
    for attacked in attacked_models(index):
        threat = headline_budget(attacked)
        columns = [("clean", (attacked.model, *CLEAN_METHOD))]
        columns += [(f"{display_name(m)}, {threat.budget}", attacked.setup(m, threat)) for m in attacked.methods]
        title = f"{index.display_name(attacked.model)}: small ponds against big rivers, under attack"
        table = size_table(index, title, columns, least=2, folded=attacked.model != index.models[0])
        blocks += [table] if table else []
    return blocks


HIDING_METRICS = (
    ("fooled", "fooled: share of {} that is predicted as something else"),
    ("preserved", "preserved: share of everything else that is predicted as before"),
)


def hiding_blocks(index: RecordIndex, model: str) -> list[PageBlock]:
    """Return two charts over eps per hidden class, and a table with the standard deviation over chips."""
    blocks: list[PageBlock] = []
    klasses = dict.fromkeys(r.klass for r in index.rows if r.metric == "fooled.per_chip" and r.model == model)
    for klass in klasses:
        runs: dict[str, list[ThreatLabel]] = {}
        for name, method, text in index.setups:
            threat = index.threat(text)
            if name == model and threat.facts.norm and index.record((model, method, text), "fooled.per_chip", klass):
                runs.setdefault(method, []).append(threat)
        for metric, words in HIDING_METRICS:
            blocks.append(_hiding_chart(index, model, klass, metric, words.format(klass), runs))
        blocks.append(_hiding_table(index, model, klass, runs))
    return blocks


def _hiding_chart(
    index: RecordIndex, model: str, klass: str, metric: str, words: str, runs: dict[str, list[ThreatLabel]]
) -> Chart:
    series = []
    for i, (method, sizes) in enumerate(runs.items()):
        points = [CurvePoint(0, 0.0 if metric == "fooled" else 1.0, title="no noise")]
        for threat in sorted(sizes, key=lambda threat: threat.largest_eps):
            where = f"{display_name(method)}, {threat.budget}"
            points.append(
                curve_point(index, (model, method, threat.text), f"{metric}.per_chip", threat.largest_eps, where, klass)
            )
        series.append(Series(display_name(method), tuple(points), series_color(i), i))
    every = [threat for sizes in runs.values() for threat in sizes]
    top, unit = max(threat.largest_eps for threat in every) or 1.0, every[0].facts.unit
    ticks = "{:.1%}".format if every[0].facts.unit == "reflectance" else "{:g}".format
    title = f"{index.display_name(model)}, hiding {klass}; {words}"
    x, y = (
        ChartAxis(f"eps: largest change per band and pixel, {unit}", 0, top, ticks),
        ChartAxis("mean over chips", 0, 1, "{:.0%}".format),
    )
    return Chart(
        title,
        line_chart(series, x, y, title),
        "Mean over the chips where the class is predicted, with its 95 % interval.",
    )


def _hiding_table(index: RecordIndex, model: str, klass: str, runs: dict[str, list[ThreatLabel]]) -> Table:
    rows = []
    for method, sizes in runs.items():
        for threat in sorted(sizes, key=lambda threat: threat.largest_eps):
            setup = (model, method, threat.text)
            cells = [
                index.cell(setup, f"{metric}.{part}", klass, format_value=percent_text)
                for metric in ("fooled", "preserved")
                for part in ("per_chip", "std")
            ]
            skipped = index.cell(setup, "fooled.skipped", klass, format_value=lambda v: "" if v is None else f"{v:.0f}")
            rows.append(table_row(display_name(method), threat.budget, *cells, skipped))
    head = (
        ("Attack", ""), ("Budget", ""), ("Fooled", "mean over chips"), ("± std", "over chips"), ("Preserved", "mean over chips"),
        ("± std", "over chips"), ("Skipped", "chips where the class is not predicted"),
    )  # fmt: skip
    return Table(
        f"{index.display_name(model)}, hiding {klass}",
        head,
        tuple(rows),
        "Shares of pixels by the clean prediction; labels play no part.",
        folded=True,
    )
