"""The pages on how sure a map is: that of a calibration, and that of one mapped scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seawall.class_names import SET_COLORS
from seawall.report import images
from seawall.report.calibration_facts import CalibrationPageFacts, ReliabilityBins
from seawall.report.charts import (
    ChartRow,
    CurvePoint,
    ReliabilityCurve,
    Series,
    interval_chart,
    line_chart,
    reliability_diagram,
    series_color,
)
from seawall.report.elements import (
    BulletList,
    Chart,
    DefinitionList,
    ImageLayer,
    ImagePair,
    ImagePairs,
    PageBlock,
    Paragraphs,
    Section,
    Table,
    table_row,
)
from seawall.report.flags import explain
from seawall.report.formatting import DASH, area_text, number_text, percent_text, plural
from seawall.report.run_facts import MappedScene, RiskFacts
from seawall.report.scenes import ThinnedMap, read_map_layers, scale_bar
from seawall.report.svg import ChartAxis

SHOWN_COLORS: tuple[images.RGBA, ...] = (*((r, g, b, 255) for r, g, b in SET_COLORS), images.TRANSPARENT)
"""Colors of the layer of sets, and of what is not seen."""
RISK_HEAD = (
    ("Risk", "on average over new scenes like these"), ("At", "probability, or distance from the map's border"),
    ("Held-out", "mean share on the scenes of the calibration"), ("Scenes", "with pixels that the risk is a share of"), ("Needed", "scenes"),
)  # fmt: skip


def calibration_page(facts: CalibrationPageFacts) -> list[Section]:
    """Return the sections of the page of a calibration."""
    about: list[PageBlock] = [DefinitionList(facts.about)]
    return [
        Section("calibration", "What was calibrated", "Held-out scenes say how sure a map may be.", about),
        _reliability_section(facts),
        _risk_section(facts),
        _area_section(facts),
    ]


def _reliability_section(facts: CalibrationPageFacts) -> Section:
    note = "Each scene by a temperature that was fitted on other scenes. Below the dashed line the model is surer than it should be. Larger marks hold more pixels."
    blocks: list[PageBlock] = [
        Chart(
            title, reliability_diagram(_curves(bins), f"{title}: share of right pixels against stated confidence"), note
        )
        for title, bins in (("All pixels", facts.reliability), ("Within three pixels of a shore", facts.shore))
        if any(bins.values())
    ]
    x = ChartAxis("share of the pixels or scenes that are kept, the surest first", 0, 1, "{:.0%}".format)
    top = max((risk for _, risk in (*facts.coverage, *facts.scene_coverage)), default=1.0)
    y = ChartAxis("error of the kept ones", 0, max(top * 1.05, 0.01), "{:.0%}".format)
    curves = [
        Series(name, tuple(CurvePoint(c, r) for c, r in points), series_color(i), -1)
        for i, (name, points) in enumerate((("pixels", facts.coverage), ("scenes, 1 - IoU", facts.scene_coverage)))
        if points
    ]
    if curves:
        words = ", ".join(f"{name} {number_text(value)}" for name, value in facts.areas.items())
        title = "What is left out first: error against coverage"
        blocks.append(Chart(title, line_chart(curves, x, y, title), f"Area under the curves: {words}."))
    lead = "A pixel that the model is 90 % sure of should be right nine times out of ten."
    return Section("reliability", "Is it as right as it is sure?", lead, blocks)


def _curves(bins: Mapping[str, ReliabilityBins]) -> list[ReliabilityCurve]:
    return [ReliabilityCurve(name, found, series_color(i)) for i, (name, found) in enumerate(bins.items()) if found]


def _risk_section(facts: CalibrationPageFacts) -> Section:
    lead = (
        "A risk is controlled on average over new scenes that are like the held-out ones; not for each scene, not per pixel, and not under attack. "
        "An en dash stands where too few scenes are there, or where no threshold keeps the risk."
    )
    return Section("risks", "What can be promised", lead, [risk_table(facts.risks)])


def risk_table(risks: Sequence[RiskFacts]) -> Table:
    """Return the table of risks and their thresholds."""
    rows = tuple(
        table_row(
            one.risk, DASH if one.at is None else f"{one.at:g} m" if "distance" in one.risk else number_text(one.at),
            percent_text(one.empirical, 1), str(one.scenes), DASH if one.needed is None else str(one.needed),
        )
        for one in risks
    )  # fmt: skip
    return Table("Controlled risks", RISK_HEAD, rows)


def _area_section(facts: CalibrationPageFacts) -> Section:
    rows = [
        ChartRow(
            one.scene, one.mapped_km2 - one.true_km2,
            None if one.low_km2 is None else one.low_km2 - one.true_km2, None if one.high_km2 is None else one.high_km2 - one.true_km2,
            "c0", f"{one.scene}: mapped {area_text(one.mapped_km2)}, true {area_text(one.true_km2)}", area_text(one.mapped_km2),
        )
        for one in sorted(facts.scenes, key=lambda one: -one.true_km2)
    ]  # fmt: skip
    ends = [end for row in rows for end in (row.y, row.low, row.high) if end is not None] or [0.0]
    reach = max(map(abs, ends)) or 1.0
    title = f"Mapped less true area of {facts.klass} on held-out scenes, km2"
    blocks: list[PageBlock] = [
        Chart(title, interval_chart(rows, ChartAxis("km2", -reach, reach, "{:.3g}".format), title),
              f"{facts.level:.0%} intervals, each by the other scenes; those that hold 0 hold the true area. The number is the mapped area.")
    ]  # fmt: skip
    held = [one for one in facts.scenes if one.low_km2 is not None and one.high_km2 is not None]
    if held:
        inside = sum((one.low_km2 or 0.0) <= one.true_km2 <= (one.high_km2 or 0.0) for one in held)
        blocks.append(
            Paragraphs(((f"The interval holds the true area on {inside} of {plural(len(held), 'scene')}.",),))
        )
    return Section(
        "area",
        "How much of it is there?",
        "Errors of neighboring pixels are alike, so the interval is taken over scenes.",
        blocks,
    )


def map_page(folder: Path, name: str, scene: MappedScene, preview: Path | None) -> list[Section]:
    """Return the sections of the page of one mapped scene.

    Args:
        folder: The folder of its layers.
        name: Its name.
        scene: Its JSON.
        preview: A picture of the scene; None without one.

    Raises:
        OSError: A layer is missing.
    """
    layers = read_map_layers(folder, name, scene, preview)
    sections = [
        Section(
            "map",
            "The map",
            scene.result.statement or "Without a georeference there is no area.",
            [_map_pictures(name, scene, layers)],
        )
    ]
    sections.append(_promise_section(scene))
    if scene.result.flags:
        flags = tuple(
            (text.split(":")[0], f"{explain(text).means} {explain(text).do} {text.partition(': ')[2]}".strip())
            for text in scene.result.flags
        )
        sections.append(
            Section("flags", "To know", "What else a reader should know about this map.", [BulletList(flags)])
        )
    return sections


def _map_pictures(name: str, scene: MappedScene, layers: ThinnedMap) -> ImagePairs:
    klass = scene.result.klass
    sets = np.where(layers.sets == 255, len(SET_COLORS), layers.sets).astype(np.uint8)
    right = ImageLayer(f"{klass}, other, cannot tell", images.data_url(sets, SHOWN_COLORS))
    left = (
        ImageLayer("satellite image", images.data_url(layers.photo))
        if layers.photo is not None
        else layers.class_picture
    )
    height, width = sets.shape
    legend = (
        ("set-class", klass),
        ("set-other", "other"),
        ("set-open", "cannot tell"),
        *((("unseen", "not seen"),) if (layers.sets == 255).any() else ()),
    )
    pair = ImagePair(
        "map-0", name, left, right, width, height, (f"Move the border between the image and the map. {scene.result.statement}",),
        layers.panels, legend, scale_bar(layers.meters, width),
    )  # fmt: skip
    return ImagePairs(name, (pair,), large=True)


def _promise_section(scene: MappedScene) -> Section:
    result, promise = scene.result, scene.calibration
    found = result.interval
    items = [
        ("Mapped", area_text(result.area_km2)),
        ("Interval", "" if found is None or found.low_km2 is None else f"{area_text(found.low_km2)} to {area_text(found.high_km2)} ({found.level:.0%}, by {plural(found.scenes, 'held-out scene')})"),
        ("No interval", "" if found is None or found.low_km2 is not None else found.reason),
        ("Corrected for the errors on held-out scenes", "" if found is None else area_text(found.corrected_km2)),
        ("Stratified estimate", "" if found is None or found.stratified_km2 is None else f"{area_text(found.stratified_km2)}, standard error {area_text(found.scene_se_km2)} over scenes"),
        (f"Surely {result.klass}", area_text(result.low_km2)),
        ("Cannot be told", f"{area_text(result.unsure_km2)}, {percent_text(result.unsure_share, 1)} of the seen pixels"),
        ("Seen", f"{percent_text(result.seen_share, 1)} of the scene"),
        ("Looks like known scenes", "" if result.familiarity is None else f"{'no' if result.familiarity.unusual else 'yes'}, p = {number_text(result.familiarity.p_value)}"),
    ]  # fmt: skip
    shown = tuple((term, what) for term, what in items if what and not what.startswith(DASH))
    blocks: list[PageBlock] = [DefinitionList(shown)]
    if promise.risks:
        blocks.append(risk_table(promise.risks))
    lead = (
        "Promises hold on average over new scenes like those of the calibration, not for each scene and not under attack."
        if promise.digest
        else "Nobody has calibrated this network, so nothing is promised: what cannot be told is where its probability is between 0.2 and 0.8."
    )
    return Section("promises", "What it promises", lead, blocks)
