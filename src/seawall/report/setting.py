"""What was run, on which data, and how training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seawall.report.blocks import Block, Chart, Facts, Points, Prose, Section, Table, said
from seawall.report.charts import Point, Row, Series, bars, lines, palette
from seawall.report.folder import Run, number, tree
from seawall.report.noise import taken_apart
from seawall.report.svg import Axis
from seawall.report.words import count, listed, many, percent, plain, ratio, seconds, sizes

PARTS = ("train", "val", "test")
STAGES = ("chips", "split", "training", "evaluation", "attacks", "labels", "scene", "report")
CALLED = {"train": "training", "val": "validation", "test": "test"}


def what_was_run(run: Run) -> Section:
    """Say what the recipe asked for and how long it took."""
    recipe = run.recipe
    model, training = tree(recipe, "model"), tree(recipe, "training")
    items = [
        ("Recipe", str(recipe.get("name", run.id))),
        ("Network", _method(model)),
        ("Objective", _method(tree(training, "objective"))),
        ("Loss", _method(tree(training, "loss"))),
        ("Training", _settings(tree(training, "settings"))),
        ("Compared with", listed([_method(m) for m in _list(recipe, "baselines")])),
        ("Attacks", "; ".join(_attack(a) for a in _list(recipe, "attacks"))),
        ("Label noise", "; ".join(_noise(n) for n in _list(recipe, "noises"))),
        ("Seed", str(recipe.get("seed", ""))),
    ]
    blocks: list[Block] = [Facts(tuple((term, what) for term, what in items if what))]
    spent = {str(k): v for k, v in tree(run.facts, "seconds").items() if number(v)}
    if spent:
        spent = {k: spent[k] for k in sorted(spent, key=lambda k: (STAGES.index(k) if k in STAGES else len(STAGES), k))}
        whole = sum(map(float, spent.values()))
        rows = [Row(stage, float(s), kind="c0", words=seconds(float(s))) for stage, s in spent.items()]
        axis = Axis("seconds", 0, max(map(float, spent.values())) or 1)
        blocks.append(
            Chart(f"Time per stage: {seconds(whole)} in all", bars(rows, axis, "Seconds per stage of the run"))
        )
    lead = str(recipe.get("note") or "The settings that decide the result; the whole recipe is at the end of the page.")
    return Section("run", "What was run", lead, blocks)


def data_and_split(run: Run) -> Section | None:
    """Say which chips there are, how they were split, and whether places are kept apart."""
    data = run.data
    if not data:
        return None
    gsd = number(data.get("gsd_m"))
    items = [
        ("Chips", count(number(data.get("chips"))) if number(data.get("chips")) else ""),
        ("Bands", ", ".join(map(str, data.get("bands") or ()))),
        ("Unit", said(str(data.get("unit", "")))),
        ("Ground sampling distance", f"{plain(gsd)} m" if gsd else ""),
        ("Classes", listed(run.classes)),
        ("Source", str(tree(run.recipe, "data").get("source", ""))),
        ("License of the data", str(data.get("licence") or data.get("license") or "")),
    ]
    blocks: list[Block] = [Facts(tuple((term, what) for term, what in items if what))]
    groups = {part: [str(g) for g in _list(tree(data, "groups"), part)] for part in PARTS}
    if any(groups.values()):
        blocks += [_split_table(data, groups), _apart(groups)]
    if warnings := _list(data, "warnings"):
        blocks.append(Points(tuple(("Note.", str(text)) for text in warnings)))
    return Section(
        "data", "Data and split", "Where the pixels come from, and which places the model never saw.", blocks
    )


def _split_table(data: Mapping[str, Any], groups: Mapping[str, list[str]]) -> Table:
    chips, water = tree(data, "chips_per_part"), tree(data, "water_share")
    rows = tuple(
        (
            CALLED[part],
            count(number(chips.get(part))),
            count(len(groups[part])),
            percent(number(water.get(part))),
            listed(groups[part], most=6),
        )
        for part in PARTS
        if groups[part] or chips.get(part)
    )
    head = (
        ("Part", ""),
        ("Chips", "images"),
        ("Places", "groups of chips that stay together: an event or a location"),
        ("Water", "share of labelled pixels that are water"),
        ("Names", ""),
    )
    return Table("How the chips were split", head, rows)


def _apart(groups: Mapping[str, list[str]]) -> Prose:
    shared = sorted(set(groups["test"]) & set(groups["train"] + groups["val"]))
    if shared:
        return Prose(((f"Warning: {many(len(shared), 'place')} in the test part can also be found in training ({listed(shared, most=6)}). "
                       "The figures below are too good; split by place and run again.",),))  # fmt: skip
    return Prose((("No place is in two parts: every test figure is about places that training never saw.",),))


def learning(run: Run) -> Section | None:
    """Draw loss and validation curves per epoch."""
    models = list(dict.fromkeys(str(row["model"]) for row in run.history))
    score = next((k for row in run.history for k in sorted(row) if str(k).startswith("val.") and "iou" in str(k)), "")
    epochs = [e for row in run.history if (e := number(row.get("epoch"))) is not None]
    if not epochs:
        return None
    x = Axis("epoch", min(epochs), max(max(epochs), min(epochs) + 1), "{:g}".format)
    blocks: list[Block] = []
    falls = _curves(run, models, "loss")
    tops = [p.y for one in falls for p in one.points if p.y is not None]
    if tops:
        y = Axis("training loss", min(0.0, *tops), max(tops) * 1.05 or 1, lambda v: f"{v:.3g}")
        blocks.append(Chart("Loss on the training part", lines(falls, x, y, "Training loss per epoch", height=220)))
    rises = _curves(run, models, score) if score else []
    if any(p.y is not None for one in rises for p in one.points):
        y = Axis(f"{run.klass} IoU on the validation part", 0, 1, lambda v: f"{v:.1f}")
        note = "The weights with the best validation score are the ones that are tested."
        blocks.append(
            Chart("Score on the validation part", lines(rises, x, y, "Validation IoU per epoch", height=220), note)
        )
    lead = f"{many(len([m for m in models if m]) or 1, 'network')} trained from scratch."
    return Section("learning", "Learning curves", lead, blocks) if blocks else None


def _curves(run: Run, models: list[str], key: str) -> list[Series]:
    series = []
    for i, model in enumerate(models):
        by_epoch: dict[float, list[float]] = {}
        for row in run.history:
            epoch, value = number(row.get("epoch")), number(row.get(key))
            if row["model"] == model and epoch is not None and value is not None:
                by_epoch.setdefault(epoch, []).append(value)
        points = tuple(
            Point(e, sum(v) / len(v), title=f"{said(model)}, epoch {e:g}: {ratio(sum(v) / len(v), 3)}")
            for e, v in sorted(by_epoch.items())
        )
        if points:
            series.append(Series(_brief(model), points, palette(i), -1 if len(points) > 40 else i))
    return series


def _brief(model: str) -> str:
    """Name a network within a figure of its family: what its labels suffered, where they did."""
    apart = taken_apart(model)
    if apart is None:
        return said(model) or "network"
    return apart.kind if apart.rate is None else f"{apart.kind} {percent(apart.rate)}"


def _list(branch: Mapping[str, Any], name: str) -> list[Any]:
    found = branch.get(name)
    return list(found) if isinstance(found, list | tuple) else []


def _method(method: object) -> str:
    if not isinstance(method, dict) or not method.get("name"):
        return ""
    settings = _settings(tree(method, "settings"))
    return said(str(method["name"])) + (f" ({settings})" if settings else "")


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if not isinstance(value, dict))


def _attack(attack: object) -> str:
    threats = attack.get("threats", []) if isinstance(attack, dict) else []
    return f"{_method(attack)} within {sizes([str(t) for t in threats])}"


def _noise(noise: object) -> str:
    if not isinstance(noise, dict):
        return ""
    rates = [percent(r) for r in map(number, _list(noise, "rates"))]
    return f"{_method({'name': noise.get('name'), 'settings': noise.get('settings', {})})} at {listed(rates)}"
