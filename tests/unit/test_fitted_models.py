"""Models that are fitted to chips go through training, runs and attacks as networks do, or say in one line why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.loader import whole_chips
from seawall.data.splits import split_chips
from seawall.data.writer import ChipWriter
from seawall.errors import ModelError, RecipeError, UsageError
from seawall.models.clustering import KMeansClustering
from seawall.models.regions import RegionNet
from seawall.models.unet import UNet
from seawall.models.weights import load_model, split_of
from seawall.pipeline.run import run_recipe, train_only
from seawall.pipeline.training import spec_of_chips
from seawall.pipeline.validate import validate_recipe
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.records import RecordLog
from seawall.registry import build
from seawall.testing.assertions import same_snapshot, snapshot
from seawall.types import FittedModel


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> ChipFolder:
    """Lakes, dark in the infrared, at eight places."""
    writer = ChipWriter(
        tmp_path_factory.mktemp("chips"), ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
    )
    draw = np.random.default_rng(0)
    for i in range(8):
        water = np.kron(draw.random((6, 6)) > 0.6, np.ones((4, 4), bool))
        image = np.where(water, np.array([0.06, 0.02])[:, None, None], np.array([0.1, 0.3])[:, None, None])
        image = (image + draw.normal(0, 0.01, image.shape)).clip(0.001).astype(np.float32)
        writer.write(f"c{i}", f"g{i}", image, water.astype(np.uint8))
    return writer.finish()


def recipe(
    chips: ChipFolder, model: str = "k-means", settings: dict[str, object] | None = None, **keys: object
) -> Recipe:
    """Return a recipe of quick, unchecked runs on the chips."""
    own = {"name": model, "settings": settings or {}}
    data = {"source": str(chips.root), "kind": "chips"}
    return make_recipe({"name": "x", "data": data, "model": own, "sanity_checks": False, **keys})


def trained(order: Recipe, folder: Path) -> tuple[dict[str, object], dict[str, object], nn.Module]:
    """Train the recipe's model; return the facts, the validation figures, and the model of the weights file."""
    facts, table, _ = train_only(order, folder, device="cpu", resume=True, progress=silent)
    return facts, {str(row["metric"]): row["value"] for row in table}, load_model(str(facts["weights"]))


@pytest.mark.parametrize("name", ["k-means", "gaussian-mixture", "region-growing", "split-and-merge"])
def test_training_one_is_a_fit_to_the_training_part(tmp_path: Path, chips: ChipFolder, name: str) -> None:
    order = recipe(chips, name, seed=5)
    facts, figures, model = trained(order, tmp_path)
    assert facts["weights"] == str(tmp_path / "models" / name / "model.safetensors") and "chosen by" not in facts
    assert figures["val.iou.water"] > 0.9
    assert isinstance(model, FittedModel) and model.fitted
    split, record = split_chips(chips, order.split_settings), split_of(model)
    assert record is not None
    for id_ in chips.ids:
        row = chips.row(id_)
        assert id_ in getattr(split, record.part(row.sha256, row.group))
    own = build("model", name)(spec_of_chips(chips))
    assert isinstance(own, FittedModel)
    own.fit(whole_chips(chips, split.train), seed=5)
    assert same_snapshot(snapshot(own.eval()), snapshot(model))


def test_a_threshold_is_trained_by_its_fit_or_written_as_it_is(tmp_path: Path, chips: ChipFolder) -> None:
    for rule in ("otsu", "fixed"):
        order = recipe(chips, "threshold", {"index": "ndwi", "rule": rule, "threshold": 0.4})
        threshold = float(trained(order, tmp_path / rule)[2].threshold)
        assert (threshold == pytest.approx(0.4)) == (rule == "fixed")


def test_a_run_fits_on_corrupted_labels_too_and_attacks_by_what_needs_no_gradient(
    tmp_path: Path, chips: ChipFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[object] = []
    real = RegionNet.fit
    monkeypatch.setattr(RegionNet, "fit", lambda self, *given: (fits.append(self), real(self, *given))[1])
    keys = {
        "baselines": [
            {"name": "region-growing"},
            {"name": "region-growing", "called": "grown-by-index", "settings": {"classes": "ndwi > 0"}},
            {"name": "threshold", "settings": {"index": "ndwi"}},
        ],
        "noises": [{"name": "symmetric", "rates": [0.3]}],
        "examples": 0,
    }
    order = recipe(
        chips,
        "k-means",
        attacks=[{"name": "square", "settings": {"steps": 3}, "threats": ["linf 1% reflectance"]}],
        cost={"ways": ["channels-last"], "size": 64, "repeats": 1},
        **keys,
    )
    done = run_recipe(order, tmp_path, device="cpu", resume=True, progress=silent)
    assert done.page.exists() and (done.run.folder / "costs.json").exists()
    assert len(fits) == 1, "a baseline is fitted once, for its rows and its cost"
    measured = {(row.model, row.method) for row in RecordLog(done.run.folder / "records.jsonl")}
    names = ["k-means", "region-growing", "grown-by-index", "ndwi"]
    assert measured == {(name, method) for name in names for method in ("clean", "square")} | {
        ("k-means@symmetric-0.3", "clean")
    }
    clean, noisy = (
        load_model(done.run.folder / "models" / name / "model.safetensors")
        for name in ("k-means", "k-means@symmetric-0.3")
    )
    assert not torch.equal(clean.log_shares, noisy.log_shares) and torch.equal(
        clean.clusters.centers, noisy.clusters.centers
    )
    network = recipe(
        chips, "unet", **{**keys, "noises": []},
        attacks=[{"name": name, "threats": ["linf 1% reflectance"]} for name in ("fgsm", "transfer")],
        training={"settings": {"epochs": 1, "steps_per_epoch": 1, "patch": 16, "batch": 1, "tensorboard": False}},
    )  # fmt: skip
    done = run_recipe(network, tmp_path, device="cpu", resume=True, progress=silent)
    measured = {(row.model, row.method) for row in RecordLog(done.run.folder / "records.jsonl")}
    assert {method for name, method in measured if name == "region-growing"} == {"clean", "transfer"}
    assert {method for name, method in measured if name == "ndwi"} == {"clean", "fgsm", "transfer"}


def test_attacks_with_gradients_are_refused_in_one_line(tmp_path: Path, chips: ChipFolder) -> None:
    for keys in (
        {"attacks": [{"name": "pgd", "threats": ["linf 1% reflectance"]}]},
        {"suites": [{"name": "seawall", "threats": ["linf 1% reflectance"]}]},
    ):
        with pytest.raises(RecipeError, match="attacks without gradients for k-means, which has none, got"):
            validate_recipe(recipe(chips, **keys))
        validate_recipe(recipe(chips, "gaussian-mixture", **keys))
    facts, _, _ = trained(recipe(chips), tmp_path)
    with pytest.raises(ModelError, match="use a black-box attack: square, transfer or random"):
        api.attack(str(facts["weights"]), chips.root, "linf 1% reflectance", out=tmp_path / "a", sanity_checks=False)
    rows = api.attack(
        str(facts["weights"]), chips.root, "linf 1% reflectance", method=["square", "transfer"], out=tmp_path / "b"
    )
    text = json.dumps(rows.table)
    assert "zero-gradient" in text and "black-box-wins" not in text


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"training": {"settings": {"epochs": 3}}}, "training"),
        ({"training": {"balance": "classes"}}, "training"),
        ({"reference": {}}, "reference"),
        ({"sensitivity": {}}, "sensitivity"),
        ({"faults": [{"name": "random-flips"}]}, "faults"),
        ({"noises": [{"name": "dilate", "rates": [0.1], "objective": {"name": "supervised"}}]}, "noises.objective"),
    ],
)  # fmt: skip
def test_keys_without_effect_on_a_fit_are_refused(
    tmp_path: Path, chips: ChipFolder, keys: dict[str, object], word: str
) -> None:
    with pytest.raises(RecipeError, match=f"{word}: expected no such key for k-means, which is fitted"):
        run_recipe(recipe(chips, **keys), tmp_path, device="cpu", resume=True, progress=silent)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_what_is_no_baseline_and_names_that_meet_are_refused(tmp_path: Path, chips: ChipFolder) -> None:
    with pytest.raises(RecipeError, match="baselines: expected models that need no training by gradients, got linear"):
        run_recipe(recipe(chips, baselines=[{"name": "linear"}]), tmp_path, device="cpu", resume=True, progress=silent)
    twice = [{"name": "region-growing"}, {"name": "region-growing", "settings": {"compare": "seed"}}]
    with pytest.raises(RecipeError, match="'region-growing' twice; give one of two baselines another `called`"):
        run_recipe(recipe(chips, baselines=twice), tmp_path, device="cpu", resume=True, progress=silent)
    assert recipe(chips, baselines=twice[:1]).id == recipe(chips, baselines=[{**twice[0], "called": ""}]).id
    assert recipe(chips, baselines=twice[:1]).id != recipe(chips, baselines=[{**twice[0], "called": "other"}]).id


def test_a_network_is_no_fitted_model(chips: ChipFolder) -> None:
    assert not isinstance(UNet(4, 1)(spec_of_chips(chips)), FittedModel)
    assert isinstance(KMeansClustering()(spec_of_chips(chips)), FittedModel)
    with pytest.raises(UsageError, match="unknown name 'kmeans'; did you mean 'k-means'"):
        validate_recipe(recipe(chips, "kmeans"))
