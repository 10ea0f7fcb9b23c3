"""From held-out chips to a map that promises something: `calibrate`, then `predict --risk` and `evaluate`."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.selection import SEEN_IN_CALIBRATION
from seawall.data.splits import recorded_parts
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, ModelError, UsageError
from seawall.geo.grid import Grid
from seawall.geo.raster import write_cog
from seawall.inference.guarantee import Guarantee, distance_sets
from seawall.inference.layers import LAYERS, ReportedClass, encode_layers
from seawall.inference.predict import predict_scene
from seawall.inference.styles import layer_style
from seawall.inference.tiling import Strip
from seawall.models.unet import UNet
from seawall.models.weights import load_model, save_model, split_of, weights_digest
from seawall.pipeline import calibrate as calibrate_module
from seawall.pipeline.calibrate import pixel_risk_coverage
from seawall.records import read_records
from seawall.types import Batch, ModelSpec
from seawall.uncertainty.build import parse_uncertainty
from seawall.uncertainty.calibration import calibration_path, fold_of_scenes, read_calibration, uncertainty_text
from seawall.uncertainty.distance import distance_pixels
from seawall.uncertainty.laplace import COVARIANCE_ROOT, LastLayerLaplace
from seawall.uncertainty.scene_scores import score_scenes
from seawall.uncertainty.temperature import ClassTemperature, LocalTemperature, TemperatureScaled, fit_temperature

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
CHANGES = (
    "model.settings.width=4", "model.settings.depth=1", "model.settings.dropout=0.2", "training.settings.epochs=2",
    "training.settings.steps_per_epoch=20", "training.settings.patch=16", "training.settings.batch=4", "training.members=1",
    "training.settings.snapshots=2", "training.settings.tensorboard=false", "split.test=0.5", "split.val=0.25",
)  # fmt: skip
SCENES = 44


def draw_chip(rng: np.random.Generator, size: int = 24, *, dry: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A blob of water on land whose near-infrared overlaps with the water's, so that a network is wrong now and then."""
    y, x = np.mgrid[:size, :size]
    far = np.hypot(y - rng.uniform(0, size), x - rng.uniform(0, size))
    label = np.zeros((size, size), np.uint8) if dry else (far < rng.uniform(5, 12)).astype(np.uint8)
    nir = np.where(label == 1, 0.08, 0.2) + rng.normal(0, 0.04, label.shape)
    return np.stack([0.1 + rng.normal(0, 0.02, label.shape), nir]).astype(np.float32), label


def make_chips(
    root: Path, scenes: int = SCENES, *, dry: bool = False, prefix: str = "g", groups: Mapping[str, str] = {}
) -> ChipFolder:
    writer, rng = ChipWriter(root, HEADER), np.random.default_rng([7, *prefix.encode()])
    for i in range(scenes):
        image, label = draw_chip(rng, dry=dry)
        grid = Grid(*label.shape, Affine(10, 0, 500000 + 400 * i, 0, -10, 4000000), "EPSG:32633")
        id_ = f"{prefix}{i:02d}"
        writer.write(id_, groups.get(id_, id_), image, label, grid=grid, source=f"made {id_}")
    return writer.finish()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibrate")
    make_chips(root / "chips")
    api.train(root / "chips", out=root / "run", model="unet", changes=CHANGES, device="cpu")
    return root


@pytest.fixture
def weights(home: Path, tmp_path: Path) -> Path:
    """A copy of the trained weights with its member and snapshots, so that no test sees the calibrations of another."""
    shutil.copytree(home / "run/models", tmp_path / "models")
    return tmp_path / "models/unet/model.safetensors"


@pytest.fixture(scope="module")
def scene(home: Path) -> Path:
    rng = np.random.default_rng(3)
    image = np.concatenate([np.concatenate([draw_chip(rng)[0] for _ in range(5)], 2) for _ in range(4)], 1)
    grid = Grid(*image.shape[1:], Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    image[:, :9, :7] = np.nan
    write_cog(
        home / "scene.tif", image, grid, bands=SPEC.bands, nodata=float("nan"), tags={"SEAWALL_UNIT": "reflectance"}
    )
    return home / "scene.tif"


def layer(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / f"scene.{name}.tif") as file:
        return file.read(1)


def test_training_writes_members_and_snapshots_and_says_that_nothing_chose_the_weights(home: Path) -> None:
    models = home / "run/models"
    files = {str(path.relative_to(models)) for path in models.glob("*/*.safetensors")}
    names = ("model.safetensors", "snapshot-1.safetensors", "snapshot-2.safetensors")
    assert files == {f"{net}/{name}" for net in ("unet", "unet.member-1") for name in names}
    first, member = (load_model(models / net / "model.safetensors") for net in ("unet", "unet.member-1"))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), member.parameters(), strict=True))
    record = split_of(first)
    assert record is not None and not record.selected and record.learned_parts == ("train",)
    assert type(record).from_json(record.to_json()) == record
    assert '"selected"' not in replace(record, selected=True).to_json()  # digests of earlier weights stay


@pytest.mark.parametrize(
    "text", ["", "ensemble", "snapshot-ensemble", "mc-dropout passes=3", "laplace passes=4", "tta"]
)
def test_what_is_calibrated_is_what_is_predicted(
    home: Path, weights: Path, scene: Path, tmp_path: Path, text: str
) -> None:
    done = api.calibrate(weights, home / "chips", uncertainty=text, device="cpu")
    assert (
        Path(str(done.facts["calibration"])).name == f"model.{(text or 'softmax').split()[0]}.calibration.safetensors"
    )
    told = api.predict(
        weights, scene, out=tmp_path / "maps", uncertainty=text, risk=["miss 4%", "false-alarm 4%"], device="cpu"
    )
    found = read_calibration(Path(str(done.facts["calibration"])))
    model = found.predictor(parse_uncertainty(text, weights), load_model(weights))
    with rasterio.open(scene) as file:
        image = torch.from_numpy(np.nan_to_num(file.read()))[None]
    with torch.no_grad():
        p = model(image).softmax(1)[0, 1].numpy()
    seen = layer(tmp_path / "maps", "class") != 255
    assert not seen[:9, :7].any() and seen.sum() == seen.size - 63
    assert np.abs(layer(tmp_path / "maps", "water")[seen] - 250 * p[seen]).max() <= 0.51
    item = json.loads((tmp_path / "maps/scene.json").read_text())
    low, high = item["result"]["unsure"]
    assert [low, high] == [one["at"] for one in item["calibration"]["risks"]] and high > 0.5
    near = (np.abs(p - low) < 1e-5) | (np.abs(p - high) < 1e-5)
    want = np.where(p >= high, 1, np.where(p >= low, 2, 0))
    assert (layer(tmp_path / "maps", "sets")[seen & ~near] == want[seen & ~near]).all()
    assert low <= 0.5 <= high
    assert (tmp_path / "maps/scene.mutual-information.tif").exists() == (text != "")
    assert str(told.facts["scene area"]).count("interval") == 1 and "cannot be told" in str(told.facts["scene area"])


def test_scores_of_a_scene_are_by_a_temperature_of_other_scenes(home: Path, weights: Path, monkeypatch) -> None:
    fitted: list[set[str]] = []
    judged: list[set[str]] = []

    def watched_fit(model, batches, kind, **more):
        kept = list(batches)
        fitted.append({chip for batch in kept for chip in batch.chips})
        return fit_temperature(model, kept, kind, **more)

    def watched_scores(model, batches, *rest):
        kept = list(batches)
        judged.append({chip for batch in kept for chip in batch.chips})
        return score_scenes(model, kept, *rest)

    monkeypatch.setattr(calibrate_module, "fit_temperature", watched_fit)
    monkeypatch.setattr(calibrate_module, "score_scenes", watched_scores)
    api.calibrate(weights, home / "chips", device="cpu")
    held_out = set().union(*judged)
    folder, record = ChipFolder.open(home / "chips"), split_of(weights)
    assert record is not None
    parts = recorded_parts(folder, record)
    assert held_out == {*parts["val"], *parts["test"]}  # nothing chose the weights, so the validation part is held out
    assert len(judged) == 5 and fitted[-1] == held_out
    assert all(not own & others and own | others == held_out for own, others in zip(judged, fitted, strict=False))


def test_a_calibration_refuses_every_other_predictor(home: Path, weights: Path, scene: Path, tmp_path: Path) -> None:
    api.calibrate(weights, home / "chips", uncertainty="ensemble", device="cpu")
    path = calibration_path(weights, parse_uncertainty("ensemble", weights))
    with pytest.raises(ModelError, match=r"expected one of tta, got one of ensemble"):
        api.predict(weights, scene, out=tmp_path / "maps", uncertainty="tta", calibration=str(path), device="cpu")
    member = weights.parent.parent / "unet.member-1/model.safetensors"
    other = load_model(member)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    save_model(member, other)
    with pytest.raises(ModelError, match=r"expected the weights .* that it was fitted to"):
        api.predict(weights, scene, out=tmp_path / "maps", uncertainty="ensemble", device="cpu")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="bytes of the file have changed"):
        read_calibration(path)
    with pytest.raises(ModelError, match=r"expected a calibration"):
        read_calibration(member)


def test_a_calibration_comes_back_as_it_was_written(home: Path, weights: Path) -> None:
    done = api.calibrate(weights, home / "chips", uncertainty="laplace", temperature="local", device="cpu")
    path = Path(str(done.facts["calibration"]))
    found = read_calibration(path)
    again = path.with_name("again.safetensors")
    assert found.save(again) and again.read_bytes() == path.read_bytes()
    assert set(found.estimator) == {COVARIANCE_ROOT} and any(
        name.startswith("temperature.local") for name in found.divisor
    )
    assert found.statistics is not None and len(found.scores) == len(found.facts.scenes) == 33


def test_chips_of_the_training_are_refused(home: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got those of the training"):
        api.calibrate(weights, home / "chips", part="train", device="cpu")
    with pytest.raises(DataError, match="of other places than the training"):
        api.calibrate(weights, home / "chips", part="all", device="cpu")
    learned = split_of(weights).groups["train"][0]  # type: ignore[union-attr]
    moved = make_chips(tmp_path / "moved", 12, prefix="h", groups={"h03": learned})
    with pytest.raises(DataError, match=rf"h03 \({learned}\)"):
        api.calibrate(weights, moved.root, part="all", device="cpu")


def test_what_cannot_be_promised_says_what_is_missing(home: Path, weights: Path, scene: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run `seawall calibrate"):
        api.predict(weights, scene, out=tmp_path / "maps", risk=["miss 5%"], device="cpu")
    dry = make_chips(tmp_path / "dry", 8, dry=True, prefix="d")
    with pytest.raises(DataError, match="pixels of water and of other classes, got one of the two only"):
        api.calibrate(weights, dry.root, device="cpu")
    few = make_chips(tmp_path / "few", 8, prefix="f")
    api.calibrate(weights, few.root, part="all", device="cpu")
    with pytest.raises(DataError, match="11 fewer than the 19 that it needs"):
        api.predict(weights, scene, out=tmp_path / "maps", risk=["miss 5%"], device="cpu")
    told = api.predict(weights, scene, out=tmp_path / "maps", level=0.95, device="cpu").facts["scene area"]
    assert "without an interval (8 held-out scenes, 11 fewer than the 19 that an interval of 95% needs)" in str(told)
    one = make_chips(tmp_path / "one", 1, prefix="o")
    with pytest.raises(DataError, match="at least 2 scenes"):
        api.calibrate(weights, one.root, part="all", device="cpu")
    with pytest.raises(UsageError, match="all risks by distance or none"):
        api.predict(
            weights, scene, out=tmp_path / "maps", risk=["miss 20%", "false-alarm 20% by distance"], device="cpu"
        )
    with pytest.raises(UsageError, match="calibrate with --klass land"):
        predict_scene(load_model(weights), scene, tmp_path / "land", klass="land", guarantee=Guarantee(klass="water"))


def test_predictors_that_cannot_be_are_refused(weights: Path, home: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = UNet(4, 1)(SPEC)
    plain.standardize.fit([0.1, 0.2], [0.1, 0.1])
    save_model(tmp_path / "plain/model.safetensors", plain.eval())
    alone = tmp_path / "plain/model.safetensors"
    with pytest.raises(ModelError, match=r"expected a model with dropout layers"):
        api.calibrate(alone, home / "chips", uncertainty="mc-dropout", device="cpu")
    with pytest.raises(ModelError, match=r"expected members beside .* got none"):
        api.calibrate(alone, home / "chips", uncertainty="ensemble", device="cpu")
    with pytest.raises(ModelError, match=r"expected snapshots beside .* got none"):
        api.calibrate(alone, home / "chips", uncertainty="snapshot-ensemble", device="cpu")
    with pytest.raises(DataError, match="that the weights learned from, which laplace is fitted to"):
        api.calibrate(alone, home / "chips", uncertainty="laplace", device="cpu")
    radar = UNet(4, 1)(replace(SPEC, bands=("VV", "VH"), unit="sigma0_db"))
    radar.standardize.fit([0.1, 0.2], [0.1, 0.1])
    save_model(tmp_path / "radar.safetensors", radar.eval())
    with pytest.raises(ModelError, match="use models of one task"):
        api.calibrate(
            weights, home / "chips", uncertainty=f"ensemble members={tmp_path / 'radar.safetensors'}", device="cpu"
        )
    with pytest.raises(UsageError, match="one of none, global, class, local"):
        api.calibrate(weights, home / "chips", temperature="warm", device="cpu")


def test_chips_of_the_calibration_are_flagged_when_they_are_measured(home: Path, weights: Path, tmp_path: Path) -> None:
    api.calibrate(weights, home / "chips", part="val", device="cpu")
    done = api.evaluate(weights, home / "chips", out=tmp_path / "rows", uncertainty="softmax", device="cpu")
    folder, record = ChipFolder.open(home / "chips"), split_of(weights)
    assert record is not None
    val = set(recorded_parts(folder, record)["val"])
    flagged = {row.chip for row in read_records(tmp_path / "rows/records.jsonl") if SEEN_IN_CALIBRATION in row.flags}
    assert flagged == val and done.facts["uncertainty"] == "softmax"
    plain = api.evaluate(
        weights,
        home / "chips",
        out=tmp_path / "plain",
        uncertainty="softmax",
        calibration="none",
        part="test",
        device="cpu",
    )
    scaled = api.evaluate(
        weights, home / "chips", out=tmp_path / "scaled", uncertainty="softmax", part="test", device="cpu"
    )
    assert plain.table == scaled.table and plain.facts["ece"] != scaled.facts["ece"]


def test_attacks_are_detected_by_the_calibrated_predictor_with_its_members(home: Path, weights: Path) -> None:
    def measured(calibration: str) -> Mapping[str, object]:
        done = api.detect_attacks(
            weights, home / "chips", "linf 1% reflectance", uncertainty="ensemble", calibration=calibration, method=["fgsm"], adaptive=False,
            alarms=0.1, part="test", device="cpu",
        )  # fmt: skip
        return {**done.table[0], **done.facts}

    api.calibrate(weights, home / "chips", uncertainty="ensemble", part="val", device="cpu")
    given = {"uncertainty": "ensemble", "part": "test", "out": weights.parent / "rows", "device": "cpu"}
    scaled = api.evaluate(weights, home / "chips", **given)
    found, plain = measured("auto"), measured("none")
    assert found["ece_clean"] == pytest.approx(scaled.facts["ece"], abs=1e-6)
    assert found["calibration"] == scaled.facts["calibration"] and plain["calibration"] == "none"
    water = next(row for row in scaled.table if row["class"] == "water")
    assert found["iou_clean"] == plain["iou_clean"] == water["iou.pooled"]
    assert plain["ece_clean"] != found["ece_clean"]
    for member in weights.parent.parent.glob("unet.member-*/model.safetensors"):
        member.unlink()
    with pytest.raises(ModelError, match=r"expected members beside .* got none"):
        measured("none")
    with pytest.raises(UsageError, match="calibrat"):
        api.detect_attacks(weights, home / "chips", "linf 1% reflectance", uncertainty="laplace", device="cpu")


def test_evaluate_takes_the_calibration_beside_the_weights_as_predict_does(
    home: Path, weights: Path, tmp_path: Path
) -> None:
    def ece(name: str, **asked: str) -> tuple[object, object]:
        facts = api.evaluate(weights, home / "chips", out=tmp_path / name, part="test", device="cpu", **asked).facts
        return facts["ece"], facts["calibration"]

    before = ece("before")
    path = api.calibrate(weights, home / "chips", part="val", device="cpu").facts["calibration"]
    assert before[1] == "none" and ece("none", calibration="none") == before
    assert ece("after") == ece("file", calibration=str(path)) != before and ece("again")[1] == path
    with pytest.raises(ModelError, match="expected a calibration, got no such file"):
        ece("gone", calibration=str(tmp_path / "gone.safetensors"))
    assert api.calibrate(weights, home / "chips", device="cpu").facts["replaced"]


def test_members_and_temperatures_go_to_the_device_of_the_network(home: Path, weights: Path) -> None:
    api.calibrate(weights, home / "chips", uncertainty="ensemble", temperature="local", device="cpu")
    method = parse_uncertainty("ensemble", weights)
    found = read_calibration(calibration_path(weights, method))
    here = found.predictor(method, load_model(weights))
    device = torch.device("meta")  # which stands for an accelerator
    method(load_model(weights).to(device))(torch.zeros(1, 2, 24, 24, device=device))
    far = replace(found, weights=weights_digest(here.inner)).predictor(method, load_model(weights)).to(device)
    assert {tensor.device for tensor in far.state_dict().values()} == {device}


def test_another_promise_is_another_map_also_where_its_threshold_is_the_same(
    home: Path, weights: Path, scene: Path, tmp_path: Path
) -> None:
    api.calibrate(weights, home / "chips", device="cpu")
    for share in ("40%", "50%"):
        api.predict(weights, scene, out=tmp_path / "maps", risk=[f"miss {share}"], device="cpu")
        (told,) = json.loads((tmp_path / "maps/scene.json").read_text())["calibration"]["risks"]
        assert (told["risk"], told["at"]) == (f"miss {share}", 0.5)


def test_what_is_asked_for_without_its_calibration_says_which_one_is_missing(
    home: Path, weights: Path, scene: Path, tmp_path: Path
) -> None:
    api.calibrate(weights, home / "chips", uncertainty="ensemble", device="cpu")
    asked = {"out": tmp_path / "maps", "risk": ["miss 20%"], "device": "cpu"}
    with pytest.raises(UsageError, match='CHIPS --uncertainty "tta"` first'):
        api.predict(weights, scene, uncertainty="tta", **asked)
    with pytest.raises(UsageError, match="got --calibration none; leave that out"):
        api.predict(weights, scene, uncertainty="ensemble", calibration="none", **asked)
    with pytest.raises(UsageError, match="level: expected a probability"):
        api.predict(weights, scene, out=tmp_path / "maps", level=90, device="cpu")
    with pytest.raises(UsageError, match="map it with --calibration none"):
        api.predict(weights, scene, uncertainty="ensemble", klass="land", out=tmp_path / "maps", device="cpu")
    assert not (tmp_path / "maps").exists() or not list((tmp_path / "maps").glob(".*.part"))


def test_distances_need_square_pixels_and_a_scene_without_a_pixel_has_no_interval(
    home: Path, weights: Path, scene: Path, tmp_path: Path
) -> None:
    api.calibrate(weights, home / "chips", device="cpu")
    with rasterio.open(scene) as file:
        image = file.read()
    tags = {"SEAWALL_UNIT": "reflectance"}
    grids = {
        "degrees": Grid(*image.shape[1:], Affine(9e-5, 0, 10, 0, -9e-5, 60), "EPSG:4326"),
        "nowhere": Grid(*image.shape[1:]),
        "void": Grid(*image.shape[1:], Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633"),
    }
    for name, grid in grids.items():
        pixels = np.full_like(image, np.nan) if name == "void" else image
        write_cog(tmp_path / f"{name}.tif", pixels, grid, bands=SPEC.bands, nodata=float("nan"), tags=tags)
    for name, match in (
        ("degrees", "expected square pixels for sets by distance, got 10"),
        ("nowhere", "expected a georeference"),
    ):
        done = api.predict(
            weights, tmp_path / f"{name}.tif", out=tmp_path / "maps", risk=["miss 50% by distance"], device="cpu"
        )
        assert match in done.failed[0][1] and not (tmp_path / f"maps/.{name}.part").exists()
    done = api.predict(weights, tmp_path / "void.tif", out=tmp_path / "void", device="cpu")
    assert "without an interval (nothing was seen)" in str(done.facts["void area"])
    assert "without an interval (nothing was seen)" in str(api.area(tmp_path / "void").facts["area"])


def test_a_map_that_promises_is_killed_and_resumed(home: Path, weights: Path, scene: Path, tmp_path: Path) -> None:
    """A promise is part of what a map is: the rows of another promise are not taken up."""
    api.calibrate(weights, home / "chips", device="cpu")
    first = api.predict(weights, scene, out=tmp_path / "a", risk=["miss 20%"], device="cpu")
    stored = json.loads((tmp_path / "a/scene.json").read_text())["result"]
    api.predict(weights, scene, out=tmp_path / "a", risk=["miss 20%"], device="cpu")
    assert json.loads((tmp_path / "a/scene.json").read_text())["result"]["seconds"] == stored["seconds"]  # the very map
    api.predict(weights, scene, out=tmp_path / "a", risk=["miss 20%"], level=0.8, device="cpu")
    now = json.loads((tmp_path / "a/scene.json").read_text())["result"]
    assert now["key"] != stored["key"] and now["interval"]["level"] == 0.8 and first.table
    width = [r["interval"]["high_km2"] - r["interval"]["low_km2"] for r in (now, stored)]
    assert width[0] < width[1]


def test_sets_by_distance_are_those_of_the_whole_map(home: Path, weights: Path, scene: Path, tmp_path: Path) -> None:
    api.calibrate(weights, home / "chips", device="cpu")
    api.predict(
        weights,
        scene,
        out=tmp_path / "maps",
        risk=["miss 40% by distance", "false-alarm 40% by distance"],
        device="cpu",
    )
    told = json.loads((tmp_path / "maps/scene.json").read_text())
    at = {one["risk"].split(" ")[0]: one["at"] for one in told["calibration"]["risks"]}
    classes, sets = layer(tmp_path / "maps", "class"), layer(tmp_path / "maps", "sets")
    mapped, seen = classes == 1, classes != 255
    surely = mapped & (distance_transform_edt(~(~mapped & seen)) * 10 > at["false-alarm"] + 1e-6)
    may = distance_transform_edt(~mapped) * 10 <= at["miss"] + 1e-6
    assert np.array_equal(sets, np.where(~seen, 255, np.where(surely, 1, np.where(may, 2, 0))))
    result = told["result"]
    assert result["low_km2"] == pytest.approx((sets == 1).sum() * 1e-4)
    assert result["unsure_km2"] == pytest.approx((sets == 2).sum() * 1e-4)


@pytest.mark.parametrize("step", [1, 7, 64, 500])
def test_sets_by_distance_do_not_depend_on_the_strips(step: int) -> None:
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 2, (9, 7)), np.ones((9, 9))).astype(np.uint8)
    classes[rng.random(classes.shape) < 0.05] = 255
    promised = Guarantee(outer_m=35.0, inner_m=20.0)
    rows = lambda first, last: classes[first:last]  # noqa: E731
    whole = dict(distance_sets(rows, len(classes), 1, promised, 10.0, step=1000))[0]
    parts = [part for _, part in distance_sets(rows, len(classes), 1, promised, 10.0, step=step)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert set(np.unique(whole)) == {0, 1, 2, 255}


def test_distances_are_exact_and_infinite_without_a_target() -> None:
    targets = np.random.default_rng(1).random((60, 80)) < 0.01
    assert distance_pixels(targets) == pytest.approx(distance_transform_edt(~targets), rel=1e-6)
    assert np.isinf(distance_pixels(np.zeros((3, 4), bool))).all()


def uneven(count: int = 6, size: int = 24) -> Batch:
    """Logits that are three times too sure where the image is bright, and right where it is dark."""
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(count, size, size, generator=rng) * 0.96 + 0.02
    label = (torch.rand(count, size, size, generator=rng) < p).long()
    bright = (torch.arange(size) >= size // 2).expand(count, size, size)
    z = (p / (1 - p)).log() * torch.where(bright, 3.0, 1.0)
    return Batch.of(torch.stack([z, bright.float()], 1), label)


class FirstBand(nn.Module):
    """The first band is the logit of water."""

    spec = SPEC

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(image[:, 0]), image[:, 0]], 1)


@pytest.mark.parametrize("kind", ["global", "class", "local"])
def test_every_temperature_lowers_the_loss_and_changes_no_class(kind: str) -> None:
    batch = uneven()
    found = fit_temperature(FirstBand(), [batch], kind, pixels=None)
    assert found is not None
    before, after = FirstBand()(batch.image), TemperatureScaled(FirstBand(), found)(batch.image)
    assert torch.equal(before.argmax(1), after.argmax(1))
    loss = {n: float(nn.functional.cross_entropy(z, batch.label)) for n, z in (("before", before), ("after", after))}
    assert loss["after"] < loss["before"] - 0.02
    if kind == "local":
        t = found.divisor(before, batch.image)[:, 0]
        assert 2.2 < float(t[..., 17:-5].mean()) < 4 and 0.7 < float(t[..., 5:7].mean()) < 1.5
        whole = fit_temperature(FirstBand(), [batch], "global", pixels=None)
        assert whole is not None
        least = float(nn.functional.cross_entropy(TemperatureScaled(FirstBand(), whole)(batch.image), batch.label))
        assert loss["after"] < least - 0.01


def test_the_temperature_of_a_class_divides_the_pixels_that_are_predicted_as_it() -> None:
    logits = torch.tensor([[[[2.0, -1.0]], [[0.0, 0.0]]]])
    assert ClassTemperature((4.0, 0.5)).divisor(logits, logits).flatten().tolist() == [4.0, 0.5]
    batch = Batch.of(
        torch.cat(
            [3 * torch.randn(4, 1, 40, 40, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 1, 40, 40)], 1
        ),
        torch.zeros(4, 40, 40).long(),
    )
    sure = batch.image[:, 0] > 0  # predicted as water: three times too sure; predicted as land: as sure as right
    p = torch.where(sure, torch.sigmoid(batch.image[:, 0] / 3), torch.sigmoid(batch.image[:, 0]))
    label = (torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) < p).long()
    found = fit_temperature(FirstBand(), [Batch.of(batch.image, label)], "class", pixels=None)
    assert isinstance(found, ClassTemperature) and found.values == pytest.approx((1.0, 3.0), rel=0.15)


def test_a_local_temperature_is_one_before_it_is_fitted() -> None:
    image = torch.rand(2, 2, 9, 9)
    assert torch.allclose(LocalTemperature(2, 2).divisor(torch.randn(2, 2, 9, 9), image), torch.ones(2, 1, 9, 9))


class LinearHead(nn.Module):
    """Features of a pixel are its bands; the last layer is 1 x 1."""

    def __init__(self, weight: tuple[float, float]) -> None:
        super().__init__()
        self.spec = SPEC
        self.head = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0], weight])[:, :, None, None])
            self.head.bias.zero_()  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image)


def test_the_laplace_approximation_has_the_variance_of_its_formula() -> None:
    """The logit difference of the draws has the variance f' H^-1 f, and its mean probability is that of the probit formula."""
    model, chips = (
        LinearHead((1.5, -1.0)),
        Batch.of(torch.randn(3, 2, 10, 10, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 10, 10).long()),
    )
    method = LastLayerLaplace(passes=4000, prior=0.7, share=0.2)
    root = method.fit(model, [chips.select([0]), chips.select([1, 2])])[COVARIANCE_ROOT].double()
    p = model(chips.image).softmax(1)[:, 1].double().detach()
    f = torch.cat([chips.image, torch.ones(3, 1, 10, 10)], 1).double()
    hessian = 0.7 * torch.eye(3) + 0.2 * torch.einsum("bhw,bihw,bjhw->ij", p * (1 - p), f, f)
    assert root @ root.T == pytest.approx(torch.linalg.inv(hessian), rel=1e-4, abs=1e-7)
    fitted = method.with_state({COVARIANCE_ROOT: root.float()})
    image = torch.tensor([[[[2.0]], [[-1.0]]]])
    with torch.no_grad():
        draws = torch.stack([z[0, 1, 0, 0] - z[0, 0, 0, 0] for z in fitted.pass_logits(model, image)])
    at = torch.tensor([2.0, -1.0, 1.0]).double()
    variance = float(at @ torch.linalg.inv(hessian) @ at)
    assert float(draws.mean()) == pytest.approx(4.0, abs=0.1) and float(draws.var()) == pytest.approx(
        variance, rel=0.08
    )
    probit = 1 / (1 + np.exp(-4 / np.sqrt(1 + np.pi * variance / 8)))
    assert float(fitted(model).predict(image).probability[0, 1].detach()) == pytest.approx(probit, abs=0.01)
    with pytest.raises(UsageError, match="seawall calibrate"):
        method(model)
    three = LinearHead((1.0, 1.0))
    three.spec = replace(SPEC, classes=("land", "water", "ice"))
    with pytest.raises(ModelError, match="two classes"):
        method.fit(three, [chips])


def test_the_text_of_an_estimator_has_what_decides_it_and_no_paths() -> None:
    assert uncertainty_text(parse_uncertainty("mc-dropout passes=7", None)) == "mc-dropout passes=7 seed=0"
    assert uncertainty_text(parse_uncertainty("ensemble members=a.safetensors,b.safetensors", None)) == "ensemble"
    assert fold_of_scenes(["b", "a", "c"], most=9) == {"a": 0, "b": 1, "c": 2}


def test_risk_against_coverage_counts_the_pixels() -> None:
    p = torch.tensor([[[0.95, 0.9, 0.6, 0.2]]])
    label = torch.tensor([[[1, 0, 1, 0]]])
    batch = Batch.of(torch.stack([(p / (1 - p)).log(), torch.zeros_like(p)], 1), label)
    scores = score_scenes(FirstBand(), [batch], {}, "water", 10.0)
    coverage, risk = pixel_risk_coverage(scores)
    steps = {round(float(c), 3): float(r) for c, r in zip(coverage, risk, strict=True)}
    assert steps == pytest.approx({0.25: 0.0, 0.5: 0.5, 0.75: 1 / 3, 1.0: 0.25})


def test_styles_color_what_a_layer_holds() -> None:
    from xml.etree import ElementTree

    for name in LAYERS:
        text = layer_style(name, ("land", "water"), "water")
        root = ElementTree.fromstring(text.split("\n", 1)[1])
        (renderer,) = root.iter("rasterrenderer")
        entries = [(e.get("value"), e.get("label"), e.get("color")) for e in root.iter("paletteEntry")]
        items = [e.get("value") for e in root.iter("item")]
        assert renderer.get("type") == ("paletted" if LAYERS[name].stored == "index" else "singlebandpseudocolor")
        if name == "sets":
            assert entries == [("0", "land", "#ece7da"), ("1", "water", "#00549f"), ("2", "cannot tell", "#f08c00")]
        elif name != "class":
            assert items == ["0", "0.5", "1"]


def test_disagreement_is_stored_over_ln_k() -> None:
    channels = np.array([[[0.5]], [[0.5]], [[np.log(2) / 2]]], np.float32)
    strip = Strip(0, 0, channels, np.ones((1, 1), bool))
    assert (
        encode_layers(strip, 2, ReportedClass(1, (0.2, 0.8)), ["mutual-information"])["mutual-information"].item()
        == 125
    )


def test_a_scene_unlike_the_training_is_flagged_with_its_causes(
    home: Path, weights: Path, scene: Path, tmp_path: Path
) -> None:
    api.calibrate(weights, home / "chips", device="cpu")
    with rasterio.open(scene) as file:
        image, grid = file.read(), Grid(file.height, file.width, file.transform, str(file.crs))
    write_cog(
        tmp_path / "scene.tif",
        image + 0.15,
        grid,
        bands=SPEC.bands,
        nodata=float("nan"),
        tags={"SEAWALL_UNIT": "reflectance"},
    )
    flags, told = {}, {}
    for name, path in (("alike", scene), ("bright", tmp_path / "scene.tif")):
        api.predict(weights, path, out=tmp_path / name, device="cpu")
        told[name] = json.loads((tmp_path / name / "scene.json").read_text())["result"]
        flags[name] = [flag for flag in told[name]["flags"] if flag.startswith("unlike-training")]
    assert not flags["alike"] and told["alike"]["familiarity"]["p_value"] > 0.05
    (flag,) = flags["bright"]
    assert told["bright"]["familiarity"]["p_value"] <= 0.05 and "training" in flag and ("B03" in flag or "B08" in flag)
    page = (tmp_path / "bright/scene.html").read_text()
    assert "does not look like the training scenes" in page and told["bright"]["statement"] in page
