"""Recipes: canonical, content-addressed, and strict about typos."""

from pathlib import Path

import pytest

from seawall.errors import RecipeError
from seawall.recipe.recipe import Recipe, make_recipe, read_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_canonical_text_reads_back_to_the_same_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(
        write(tmp_path, 'name = "x"\n[data]\ncount = 5\n[[attacks]]\nname = "pgd"\nthreats = ["linf 1% reflectance"]\n')
    )
    again = read_recipe(write(tmp_path, recipe.to_toml()))
    assert again == recipe
    assert again.id == recipe.id


def test_id_follows_content_not_spelling(tmp_path: Path) -> None:
    plain = read_recipe(write(tmp_path, 'name = "x"\nseed = 0\n'))
    assert plain.id == Recipe(name="x").id
    assert plain.id != Recipe(name="x", seed=1).id


def test_overrides_reach_nested_keys_and_lists(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\n[[attacks]]\nname = "pgd"\nthreats = ["a"]\n')
    recipe = read_recipe(path, ["training.settings.epochs=3", "attacks.0.name=fgsm", "data.bands=['B03', 'B08']"])
    assert recipe.training.settings == {"epochs": 3}
    assert recipe.attacks[0].name == "fgsm"
    assert recipe.data.bands == ("B03", "B08")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\nsed = 1\n', "did you mean 'seed'"),
        ('name = "x"\n[data]\nsorce = "y"\n', "did you mean 'source'"),
        ('name = "x"\ninterrogation = true\n', "unknown key 'interrogation'; rename it to 'sanity_checks'"),
        ('name = "x"\nseed = "many"\n', "seed"),
        (
            'name = "x"\n[split]\nval = 0.6\ntest = 0.6\n',
            "split.test: expected a share that with val = 0.6 leaves some",
        ),
        ("name = ", "expected TOML"),
        ("seed = 1\n", "name"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value).replace("\\n", "")


@pytest.mark.parametrize("change", ["noequals", "=3", "seed.x=1", "attacks.7.name=pgd"])
def test_a_wrong_override_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(RecipeError):
        read_recipe(write(tmp_path, 'name = "x"\nseed = 1\nattacks = []\n'), [change])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        read_recipe(tmp_path / "nowhere.toml")


def test_recipe_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        make_recipe({"name": "x"}).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Lakes"}, {"note": "by hand"}, {"published": "table 1"}, {"examples": 7}, {"scene": {"size": 256}},
        {"training": {"settings": {"save_s": 5.0, "tensorboard": False, "workers": 0}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_only_said_or_shown_is_not_in_the_id(change: dict[str, object]) -> None:
    assert make_recipe({"name": "x", **change}).id == Recipe(name="x").id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"data": {"count": 5}}, {"split": {"val": 0.1}}, {"model": {"name": "dense-unet"}},
        {"training": {"settings": {"lr": 0.1}}}, {"training": {"devices": 2}}, {"training": {"augment": "none"}},
        {"baselines": [{"name": "threshold"}]}, {"attacks": [{"name": "pgd", "threats": ["a"]}]},
        {"suites": [{"name": "sea", "threats": ["a"]}]}, {"noises": [{"name": "dilate", "rates": [0.1]}]},
        {"noises": [{"name": "dilate", "called": "wide", "rates": [0.1]}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_a_number_is_in_the_id(change: dict[str, object]) -> None:
    ids = {Recipe(name="x").id, make_recipe({"name": "x", **change}).id, make_recipe({"name": "x", "seed": 9}).id}
    assert len(ids) == 3


def test_networks_are_named_by_noise_rate_and_way() -> None:
    noises = [
        {"name": "dilate", "rates": [0, 0.1]},
        {"name": "dilate", "called": "dilate-class", "rates": [0.1], "settings": {"of": "class"}},
        {"name": "dilate", "rates": [0.1], "objective": {"name": "supervised", "settings": {"loss": "ce + dice"}}},
        {"name": "dilate", "rates": [0.1], "objective": {"name": "forward"}},
    ]
    names = [network.name for network in make_recipe({"name": "x", "noises": noises}).networks]
    assert names == [
        "unet", "unet@dilate-0", "unet@dilate-0.1", "unet@dilate-class-0.1", "unet@dilate-0.1+ce+dice", "unet@dilate-0.1+forward",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"noises": [{"name": "dilate", "rates": [0.1]}, {"name": "dilate", "rates": [0.1], "settings": {"of": "class"}}]}, "unet@dilate-0.1 twice"),
        ({"noises": [{"name": "dilate", "rates": [0.1, 0.1]}]}, "unet@dilate-0.1 twice"),
        ({"noises": [{"name": "dilate", "rates": [0.1, 0.10000000001]}]}, "unet@dilate-0.1 twice"),
        ({"noises": [{"name": "dilate"}]}, "noises.0.rates"),
        ({"noises": [{"name": "dilate", "rates": [0.1], "settings": {"budget": 0.2}}]}, "budget in `rates` alone"),
        ({"noises": [{"name": "dilate", "called": "../x", "rates": [0.1]}]}, "called"),
        ({"attacks": [{"name": "pgd", "threats": ["a"]}] * 2}, "another `called`"),
        ({"suites": [{"name": "sea", "threats": ["a"]}, {"name": "sea", "settings": {"steps": 9}, "threats": ["a"]}]}, "suite sea once"),
        ({"suites": [{"name": "sea", "called": "quick", "threats": ["a"]}]}, "leave it out"),
        ({"training": {"devices": 0}}, "training.devices"),
    ],
)  # fmt: skip
def test_orders_that_would_undo_each_other_are_refused(keys: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe({"name": "x", **keys})
