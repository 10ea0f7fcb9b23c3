"""A recipe with a keyed transform: three networks, the adaptive attacks, the report, and a key that is in no file of the run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch

from seawall import api
from seawall.data.index import ChipHeader
from seawall.data.writer import ChipWriter
from seawall.errors import ModelError, RecipeError, RunError, UsageError
from seawall.keyed_transforms.keys import make_key_file, public_key, read_key
from seawall.metrics.consistency import BLACK_BOX, TRANSFER
from seawall.models.keyed import KeyedModel, KeyEnsemble
from seawall.models.unet import UNet
from seawall.models.weights import load_model, save_model, split_of
from seawall.pipeline.keyed import adaptive_cases, models_without_key, network_key, protected
from seawall.pipeline.trained_model import load_network, open_target
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.records import KEYED_ATTACKS, read_records
from seawall.report.record_index import RecordIndex
from seawall.report.run_reader import read_run
from seawall.result import Result
from seawall.types import ModelSpec

THREATS = ["linf 0.5% reflectance", "linf 1% reflectance"]
ATTACKS = set(KEYED_ATTACKS) - {"key-known-slope"}
"""Those on a differentiable transform."""


def chips_at(root: Path) -> Path:
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0))
    draw = np.random.default_rng(0)
    rows, cols = np.mgrid[:30, :34]
    for i in range(6):
        water = np.hypot(rows - draw.integers(8, 22), cols - draw.integers(8, 24)) < 9
        image = np.where(water, np.array([0.08, 0.05])[:, None, None], np.array([0.06, 0.1])[:, None, None])
        image = (image + draw.normal(0, 0.01, image.shape)).clip(0.001).astype(np.float32)
        seen = np.ones((30, 34), bool)
        seen[:3, :5] = False
        writer.write(f"c{i}", f"g{i}", np.where(seen, image, 0), water.astype(np.uint8), seen=seen, source=f"made {i}")
    writer.finish()
    return root


def tree_of(chips: Path, key: str, /, **keyed: object) -> dict[str, object]:
    return {
        "name": "locked", "sanity_checks": False, "examples": 0,
        "data": {"source": str(chips), "kind": "chips"},
        "model": {"name": "unet", "settings": {"width": 4, "depth": 1}},
        "training": {"settings": {"epochs": 2, "steps_per_epoch": 3, "patch": 16, "batch": 2, "tensorboard": False}},
        "keyed": {
            "transform": "shuffle", "settings": {"block": 4}, "key": key, "threats": THREATS, "steps": 2, "queries": 3, "guesses": 2,
            "wrong_keys": 2, **keyed,
        },
        "baselines": [{"name": "threshold", "settings": {"index": "ndwi"}}],
    }  # fmt: skip


def run_of(chips: Path, key: Path, out: Path, /, **keyed: object) -> Result:
    path = out.parent / "recipe.toml"
    path.write_text(tomli_w.dumps(tree_of(chips, str(key), **keyed)))
    return api.run(path, out=out, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Chips, the file of a key, and the folder of a finished run."""
    root = tmp_path_factory.mktemp("keyed")
    chips, key = chips_at(root / "chips"), root / "water.key"
    make_key_file(key)
    return chips, key, Path(str(run_of(chips, key, root / "runs").facts["report"])).parent


def test_a_keyed_network_is_never_shown_without_its_adaptive_attacks(made: tuple[Path, Path, Path]) -> None:
    rows = [r for r in read_records(made[2] / "records.jsonl") if r.metric == "tp" and r.chip]
    for model, missing in (("unet", set()), ("plain", {"transfer-plain"})):
        for threat in THREATS:
            methods = {r.method for r in rows if r.model == model and r.threat == threat}
            assert methods >= ATTACKS - missing, (model, threat)
    clean = {r.model for r in rows if r.method == "clean"}
    assert clean == {
        "unet",
        "plain",
        "other-key",
        "ndwi",
        "unet, no transform",
        "unet, wrong key 1",
        "unet, wrong key 2",
    }
    page = (made[2] / "report.html").read_text(encoding="utf-8")
    section = page[page.index('id="keyed"') : page.index('id="robustness"')]
    assert all(
        f">{name}<" in section.replace("\n", "") or name in section for name in (*ATTACKS, "U-Net, no transform")
    )
    facts = read_run(made[2]).facts.keyed
    assert (facts.transform, facts.block, facts.threats, len(facts.without_key)) == ("shuffle", 4, tuple(THREATS), 3)


def test_every_table_cell_of_the_section_was_measured(made: tuple[Path, Path, Path]) -> None:
    page = (made[2] / "report.html").read_text(encoding="utf-8")
    section = page[page.index('id="keyed"') : page.index('id="robustness"')]
    assert section.count("not measured in this run") == 2, "only attacks on the plain network's own images are left out"


def test_the_key_is_in_no_file_of_the_run(made: tuple[Path, Path, Path]) -> None:
    secret = read_key(str(made[1])).secret
    files = [path for path in made[2].rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        held = path.read_bytes()
        assert secret not in held and secret.hex().encode() not in held.lower(), path


def test_the_surrogate_and_the_guesses_know_nothing_of_the_key(made: tuple[Path, Path, Path]) -> None:
    chips, key, folder = made
    recipe = make_recipe(tree_of(chips, str(key)))
    secret = read_key(str(key))
    mine, plain, other = (network_key(recipe, network) for network in recipe.networks)
    assert mine == secret and plain is None and other not in (None, secret)
    models = {
        network.name: load_model(
            folder / "models" / network.name / "model.safetensors", key=network_key(recipe, network)
        )
        for network in recipe.networks
    }
    cases = adaptive_cases(recipe, models)
    assert set(cases) == {"unet", "plain"} and {c.method for c in cases["unet"]} == ATTACKS
    surrogates = {c.method: getattr(c.attack, "surrogate", None) for c in cases["unet"]}
    trained_other = surrogates["transfer-other-key"]
    assert surrogates["transfer-plain"] is models["plain"] and isinstance(trained_other, KeyedModel)
    assert trained_other.network is models["other-key"].network, "the surrogate has weights of its own"
    guessed, network = surrogates["guessed-keys"], models["unet"]
    assert isinstance(guessed, KeyEnsemble) and isinstance(network, KeyedModel) and len(guessed.members) == 2
    orders = [member.transform.order for member in (*guessed.members, network)]  # type: ignore[union-attr]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert all(member.network is network.network for member in guessed.members), "the adversary has these weights"  # type: ignore[union-attr]
    keyless = models_without_key(recipe, models)
    assert keyless["unet, no transform"].transform is None and len(keyless) == 3
    assert not adaptive_cases(Recipe(name="x"), models) and not models_without_key(Recipe(name="x"), models)


def test_an_encryption_is_attacked_with_the_slope_of_its_code_table_too(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    recipe = make_recipe(tree_of(made[0], str(made[1]), transform="format-preserving"))
    spec = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
    models = {n.name: protected(recipe, n, UNet(4, 1)(spec)).eval() for n in recipe.networks}
    cases = adaptive_cases(recipe, models)
    assert {c.method for c in cases["unet"]} == set(KEYED_ATTACKS)
    assert {c.method for c in cases["plain"]} == set(KEYED_ATTACKS) - {"key-known-slope", "transfer-plain"}
    [sloped] = {id(c.attack): c.attack for c in cases["unet"] if c.method == "key-known-slope"}.values()
    surrogate = sloped.surrogate  # type: ignore[union-attr]
    assert surrogate.transform.sloped and not models["unet"].transform.sloped
    image = torch.rand(1, 2, 8, 8)
    assert torch.equal(surrogate(image), models["unet"](image)), "the key and the forward pass are those of the network"
    save_model(tmp_path / "m.safetensors", models["unet"])
    assert load_network(tmp_path / "m.safetensors", None, "cpu", str(made[1])).transform.sloped, (
        "`seawall attack` knows it too"
    )


def test_the_same_command_goes_on_and_another_key_does_not(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    chips, key, folder = made
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs / folder.name)
    before = (runs / folder.name / "records.jsonl").read_bytes()
    moved = tmp_path / "moved.key"
    shutil.copy(key, moved)
    run_of(chips, moved, runs)  # where the key lies decides nothing
    assert (runs / folder.name / "records.jsonl").read_bytes() == before
    make_key_file(tmp_path / "new.key")
    with pytest.raises(RunError, match=r"keyed\.check"):
        run_of(chips, tmp_path / "new.key", runs)


def test_verbs_need_the_key(made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chips, key, folder = made
    weights = folder / "models" / "unet" / "model.safetensors"
    with pytest.raises(ModelError, match="give the key's file or env:NAME as --key"):
        api.evaluate(weights, chips, out=tmp_path / "e")
    with pytest.raises(ModelError, match="another one"):
        (tmp_path / "wrong").write_text(public_key("wrong").secret.hex())
        api.attack(weights, chips, THREATS[0], key=str(tmp_path / "wrong"), out=tmp_path / "a")
    found = api.evaluate(weights, chips, out=tmp_path / "e", key=str(key), part="test", device="cpu")
    index = RecordIndex(read_run(folder).records, "water")
    assert found.table[1]["iou.pooled"] == index.value(("unet", "clean", ""), "iou.pooled", "water")
    monkeypatch.setenv("WATER_KEY", key.read_text().strip())
    again = api.attack(
        weights,
        chips,
        THREATS[0],
        method=["fgsm"],
        key="env:WATER_KEY",
        out=tmp_path / "a",
        part="test",
        device="cpu",
        sanity_checks=False,
    )
    assert len(again.table) >= 2
    stressed = api.stress(
        weights, chips, corruption=["haze"], severity=[1.0], key=str(key), out=tmp_path / "s", device="cpu"
    )
    assert stressed.table
    target = open_target(weights, chips, "test", "cpu", str(key))
    assert split_of(target.net) is not None and target.facts["chips"] == 2, (
        "the split travels with the copy that is attacked"
    )
    model = load_model(weights, key=read_key(str(key)))
    with pytest.raises(UsageError, match="a module holds its own transform"):
        api.attack(model, chips, THREATS[0], key=str(key), out=tmp_path / "b", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="leave it out"):
        api.evaluate(folder / "models" / "plain" / "model.safetensors", chips, out=tmp_path / "p", key=str(key))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"transform": "shufle"}, "did you mean 'shuffle'"),
        ({"settings": {"block": 0}}, "side of 1 to 64 pixels, got 0"),
        ({"settings": {"side": 4}}, "unknown setting 'side'"),
        ({"threats": []}, "keyed.threats"),
        ({"threats": ["linf 1 dB"]}, "dB"),
        ({"range": [0.5, 0.5]}, "two rising numbers"),
        ({"key": "env:NOT_THERE"}, "variable NOT_THERE, got none"),
        ({"key": "nowhere.key"}, "No such file"),
        ({"key": "0f" * 32}, "got hexadecimal digits"),
        ({"keys": "x"}, "unknown key"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(
    made: tuple[Path, Path, Path], tmp_path: Path, change: dict[str, object], what: str
) -> None:
    with pytest.raises(UsageError, match=what) as bad:
        run_of(made[0], made[1], tmp_path / "runs", **change)
    assert "0f0f" not in str(bad.value)
    assert not list((tmp_path / "runs").rglob("model.safetensors"))


def test_sections_that_would_mix_networks_are_refused(made: tuple[Path, Path, Path]) -> None:
    chips, key, _ = made
    for more, what in (
        ({"reference": {}}, "no reference beside keyed"),
        ({"noises": [{"name": "dilate", "rates": [0.1]}]}, "no noises beside keyed"),
        ({"attacks": [{"name": "pgd", "called": "key-known", "threats": THREATS}]}, "no attack called 'key-known'"),
    ):
        with pytest.raises(RecipeError, match=what):
            make_recipe(tree_of(chips, str(key)) | more)
    with pytest.raises(RecipeError, match="keyed: expected nothing of it in a training"):
        api.train(chips, changes=[f'keyed={{transform="shuffle", key="{key}", threats=["linf 1% reflectance"]}}'])


def test_recipes_without_a_keyed_transform_keep_their_ids() -> None:
    assert "keyed" not in Recipe(name="mine").deciding
    with_key = make_recipe({"name": "mine", "keyed": {"transform": "shuffle", "key": "a.key", "threats": THREATS}})
    assert "key" not in with_key.deciding["keyed"] and json.dumps(with_key.deciding["keyed"])
    assert with_key.id != Recipe(name="mine").id


def test_cases_are_of_the_kinds_that_consistency_checks_compare() -> None:
    assert ATTACKS - {"key-known"} == (BLACK_BOX | TRANSFER) & ATTACKS
