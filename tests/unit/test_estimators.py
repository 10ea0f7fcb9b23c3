"""Estimators of uncertainty are reached from a recipe and from `seawall predict`."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from seawall.api import predict
from seawall.errors import RecipeError, UsageError
from seawall.geo.raster import Grid, write_cog
from seawall.models.unet import UNet
from seawall.models.weights import load_model, save_model
from seawall.pipeline.evaluation import uncertainty_facts
from seawall.pipeline.validate import check_distinct_names, validate_recipe
from seawall.recipe.recipe import make_recipe
from seawall.records import Record
from seawall.report.record_index import RecordIndex
from seawall.report.run_facts import EstimatorFacts, RunFacts
from seawall.report.summary import best_baseline
from seawall.types import ModelSpec
from seawall.uncertainty.tta import TTA

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = UNet(4, 1, dropout=0.2)(SPEC)
    model.standardize.fit([0.2, 0.2], [0.1, 0.1])
    save_model(tmp_path / "net.safetensors", model.eval())
    return tmp_path / "net.safetensors"


def recipe(*names: str, **keys: object):
    return make_recipe({"name": "x", "uncertainty": [{"name": name} for name in names], **keys})


def test_unknown_and_repeated_estimators_are_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="did you mean 'tta'"):
        validate_recipe(recipe("ttaa"))
    with pytest.raises(RecipeError, match="each name once"):
        check_distinct_names(recipe("tta", "tta"), SPEC)
    with pytest.raises(RecipeError, match=r"training\.members above 0"):
        validate_recipe(recipe("ensemble"))
    with pytest.raises(RecipeError, match=r"training\.settings\.snapshots above 0"):
        validate_recipe(recipe("snapshot-ensemble"))
    with pytest.raises(RecipeError, match=r"split\.val = 0"):
        validate_recipe(
            make_recipe({"name": "x", "split": {"val": 0}, "uncertainty": [{"name": "tta", "temperature": "global"}]})
        )
    with pytest.raises(RecipeError, match="rename it to 'uncertainty'"):
        make_recipe({"name": "x", "estimators": []})


def test_every_network_of_the_labels_has_its_estimators_and_its_members() -> None:
    made = recipe("tta", "ensemble", training={"members": 1}, noises=[{"name": "dilate", "rates": [0.1]}])
    assert [network.name for network in made.networks] == [
        "unet", "unet.member-1", "unet@dilate-0.1", "unet@dilate-0.1.member-1",
    ]  # fmt: skip
    assert list(uncertainty_facts(made)) == [
        "unet+tta", "unet+ensemble", "unet@dilate-0.1+tta", "unet@dilate-0.1+ensemble",
    ]  # fmt: skip
    seeds = {network.seed(made.seed) for network in made.networks}
    assert len(seeds) == 2 and made.networks[0].seed(7) == 7


def test_predict_maps_with_the_estimator_and_does_not_mix_it_with_the_plain_network(
    tmp_path: Path, weights: Path
) -> None:
    image = np.random.default_rng(0).uniform(0.02, 0.4, (2, 64, 64)).astype(np.float32)
    write_cog(
        tmp_path / "s.tif", image, Grid(64, 64, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633"),
        bands=SPEC.bands, nodata=float("nan"),
    )  # fmt: skip

    def probability(**settings: str) -> np.ndarray:
        predict(weights, tmp_path / "s.tif", out=tmp_path / "maps", **settings)
        with rasterio.open(tmp_path / "maps/s.water.tif") as file:
            return file.read(1)

    plain, mean = probability(), probability(uncertainty="tta")
    with torch.no_grad():
        want = TTA()(load_model(weights).eval())(torch.from_numpy(image)[None]).softmax(1)[0, 1]
    scale = 1 / 250
    assert np.abs(mean * scale - want.numpy()).max() < 0.01
    assert np.abs(plain.astype(int) - mean.astype(int)).max() > 2
    assert np.array_equal(probability(), plain)


def test_an_unknown_estimator_is_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(UsageError, match="mc-dropout"):
        predict(weights, tmp_path / "s.tif", out=tmp_path / "maps", uncertainty="mc-dropuot")


def test_the_report_names_the_network_and_the_estimator_and_takes_neither_for_a_baseline() -> None:
    facts = {name: EstimatorFacts(**fact) for name, fact in uncertainty_facts(recipe("tta")).items()}
    counts = {"tp": 40.0, "fp": 5.0, "fn": 5.0}
    rows = [
        Record("r", model, "clean", "", "c0", "g", metric, "water", value, 50)
        for model in ("unet", "unet+tta") for metric, value in counts.items()
    ]  # fmt: skip
    index = RecordIndex(rows, "water", uncertain=facts)
    assert [index.display_name(model) for model in index.models] == ["U-Net", "U-Net with tta"]
    run = SimpleNamespace(trained={"unet": object()}, recipe=None, facts=RunFacts())
    assert best_baseline(run, index) is None  # type: ignore[arg-type]
