"""A recipe's orders reach the work, and an order without effect is refused."""

from pathlib import Path

import numpy as np
import pytest

from seawall import registry
from seawall.data.source_detection import source_fields
from seawall.errors import RecipeError, UsageError
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips
from seawall.pipeline.run import train_only
from seawall.pipeline.validate import SOURCE_KEYS, validate_data, validate_recipe
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.recipe.sections import DataSection
from tiny import SIZE, marks, numbers, pair


def run_of(recipe: Recipe, folder: Path) -> RunContext:
    return RunContext(recipe, folder, "cpu", True, lambda stage, done, total, note: None)


def test_a_recipe_says_what_files_do_not(tmp_path: Path) -> None:
    label = np.where(marks() == 1, 7, 0)
    for i in range(2):
        stored = numbers(i) // 4  # a quarter of a digital number per step
        pair(tmp_path / "in", "all", f"north_{i}", data=stored, label=label, seed=i, image_kw={"bands": ()})
    data = {
        "source": str(tmp_path / "in"), "names": ["B03", "B08"], "group": "/(north)_", "gain": 4e-4, "offset": 0.0,
        "label_map": {0: 0, 7: 1},
    }  # fmt: skip
    chips, failed = load_chips(run_of(make_recipe({"name": "x", "data": data}), tmp_path), tmp_path / "chips")
    assert not failed
    assert (chips.bands, list(chips.groups())) == (("B03", "B08"), ["north"])
    chip = chips.read(chips.ids[0])
    np.testing.assert_allclose(chip.image[0][chip.seen], (numbers(0) // 4)[0][chip.seen] * 4e-4, atol=1e-6)
    assert chip.label.sum() == SIZE * SIZE // 2


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("chips", "bands", ("B03",)), ("chips", "labels", "ndwi > 0"), ("chips", "frame", 512), ("simulated", "gain", 1e-4),
        ("simulated", "label_map", {1: 0}), ("pairs", "count", 9), ("pairs", "select", "a"), ("index", "group", "(.*)_"),
        ("index", "labels", "cover"), ("sen1floods11", "gsd_m", 20.0), ("sen1floods11", "clouds", False),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_an_error(kind: str, key: str, value: object) -> None:
    validate_data(DataSection(), kind)
    with pytest.raises(RecipeError, match=rf"data.{key}: expected no such key .* no effect"):
        validate_data(DataSection(**{key: value}), kind)


def test_every_key_of_a_source_names_a_field_of_some_source() -> None:
    fields = {name for entry in registry.entries("source") for name in source_fields(entry.name)}
    assert set(SOURCE_KEYS.values()) <= fields and set(SOURCE_KEYS) <= set(DataSection.model_fields)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "pair"}, r"data.kind: unknown source 'pair'; did you mean 'pairs'"),
        ({"kind": "chip"}, "did you mean 'chips'"),
        ({"kind": "simulated clouts=true"}, "unknown setting 'clouts' of simulated; did you mean 'clouds'"),
        ({"kind": "simulated scenes=4"}, "unknown setting 'scenes'"),
    ],
)
def test_an_unknown_source_is_refused_with_a_guess_before_any_work(data: dict[str, str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        validate_recipe(make_recipe({"name": "x", "data": data}))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "index"}, "data.kind: expected auto or simulated for simulated scenes, got 'index'"),
        ({"kind": "simulated size=64", "size": 128}, "data.size: expected it once, got 128"),
        ({"source": "7", "count": 9}, "data.count: expected no such key"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(data: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        load_chips(run_of(make_recipe({"name": "x", "data": data}), tmp_path), tmp_path)


def test_settings_beside_the_kind_reach_the_source(tmp_path: Path) -> None:
    data = {"kind": "simulated size=64 under_clouds=true", "count": 3, "bands": ["B03", "B08"]}
    chips, _ = load_chips(run_of(make_recipe({"name": "x", "data": data}), tmp_path), tmp_path)
    assert {(row.height, row.valid_share) for row in chips.rows} == {(64, 1.0)}, "labels count under clouds"


@pytest.mark.parametrize(
    "noise",
    [
        {"name": "erode", "rates": [1.5]},
        {"name": "erode", "rates": [0.1], "settings": {"kernl": 3}},
        {"name": "erode", "rates": [0.1], "vary": "budgt"},
        {"name": "thirds", "rates": [-0.1]},
    ],
)
def test_a_wrong_noise_is_found_before_any_training(noise: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        validate_recipe(make_recipe({"name": "x", "noises": [noise]}))


def test_every_noise_can_be_vetted() -> None:
    validate_recipe(
        make_recipe(
            {
                "name": "x",
                "noises": [
                    {"name": "erode", "rates": [0.1]},
                    {"name": "thirds", "rates": [0.1]},
                    {"name": "dilate", "rates": [30], "settings": {"of": "meters"}},
                ],
            }
        )
    )


def test_a_threat_on_each_band_is_read_before_any_work() -> None:
    attacks = [{"name": "pgd", "threats": ["linf 1% reflectance bands=each"]}]
    validate_recipe(make_recipe({"name": "x", "attacks": attacks}))
    with pytest.raises(UsageError, match="bands or sources of the chips"):
        validate_recipe(
            make_recipe({"name": "x", "attacks": [{"name": "pgd", "threats": ["linf 1% reflectance bands=every"]}]})
        )


def test_a_training_refuses_what_it_would_not_do(tmp_path: Path) -> None:
    recipe = make_recipe({"name": "x", "noises": [{"name": "erode", "rates": [0.1]}]})
    with pytest.raises(RecipeError, match="noises"):
        train_only(recipe, tmp_path, device="cpu", resume=True, progress=lambda stage, done, total, note: None)
