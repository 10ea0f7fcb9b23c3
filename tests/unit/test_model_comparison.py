"""Several models in one run: what each is trained by, what it costs, and where that is shown."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from seawall import api
from seawall.errors import RecipeError, UsageError
from seawall.inference.cost import count_macs, measure_costs
from seawall.models.clustering import KMeansClustering
from seawall.models.linear import PixelClassifier
from seawall.models.unet import UNet
from seawall.recipe.recipe import make_recipe, read_recipe
from seawall.recipe.sections import MethodSection
from seawall.records import read_records
from seawall.report.page import write_report
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0)
QUICK = {"epochs": 1, "steps_per_epoch": 2, "batch": 2, "patch": 32, "tensorboard": False}
SMALL = {"name": "unet", "settings": {"width": 2, "depth": 1}}
TREE = {
    "name": "side-by-side",
    "data": {"count": 6, "size": 64, "bands": ["B03", "B08"]},
    "split": {"val": 0.2, "test": 0.4},
    "model": SMALL,
    "training": {"settings": QUICK},
    "models": [
        {"name": "k-means", "settings": {"clusters": 4}},
        {"name": "linear", "training": {"lr": 0.5}},
        {**SMALL, "called": "unet-balanced", "balance": "classes", "objective": {"name": "supervised", "settings": {"loss": "dice"}}},
    ],
    "cost": {"ways": ["contiguous", "channels-last"], "size": 64, "repeats": 2},
    "examples": 0,
}  # fmt: skip


def untrained(clusters: bool = True) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    network, linear = UNet(4, 2)(SPEC).eval(), PixelClassifier()(SPEC).eval()
    network.standardize.fit([0.2] * 3, [0.1] * 3)
    means = KMeansClustering(clusters=2)(SPEC)
    means.fit([Batch.of(torch.rand(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16)))])
    return {"unet": network, "linear": linear} | ({"k-means": means} if clusters else {})


def test_further_models_are_networks_of_the_recipe_with_settings_of_their_own() -> None:
    recipe = make_recipe(TREE)
    plain = make_recipe({key: value for key, value in TREE.items() if key not in ("models", "cost")})
    assert [network.name for network in recipe.networks] == ["unet", "k-means", "linear", "unet-balanced"]
    sections = {network.name: recipe.training_of(network) for network in recipe.networks}
    assert sections["unet"] == plain.training
    assert sections["linear"].settings == {**QUICK, "lr": 0.5} and sections["linear"].balance == "area"
    assert sections["unet-balanced"].balance == "classes"
    assert recipe.networks[3].objective == MethodSection(name="supervised", settings={"loss": "dice"})
    assert recipe.id != plain.id == make_recipe({**plain.model_dump(mode="json", exclude_none=True), "models": []}).id
    assert make_recipe({**TREE, "cost": {"repeats": 9}}).id == recipe.id, "costs change no row"
    assert make_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_a_run_trains_measures_and_bills_every_model_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(make_recipe(TREE).to_toml())
    done = api.run(path, out=tmp_path / "runs")
    folder = Path(str(done.facts["report"])).parent
    names = {"unet", "k-means", "linear", "unet-balanced"}
    clean = {r.model for r in read_records(folder / "records.jsonl") if r.metric == "boundary.pixels"}
    assert clean == names
    costs = json.loads((folder / "costs.json").read_text())
    assert set(costs["models"]) == names
    for name, cost in costs["models"].items():
        assert cost["training_minutes"] > 0 and cost["seconds"]["channels-last"] > 0
        assert ("contiguous" in cost["seconds"]) == (name != "k-means")
    page = (folder / "report.html").read_text()
    for text in ("What the models cost", "Boundary IoU", "water: recall", "land: F1", "k-means, PyTorch, contiguous"):
        assert text in page, text
    stamp = (folder / "costs.json").stat().st_mtime_ns
    api.run(path, out=tmp_path / "runs")
    assert (folder / "costs.json").stat().st_mtime_ns == stamp, "measured again without a reason"
    path.write_text(make_recipe({**TREE, "cost": {"ways": ["channels-last"], "size": 64, "repeats": 1}}).to_toml())
    api.run(path, out=tmp_path / "runs")
    assert json.loads((folder / "costs.json").read_text())["settings"]["repeats"] == 1
    (folder / "costs.json").write_text("{")
    write_report(folder)
    assert "costs.json: not whole" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": [{"name": "unett"}]}, "unknown name 'unett'"),
        ({"models": [SMALL]}, "each network once, but unet twice"),
        ({"models": [{"name": "linear", "training": {"lr": -1}}]}, "lr"),
        ({"models": [{"name": "k-means", "training": {"lr": 1.0}}]}, "name, called and settings alone for k-means"),
        ({"models": [{"name": "k-means", "balance": "classes"}]}, "name, called and settings alone for k-means"),
        ({"cost": {"ways": ["tensorrt"]}}, "'tensorrt' is none"),
        ({"models": [{"name": "linear", "training": {"monitor": "val.iou.ice"}}]}, "training.monitor.*'val.iou.ice'"),
        ({"reference": {"settings": {"epoch": 3}}}, "unknown key 'reference.settings.epoch'; did you mean 'epochs'"),
    ],
)
def test_wrong_sections_are_refused_before_the_training(change, says: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, RecipeError), match=says):
        path = tmp_path / "r.toml"
        path.write_text(make_recipe({**TREE, **change}).to_toml())
        api.run(path, out=tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*/models"))


def test_macs_and_parameters_by_hand() -> None:
    models = untrained()
    found = measure_costs(models, ["channels-last"], size=64, repeats=1)
    assert found["linear"].macs_per_pixel == 3 * 2 and found["linear"].parameters == 3 * 2 + 2
    # 3x3 from 3 to 4 and 4 to 4; at a quarter of the pixels 4 to 8 and 8 to 8; at 1/16 8 to 16 and 16 to 16; back up
    down = 9 * (3 * 4 + 4 * 4) + 9 * (4 * 8 + 8 * 8) / 4 + 9 * (8 * 16 + 16 * 16) / 16
    up = 4 * (16 * 8) / 16 + 9 * (16 * 8 + 8 * 8) / 4 + 4 * (8 * 4) / 4 + 9 * (8 * 4 + 4 * 4) + 4 * 2
    assert count_macs(models["unet"]) == down + up
    assert found["k-means"].macs_per_pixel is None and found["k-means"].parameters == 0
    assert (found["k-means"].reach, found["linear"].reach, found["unet"].reach) == (0, 0, models["unet"].reach)


def test_every_way_is_timed_and_one_that_is_not_possible_says_why() -> None:
    models = untrained()
    image = torch.rand(1, 3, 40, 40)
    before = models["unet"](image)
    found = measure_costs(models, ["contiguous", "channels-last", "onnx", "openvino"], size=64, repeats=2)
    assert (
        set(found["unet"].seconds) == {"contiguous", "channels-last", "onnx", "openvino"} and not found["unet"].failed
    )
    assert all(0 < s <= found["unet"].slowest[way] for way, s in found["unet"].seconds.items())
    assert "one layout" in found["k-means"].failed["contiguous"] and "channels-last" in found["k-means"].seconds
    assert torch.equal(models["unet"](image), before) and models["unet"].memory_format == torch.channels_last


def test_the_layout_changes_no_logit() -> None:
    network = untrained()["unet"]
    image = torch.rand(2, 3, 33, 41)
    before = network(image)
    network.lay_out(torch.contiguous_format)
    weight = network.network.stem[0][0].weight
    assert weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)
    assert (network(image) - before).abs().max() < 1e-5


def test_the_shipped_recipe_names_every_segmenter() -> None:
    from seawall import registry

    recipe = read_recipe(Path("recipes/lecture.toml"))
    beside = {"index-unet", "anchored-unet", "twins"}  # of other documents: hardening and label noise
    beside |= {"ratio-unet", "ratio-unet++"}  # of two polarizations alone
    named = {recipe.model.name, *(one.name for one in recipe.models)}
    assert {entry.name for entry in registry.entries("model")} - beside == named
