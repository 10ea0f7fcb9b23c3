"""Fooled and preserved shares: by hand, at the ends of eps, where the class is absent, and on the page."""

from pathlib import Path

import numpy as np
import pytest
import torch

from seawall.attacks.fischer import Fischer
from seawall.attacks.pgd import PGD
from seawall.attacks.target import Hide
from seawall.errors import RecipeError
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.evaluate import evaluate_model, write_examples
from seawall.evaluation.rows import fooled_and_preserved
from seawall.metrics.aggregate import aggregate_records
from seawall.pipeline.evaluation import example_cases
from seawall.pipeline.validate import attack_cases, validate_recipe
from seawall.recipe.recipe import make_recipe, read_recipe
from seawall.records import Record, RecordLog
from seawall.report.attack_effects import hiding_blocks
from seawall.report.record_index import RecordIndex
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec

COVER = ("water", "wet soil", "bare soil", "grass", "forest", "built-up", "snow", "cloud")
RECIPES = Path(__file__).parents[2] / "recipes"


def test_shares_by_hand() -> None:
    before = torch.tensor([[[2, 2, 0, 1]], [[0, 0, 1, 1]]])
    after = torch.tensor([[[0, 2, 0, 2]], [[0, 1, 1, 1]]])
    valid = torch.tensor([[[True, True, True, True]], [[True, True, True, False]]])
    assert fooled_and_preserved(before, after, valid, 2) == [(1, 2, 1, 2), (0, 0, 2, 3)]


def measured(tmp_path: Path, eps: float, classes: int = 3, batch: Batch | None = None) -> list[Record]:
    batch = ground_batch(classes=classes) if batch is None else batch
    log = RecordLog(tmp_path / f"{eps}.jsonl")
    case = Case("fischer", Fischer("water"), ThreatModel("linf", eps))
    return evaluate_model(
        linear_model(classes=classes), [batch], log=log, recipe="r", name="m", attacks=[CLEAN_CASE, case]
    )


def shares(rows: list[Record]) -> dict[str, float | None]:
    return {
        r.metric: r.value
        for r in aggregate_records(rows)
        if r.klass == "water" and r.method == "fischer" and "." in r.metric
    }


def test_nothing_at_eps_0_and_all_of_it_far_out(tmp_path: Path) -> None:
    none, all_ = shares(measured(tmp_path, 0.0)), shares(measured(tmp_path, 0.6))
    assert (none["fooled.per_chip"], none["preserved.per_chip"], none["fooled.std"]) == (0.0, 1.0, 0.0)
    assert all_["fooled.per_chip"] > 0.95 and all_["preserved.per_chip"] > 0.95  # type: ignore[operator]


def test_chips_without_the_class_are_skipped_and_counted(tmp_path: Path) -> None:
    batch, model = ground_batch(classes=2), linear_model()
    land = (model(batch.image).argmax(1) == 0) & batch.valid
    valid = torch.stack([batch.valid[0], land[1], batch.valid[2]])
    rows = measured(tmp_path, 0.3, 2, Batch(batch.image, batch.label, batch.seen, valid, batch.chips))
    mine = {(r.chip, r.metric): r for r in rows if r.metric in ("fooled", "preserved")}
    assert mine["ground1", "fooled"].value is None and mine["ground1", "fooled"].n == 0
    found = shares(rows)
    assert found["fooled.skipped"] == 1 and found["fooled.per_chip"] == pytest.approx(
        (mine["ground0", "fooled"].value + mine["ground2", "fooled"].value) / 2  # type: ignore[operator]
    )
    assert not any(r.metric == "fooled" and r.method == "clean" for r in rows)


def test_other_attacks_have_no_such_rows_and_resume_knows(tmp_path: Path) -> None:
    first = measured(tmp_path, 0.1)
    assert any(r.metric == "hiding.pixels" for r in first)
    assert measured(tmp_path, 0.1) == []


def test_the_page_shows_both_panels(tmp_path: Path) -> None:
    rows = [row for eps in (0.1, 0.3) for row in measured(tmp_path, eps)]
    titles = [block.title for block in hiding_blocks(RecordIndex(rows, "water"), "m")]  # type: ignore[union-attr]
    assert len(titles) == 3 and "fooled" in titles[0] and "preserved" in titles[1]
    assert hiding_blocks(RecordIndex([r for r in rows if r.method == "clean"], "water"), "m") == []


@pytest.mark.parametrize("name", ["seed1-figure-2", "seed1-figure-2-water"])
def test_recipes_of_figure_2(name: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    validate_recipe(recipe)
    assert {a.settings["noise"] for a in recipe.attacks} == {"whole", "restricted", "inside"}


def test_one_attack_twice_needs_two_names() -> None:
    order = {"name": "pgd", "threats": ["linf 1% reflectance"]}
    with pytest.raises(RecipeError, match="called"):
        make_recipe({"name": "x", "attacks": [order, order]})
    assert make_recipe({"name": "x", "attacks": [order, {**order, "called": "pgd again"}]}).attacks[1].called


def test_the_example_of_a_hidden_class_has_its_target_and_the_restricted_noise(tmp_path: Path) -> None:
    batch, model = ground_batch(classes=3, size=16), linear_model(classes=3)
    threat = ThreatModel("linf", 0.06)
    whole, part = Case("whole", Fischer("water"), threat), Case("part", Fischer("water", noise="restricted"), threat)
    assert example_cases([CLEAN_CASE, whole, part, Case("pgd", PGD(), threat)]) == (whole, part)
    assert example_cases([CLEAN_CASE, whole])[1] is None
    write_examples(model, [batch], whole, tmp_path, name="unet", chips=[batch.chips[1]], restricted=part)
    [path] = tmp_path.glob("*.npz")
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    clean = model(batch.image)
    water = model.spec.klass("water")
    hidden = (clean.argmax(1) == water)[1]
    assert np.array_equal(arrays["target"], Hide("water").class_map(model.spec, batch, clean)[1].numpy())
    assert (arrays["target"] != water).all() and (arrays["pred_clean"][hidden] == water).all()
    assert (arrays["noise_restricted"][~hidden] == 128).all() and (arrays["noise_restricted"] != 128).any()
    assert (arrays["noise"][~hidden & batch.seen[1]] != 128).any(), "the whole image is touched by the other noise"
    after = model(part.image(model, batch, 0)).argmax(1)[1]
    assert np.array_equal(arrays["pred_restricted"], after.numpy())


def test_an_attack_without_a_target_has_neither(tmp_path: Path) -> None:
    batch = ground_batch(size=16)
    write_examples(linear_model(), [batch], Case("pgd", PGD(), ThreatModel("linf", 0.02)), tmp_path, name="unet")
    for path in tmp_path.glob("*.npz"):
        with np.load(path) as held:
            assert not {"target", "noise_restricted", "pred_restricted"} & set(held.files)


def test_the_recipe_of_figure_2_shows_whole_and_restricted_noise() -> None:
    recipe = read_recipe(RECIPES / "seed1-figure-2.toml")
    spec = ModelSpec(("B02", "B03", "B04", "B08", "B11", "B12"), COVER, "reflectance", 10.0)
    shown, restricted = example_cases([CLEAN_CASE, *attack_cases(recipe, spec)])
    assert (shown.method, restricted and restricted.method) == ("fischer, whole", "fischer, restricted")
    assert shown.threat_text == "linf 8% reflectance" == (restricted.threat_text if restricted else "")
