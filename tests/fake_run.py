"""A made-up run folder with everything that a real one may hold: `python tests/fake_run.py FOLDER` writes one.

The pictures are drawn, the counts are counted from them, so that rows and pictures agree. Recipe, facts, history,
examples, preview and scene are written by the functions that write those of a real run; a test compares the keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from seawall.evaluation.examples import write_example
from seawall.geo.grid import Grid
from seawall.geo.preview import write_preview
from seawall.inference.guarantee import Guarantee
from seawall.inference.products import SceneResult
from seawall.inference.stac_items import scene_item
from seawall.pipeline.provenance import RunMetadata
from seawall.recipe.recipe import make_recipe
from seawall.records import Record, RecordLog
from seawall.threat.parser import parse_threat
from seawall.training.checkpoint import HistoryLog
from seawall.types import ModelSpec

RECIPE = "fake-0a1b2c3d"
CLASSES = ("land", "water")
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
GROUPS = {
    "train": ["Amazon bend", "Bolivia", "Ghana", "Mekong", "Paraguay", "Po delta"],
    "val": ["Pakistan", "Sri Lanka"],
    "test": ["India", "Nigeria", "Somalia", "Spain", "USA"],
}
SIZES = ("1-9", "10-99", "100-999", "1000-9999", "10000+", "none")
NOISES = ("erode-dilate", "symmetric")
RATES = (0.05, 0.1, 0.2)
EPS = (0.0025, 0.005, 0.01, 0.02)
HARM = {"random": 0.05, "fgsm": 0.55, "pgd": 0.95, "segpgd": 1.0}
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"
REACHED = {"erode-dilate": 0.4, "symmetric": 1.0}
"""Share of what was asked for that a label noise changed."""
SPEC = ModelSpec(BANDS, CLASSES, "reflectance", 10.0)
Map = NDArray[np.bool_]


def make_run(folder: Path, *, side: int = 96, chips_per_place: int = 3, hostile: bool = False) -> Path:
    """Write a run folder.

    Args:
        folder: Where; made if missing.
        side: Side of the example chips in pixels.
        chips_per_place: Chips of each test place.
        hostile: One chip and one place have a name made of markup.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [*GROUPS["test"][:-1], HOSTILE] if hostile else GROUPS["test"]
    chips = [
        (f"{place.lower()[:20]}_{i:03d}" if place != HOSTILE else f"{HOSTILE}{i}", place)
        for place in places
        for i in range(chips_per_place)
    ]
    (folder / "recipe.toml").write_text(make_recipe(_recipe()).to_toml(), encoding="utf-8")
    RunMetadata(folder / "facts.json").update(**_facts(chips, places))
    env = {
        "machine": "x86_64",
        "python": "3.11.7",
        "seawall": "0.1.0",
        "system": "Linux",
        "threads": "2",
        "torch": "2.13.0",
    }
    _json(folder / "env.json", env)
    RecordLog(folder / "records.jsonl").append(_records(chips, side))
    _history(folder)
    for i, (chip, _) in enumerate(chips[:: max(1, chips_per_place - 1)][:4]):
        _example(folder / "examples", chip, i, side)
    _scene(folder / "scenes")
    return folder


def _recipe() -> dict[str, object]:
    threats = [f"linf {100 * eps:g}% reflectance" for eps in EPS]
    each = {"name": "pgd", "called": "pgd, each band", "threats": ["linf 1% reflectance bands=each"]}
    return {
        "name": "fake", "title": "Surface water from Sentinel-2, six bands", "note": "A made-up run that shows every part of the page.",
        "published": "srip-table-1", "data": {"source": "simulated", "sensor": "s2", "bands": list(BANDS)},
        "model": {"name": "unet", "settings": {"width": 16, "depth": 4}},
        "training": {"objective": {"name": "supervised", "settings": {"loss": "ce"}}, "settings": {"epochs": 12, "batch": 8, "lr": 0.001}},
        "baselines": [{"name": "threshold", "settings": {"index": name}} for name in ("mndwi", "ndwi")],
        "attacks": [*({"name": name, "settings": {} if name in ("fgsm", "random") else {"steps": 20}, "threats": threats} for name in HARM), each],
        "noises": [{"name": name, "rates": list(RATES)} for name in NOISES],
        "scene": {"source": "simulated", "size": 480},
    }  # fmt: skip


def _facts(chips: list[tuple[str, str]], places: list[str]) -> dict[str, object]:
    return {
        "data": {
            "chips": 48, "unit": "reflectance", "bands": list(BANDS), "gsd_m": 10.0, "classes": list(CLASSES),
            "groups": GROUPS | {"test": places}, "chips_per_part": {"train": 24, "val": 9, "test": len(chips)},
            "water_share": {"train": 0.28, "val": 0.31, "test": 0.26}, "licence": "none: simulated",
            "noise": {band: 0.0008 + 0.0002 * i for i, band in enumerate(BANDS)}, "how": "by groups, seed 0", "warnings": [],
        },
        "noises": {
            f"unet@{noise}-{rate:g}": {
                "model": "unet", "noise": noise, "rate": rate, "vary": "budget", "objective": "",
                "changed_share": REACHED[noise] * rate, "chips": 24, "chips_changed": 24,
            }
            for noise in NOISES for rate in RATES
        },
        "seconds": {"chips": 4.1, "training": 141.0, "evaluation": 63.0, "scene": 9.5},
    }  # fmt: skip


def _water(chip: str, side: int) -> Map:
    """Draw a river and some ponds; every chip has its own."""
    rng = _rng(chip)
    y, x = np.mgrid[0:side, 0:side] / side
    bend = (
        0.5
        + 0.22 * np.sin(2 * np.pi * (x * rng.uniform(0.6, 1.4) + rng.random()))
        + 0.05 * np.sin(9 * x + 6 * rng.random())
    )
    water = np.abs(y - bend) < rng.uniform(0.03, 0.1)
    for _ in range(4):
        cy, cx, r = rng.random(), rng.random(), rng.uniform(0.015, 0.07)
        water |= (y - cy) ** 2 + 1.6 * (x - cx) ** 2 < r * r
    return np.asarray(water)


def _predict(chip: str, truth: Map, error: float) -> Map:
    """Move the shore and drop patches, the more the larger the error (0 perfect, 1 all wrong)."""
    rng = _rng(f"{chip} predicted")
    field = _smooth(rng.standard_normal(truth.shape), 5)
    edge = _smooth(truth.astype(float), 3)
    soft = edge + 0.35 * field / np.abs(field).max()
    calm = (soft > 0.5) if error < 0.02 else (soft - 0.9 * error * (0.4 + rng.random(truth.shape) * 0.6) > 0.45)
    invented = (edge < 0.05) & (field > np.quantile(field, 1 - 0.25 * error))
    return np.asarray(calm | invented)


def _smooth(values: NDArray[np.float64], times: int) -> NDArray[np.float64]:
    for _ in range(times):
        for axis in (0, 1):
            values = (np.roll(values, 1, axis) + values + np.roll(values, -1, axis)) / 3
    return values


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _errors() -> Iterator[tuple[str, str, str, float, int]]:
    """Yield model, method, threat, error, passes of every setup."""
    yield "unet", "clean", "", 0.03, 1
    yield "mndwi", "clean", "", 0.14, 0
    yield "ndwi", "clean", "", 0.22, 0
    for method, harm in HARM.items():
        for eps in EPS:
            steps = 1 if method in ("fgsm", "random") else 20
            yield (
                "unet",
                method,
                f"linf {100 * eps:g}% reflectance",
                0.03 + harm * 0.55 * (1 - np.exp(-eps / 0.008)),
                2 * steps,
            )
    for i, band in enumerate(BANDS):
        yield "unet", "pgd", f"linf 1% reflectance bands={band}", 0.05 + 0.02 * ((i * 5) % 7), 40
    for noise, harm in zip(NOISES, (1.3, 0.4), strict=True):
        for rate in RATES:
            yield f"unet@{noise}-{rate:g}", "clean", "", 0.03 + harm * rate, 1


def _records(chips: list[tuple[str, str]], side: int) -> Iterator[Record]:
    for model, method, threat, error, passes in _errors():
        flags = ("more-steps-gain",) if (method, threat) == ("pgd", "linf 2% reflectance") else ()
        for chip, group in chips:
            wobble = 0.6 + 0.8 * _rng(f"{chip} {method}").random()
            truth = _water(chip, side)
            says = _predict(chip, truth, error * wobble)
            place = (RECIPE, model, method, threat, chip, group)
            fields = parse_threat(threat, SPEC).facts if threat else ()
            yield from _counts(place, truth, says, (flags, 0.02 * max(passes, 1), *fields))
            if passes > 1:
                yield Record(*place, "passes", "", float(passes), 1, flags, 0.0, *fields)
            if method == "clean":
                yield from _clean_extras(place, truth, says, model)


def _counts(
    place: tuple[str, str, str, str, str, str], truth: Map, says: Map, rest: tuple[object, ...]
) -> Iterator[Record]:
    for klass, is_, said in (("land", ~truth, ~says), ("water", truth, says)):
        for metric, mask in (("tp", is_ & said), ("fp", said & ~is_), ("fn", is_ & ~said)):
            yield Record(*place, metric, klass, float(mask.sum()), truth.size, *rest)  # type: ignore[arg-type]
    yield Record(*place, "pixels", "", float(truth.size), truth.size, *rest)  # type: ignore[arg-type]


def _clean_extras(place: tuple[str, str, str, str, str, str], truth: Map, says: Map, model: str) -> Iterator[Record]:
    tp, fp, fn = (float(m.sum()) for m in (truth & says, says & ~truth, truth & ~says))
    tn = truth.size - tp - fp - fn
    ious = (tp / max(tp + fp + fn, 1), tn / max(tn + fp + fn, 1))
    dice = 2 * tp / max(2 * tp + fp + fn, 1)
    values = {
        "iou": sum(ious) / 2, "accuracy": (tp + tn) / truth.size, "dice": dice,
        "f1": (dice + 2 * tn / max(2 * tn + fp + fn, 1)) / 2, "specificity": tn / max(tn + fp, 1),
        "precision": (tp / max(tp + fp, 1) + tn / max(tn + fn, 1)) / 2,
        "recall": (tp / max(tp + fn, 1) + tn / max(tn + fp, 1)) / 2,
    }  # fmt: skip
    for name, value in values.items():
        yield Record(*place, f"srip.{name}", "", value, truth.size)
    if model != "unet":
        return
    for i, (confidence, share, accuracy) in enumerate(_bins(tp + tn, truth.size)):
        n = int(share * truth.size)
        for part, value in (("count", n), ("correct", n * accuracy), ("confidence", n * confidence)):
            yield Record(*place, f"calib.{part}.{i}", "", float(value), n)
    yield Record(*place, "calib.pixels", "", float(truth.size), truth.size)
    for name, share in (("nll", 0.21), ("brier", 0.11)):
        yield Record(*place, f"calib.{name}", "", share * truth.size, truth.size)
    for part, value in (("true", tp + fn), ("lost", fn), ("invented", fp)):
        yield Record(*place, f"area.{part}_km2", "water", value * 1e-4, truth.size)
    for i, size in enumerate(SIZES):
        found = (0.2, 0.45, 0.8, 0.95, 0.98, 0.0)[i]
        pixels = (8, 60, 400, 900, 0, 0)[i]
        for part, value in (
            ("tp", pixels * found),
            ("fn", pixels * (1 - found)),
            ("fp", pixels * 0.1),
            ("bodies", pixels > 0),
        ):
            yield Record(*place, f"size.{part}.{size}", "water", float(value), truth.size)


def _bins(right: float, pixels: int) -> list[tuple[float, float, float]]:
    del right, pixels
    return [
        (
            (i + 0.5) / 15,
            max(0.0, (i - 7) ** 3 / 800) if i >= 7 else 0.0,
            0.42 + 0.55 * ((i - 7) / 7) ** 1.4 if i >= 7 else 0.0,
        )
        for i in range(15)
    ]


def _history(folder: Path) -> None:
    for j, model in enumerate(("unet", *(f"unet@{n}-{r:g}" for n in NOISES for r in RATES))):
        rng = _rng(model)
        log = HistoryLog(folder / "models" / model, [], tensorboard=False)
        for epoch in range(12):
            loss = 0.09 + 0.02 * j + 0.55 * np.exp(-epoch / 3) + 0.01 * rng.random()
            iou = (0.78 - 0.02 * j) * (1 - np.exp(-(epoch + 1) / 2.5)) + 0.02 * rng.random()
            scores = {"val.iou.land": 0.5 + 0.5 * iou, "val.iou.water": iou}
            log.append(
                {
                    "epoch": epoch,
                    "step": 30 * (epoch + 1),
                    "loss": loss,
                    "lr": 1e-3,
                    "seconds": 1.0,
                    **scores,
                    "best": True,
                }
            )


def _image(chip: str, truth: Map) -> NDArray[np.float32]:
    """Draw six bands in reflectance: bright and rough land, dark water."""
    rng = _rng(f"{chip} land")
    field = _smooth(rng.standard_normal(truth.shape), 8)
    field = (field - field.min()) / np.ptp(field)
    fine = 0.01 * _smooth(rng.standard_normal(truth.shape), 1)
    land = np.stack(
        [
            0.05 + 0.03 * field,
            0.08 + 0.03 * field,
            0.07 + 0.05 * field,
            0.25 + 0.1 * field,
            0.2 + 0.1 * field,
            0.12 + 0.08 * field,
        ]
    )
    water = np.array([0.04, 0.045, 0.03, 0.015, 0.01, 0.008])[:, None, None]
    edge = _smooth(truth.astype(float), 2)
    return np.clip(edge * water + (1 - edge) * land + fine, 0, 1).astype(np.float32)


def _example(folder: Path, chip: str, i: int, side: int) -> None:
    truth = _water(chip, side)
    clean = _image(chip, truth)
    noise = 0.01 * np.sign(_smooth(_rng(f"{chip} noise").standard_normal(truth.shape), 1)).astype(np.float32)
    wobble = 0.6 + 0.8 * _rng(f"{chip} segpgd").random()
    calm = 0.6 + 0.8 * _rng(f"{chip} clean").random()
    error = 0.03 + 0.55 * (1 - np.exp(-0.01 / 0.008))
    seen = np.ones(truth.shape, bool)
    seen[: side // 12, : side // 4] = False
    write_example(
        folder, chip=chip, method="segpgd", threat="linf 1% reflectance", model="unet", clean=clean, attacked=clean + noise,
        label=truth.astype(np.uint8), pred_clean=_predict(chip, truth, 0.03 * calm).astype(np.uint8),
        pred_attacked=_predict(chip, truth, error * wobble).astype(np.uint8), seen=seen, valid=seen, bands=BANDS, name=f"{i:02d}",
    )  # fmt: skip


def _scene(folder: Path, side: int = 480) -> None:
    folder.mkdir(exist_ok=True)
    truth = _water("scene", side)
    soft = _smooth(truth.astype(float), 6)
    seen = np.ones((side, side), bool)
    seen[:40, : side // 2] = False
    layers = {"class": (soft > 0.5).astype(np.uint8), "water": np.rint(soft * 250).astype(np.uint8)}
    layers["uncertainty"] = np.rint(250 * (1 - np.abs(2 * soft - 1))).astype(np.uint8)
    for name, data in layers.items():
        _tif(
            folder / f"reach.{name}.tif",
            np.where(seen, data, 255).astype(np.uint8)[None],
            1.0 if name == "class" else 0.004,
        )
    _tif(folder / "input-480.truth.tif", np.where(seen, truth, 255).astype(np.uint8)[None], 1.0)
    image = _image("scene", truth)
    _tif(folder / "input-480.tif", np.where(seen, image, np.nan).astype(np.float32), 1.0, BANDS)
    write_preview(folder / "input-480.tif", folder / "reach.preview.npz", digest="0" * 64)
    mapped, true = layers["class"].astype(bool) & seen, truth & seen
    km2, both = float(mapped.sum()) * 1e-4, int((mapped & true).sum())
    result = SceneResult(
        name="reach", source="input-480.tif", files={layer: f"reach.{layer}.tif" for layer in layers}, digests=dict.fromkeys(layers, "0" * 64),
        key="0" * 64, model="0" * 64, scene="0" * 64, classes=CLASSES, klass="water", unit="reflectance", radiometry="reflectance", height=side,
        width=side, seen_share=float(seen.mean()), share=float(mapped.sum() / seen.sum()), area_km2=km2, expected_km2=1.01 * km2, doubt_km2=0.1,
        low_km2=0.96 * km2, high_km2=1.07 * km2, unsure_km2=0.11 * km2, unsure_share=0.043,
        class_km2={"land": float(seen.sum()) * 1e-4 - km2, "water": km2}, unsure=(0.3, 0.7), flags=("acquisition-time-unknown",), seconds=9.5,
    )  # fmt: skip
    grid = Grid(side, side, from_origin(500000, 9600000, 10, 10), "EPSG:32720")
    item = scene_item(result, grid, None, folder, "models/model.json", "input-480.tif")
    _json(folder / "reach.json", {**item, "calibration": Guarantee().plain()})
    _json(folder / "reach.truth.json", {
        "klass": "water", "iou": both / int((mapped | true).sum()), "precision": both / int(mapped.sum()), "recall": both / int(true.sum()),
        "true_km2": float(true.sum()) * 1e-4, "mapped_km2": km2, "expected_km2": 1.01 * km2, "pixels": int(seen.sum()), "clear_iou": None, "clear_pixels": 0, "note": "Drawn.",
    })  # fmt: skip


def _tif(path: Path, data: NDArray[np.generic], scale: float, bands: tuple[str, ...] = ()) -> None:
    count, height, width = data.shape
    nodata = np.nan if bands else 255
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": count,
        "dtype": str(data.dtype),
        "nodata": nodata,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", crs="EPSG:32720", transform=from_origin(500000, 9600000, 10, 10), **profile) as out:
        if bands:
            out.descriptions = bands
        out.write(data)
        out.scales = (scale,) * count


def _json(path: Path, tree: object) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1]), side=int(sys.argv[2]) if len(sys.argv) > 2 else 96))
