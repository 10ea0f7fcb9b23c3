"""Every verb says the same of which chips were learned from, chosen by and held out."""

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.index import ChipHeader
from seawall.data.selection import SEEN_IN_TRAINING, select_chips
from seawall.data.splits import labelled_ids, record_split, split_chips
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, RecipeError, UsageError
from seawall.geo.raster import Grid
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import load_model, save_model, set_split, split_of
from seawall.pipeline.context import RunContext
from seawall.pipeline.corrupt_labels import select_part
from seawall.pipeline.data import make_split
from seawall.pipeline.run import train_only
from seawall.recipe.recipe import make_recipe
from seawall.records import read_records
from seawall.result import no_progress
from seawall.split_record import SplitRecord, SplitSettings
from seawall.types import ModelSpec

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
THREAT = "linf 1% reflectance"
SMALL = {"epochs": 1, "steps_per_epoch": 2, "patch": 16, "batch": 2, "tensorboard": False}

SETTINGS = [
    SplitSettings(),
    SplitSettings(val=0.1, test=0.1),
    SplitSettings(seed=5, test=0.2),
    SplitSettings("block", 700.0, 0.25, 0.25, 1),
]


def make_folder(root: Path, count: int = 14, unlabelled: int = 3, size: int = 16) -> ChipFolder:
    """Chips of one group each, in a row on the ground, of unlike water shares; the last ones have no label."""
    writer, rng = ChipWriter(root, HEADER), np.random.default_rng(0)
    for i in range(count):
        label = (rng.random((size, size)) < rng.uniform(0.05, 0.9)).astype(np.uint8)
        water = np.where(label == 1, 0.02, 0.3) + rng.normal(0, 0.01, (size, size))
        image = np.stack([0.1 + rng.normal(0, 0.01, water.shape), water]).astype(np.float32)
        marks = np.full_like(label, 255) if i >= count - unlabelled else label
        grid = Grid(size, size, Affine(10, 0, 500000 + 400 * i, 0, -10, 4000000), "EPSG:32633")
        writer.write(f"c{i:02d}", f"g{i:02d}", image, marks, grid=grid, source=f"made {i}")
    return writer.finish()


def changes_of(settings: SplitSettings) -> list[str]:
    return [
        f"split.by={settings.by}", f"split.block_m={settings.block_m}", f"split.val={settings.val}",
        f"split.test={settings.test}", f"seed={settings.seed}",
    ]  # fmt: skip


def recipe_of(chips: ChipFolder, settings: SplitSettings, **more: object):
    split = {"by": settings.by, "block_m": settings.block_m, "val": settings.val, "test": settings.test}
    data = {"source": str(chips.root), "kind": "chips"}
    model = {"name": "unet", "settings": {"width": 4, "depth": 1}}
    training = {"settings": SMALL}
    tree = {"name": "x", "seed": settings.seed, "data": data, "split": split, "model": model, "training": training}
    return make_recipe(tree | more)


def weights_of(chips: ChipFolder, settings: SplitSettings, path: Path) -> Path:
    """Weights that carry the split of a folder as a training would leave it."""
    model = WaterIndexThreshold("ndwi")(SPEC)
    set_split(model, record_split(chips, split_chips(chips, settings)))
    save_model(path, model)
    return path


def measured(out: Path) -> set[str]:
    return {row.chip for row in read_records(out / "records.jsonl") if row.chip}  # the sanity checks are of no chip


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> ChipFolder:
    return make_folder(tmp_path_factory.mktemp("split") / "chips")


@pytest.fixture(scope="module")
def trained(chips: ChipFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SplitSettings]:
    """Weights of a real training with a split of its own."""
    settings, out = SplitSettings(val=0.2, test=0.4, seed=3), tmp_path_factory.mktemp("split") / "run"
    recipe = recipe_of(chips, settings)
    facts, _, _ = train_only(recipe, out, device="cpu", resume=True, progress=no_progress)
    return Path(str(facts["weights"])), settings


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_is_the_same_for_every_verb(chips: ChipFolder, tmp_path: Path, settings: SplitSettings, part: str):
    run = RunContext(recipe_of(chips, settings), tmp_path, "cpu", True, no_progress)
    expected = set(make_split(run, chips).parts()[part])
    weights = weights_of(chips, settings, tmp_path / "m.safetensors")
    api.evaluate(weights, chips.root, out=tmp_path / "e", part=part)
    api.attack(weights, chips.root, THREAT, method=["fgsm"], out=tmp_path / "a", part=part, seed=9)
    api.corrupt(
        chips.root, noise=["symmetric 30%"], out=tmp_path / "c", part=part, changes=changes_of(settings), seed=4
    )
    lines = (tmp_path / "c" / "corruptions.jsonl").read_text().splitlines()
    touched = {row["chip"] for row in map(json.loads, lines) if row["touched"]}
    assert measured(tmp_path / "e") == measured(tmp_path / "a") == touched == expected
    assert not expected & {"c11", "c12", "c13"}, "chips without a label are in no part"


def test_weights_carry_what_they_learned_from(chips: ChipFolder, trained: tuple[Path, SplitSettings]):
    weights, settings = trained
    split = split_chips(chips, settings)
    record = split_of(weights)
    assert record is not None and record == split_of(load_model(weights)) and record.settings == settings
    for part, ids in split.parts().items():
        assert {record.part(chips.row(id_).sha256, "") for id_ in ids} == {part}
        assert set(record.groups[part]) == {chips.row(id_).group for id_ in ids}


def test_by_default_what_the_weights_have_seen_is_left_out(chips: ChipFolder, trained, tmp_path: Path):
    weights, settings = trained
    done = api.evaluate(weights, chips.root, out=tmp_path / "e")
    split = split_chips(chips, settings)
    assert measured(tmp_path / "e") == set(split.test)
    assert done.facts["chips"] == len(split.test) and "held out" in str(done.facts["part"])
    assert str(settings) in str(done.facts["split"])
    assert {row["flags"] for row in done.table} == {""}
    api.attack(weights, chips.root, THREAT, method=["fgsm"], out=tmp_path / "a", seed=9)
    assert measured(tmp_path / "a") == set(split.test)


@pytest.mark.parametrize("verb", ["evaluate", "attack"])
def test_seen_chips_carry_a_flag_wherever_they_go(chips: ChipFolder, trained, tmp_path: Path, verb: str):
    weights, settings = trained
    if verb == "evaluate":
        done = api.evaluate(weights, chips.root, out=tmp_path, part="all")
    else:
        done = api.attack(weights, chips.root, THREAT, method=["fgsm"], out=tmp_path, part="all")
    split = split_chips(chips, settings)
    for row in (row for row in read_records(tmp_path / "records.jsonl") if row.chip):
        assert (SEEN_IN_TRAINING in row.flags) == (row.chip in {*split.train, *split.val}), row
    assert measured(tmp_path) == set(chips.ids)
    assert all(SEEN_IN_TRAINING in str(row["flags"]) for row in done.table if row.get("method") != "sanity checks")
    assert "learned from" in str(done.facts[f"flag {SEEN_IN_TRAINING}"])


def test_a_run_measures_the_chips_that_the_verbs_call_test(chips: ChipFolder, tmp_path: Path):
    settings = SplitSettings(val=0.3, test=0.3, seed=2)
    recipe = tmp_path / "x.toml"
    recipe.write_text(recipe_of(chips, settings, baselines=[{"name": "threshold"}]).to_toml())
    done = api.run(recipe, out=tmp_path / "runs")
    home = Path(str(done.facts["report"])).parent
    api.evaluate(home / "models/unet/model.safetensors", chips.root, out=tmp_path / "e")
    assert measured(home) == measured(tmp_path / "e") == set(split_chips(chips, settings).test)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_folder_corrupted_by_parts_keeps_its_split(chips: ChipFolder, tmp_path: Path, settings: SplitSettings):
    split = split_chips(chips, settings)
    api.corrupt(chips.root, noise=["symmetric 45%"], out=tmp_path / "c", part="train", changes=changes_of(settings))
    made = ChipFolder.open(tmp_path / "c")
    assert made.header.split == record_split(chips, split)
    for seed in (0, 7):
        assert split_chips(made, SplitSettings(seed=seed)).parts() == split.parts()
        run = RunContext(make_recipe({"name": "x", "seed": seed}), tmp_path, "cpu", True, no_progress)
        assert make_split(run, made).parts() == split.parts()
    for id_ in (*split.val, *split.test):
        assert np.array_equal(made.read(id_).label, chips.read(id_).label)
    assert any(not np.array_equal(made.read(id_).label, chips.read(id_).label) for id_ in split.train)
    again, kept = select_part(made, "test")
    assert set(again) == set(split.test) and kept == made.header.split


def test_a_recipe_that_asks_for_another_split_than_the_folder_keeps_is_refused(chips: ChipFolder, tmp_path: Path):
    changes = ["split.test=0.4"]
    api.corrupt(chips.root, noise=["symmetric 45%"], out=tmp_path / "c", part="train", changes=changes)
    made = ChipFolder.open(tmp_path / "c")
    assert split_chips(made, SplitSettings(test=0.4)).parts() == split_chips(made).parts()
    for other, says in (
        (SplitSettings(test=0.2), r"split.test: expected 0.4, by which the labels of .* were corrupted, got 0.2"),
        (SplitSettings(val=0.1), "split.val: expected 0.2"),
        (SplitSettings("block"), "split.by: expected group"),
    ):
        with pytest.raises(UsageError, match=says):
            train_only(recipe_of(made, other), tmp_path / "r", device="cpu", resume=True, progress=no_progress)
        with pytest.raises(UsageError, match=says):
            select_part(made, "train", other)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_folder_corrupted_everywhere_splits_as_its_source(chips: ChipFolder, tmp_path: Path, settings: SplitSettings):
    api.corrupt(chips.root, noise=["symmetric 45%"], out=tmp_path / "c")
    made = ChipFolder.open(tmp_path / "c")
    assert made.header.split is None
    assert made.row("c00").class_counts != chips.row("c00").class_counts
    assert split_chips(made, settings) == split_chips(chips, settings)
    api.corrupt(made.root, noise=["symmetric 45%"], out=tmp_path / "d")
    assert split_chips(ChipFolder.open(tmp_path / "d"), settings) == split_chips(chips, settings)


def test_weights_know_the_chips_of_a_corrupted_or_renamed_folder(chips: ChipFolder, tmp_path: Path):
    settings = SplitSettings(seed=4)
    record = split_of(weights_of(chips, settings, tmp_path / "m.safetensors"))
    assert record is not None
    api.corrupt(chips.root, noise=["symmetric 45%"], out=tmp_path / "c", part="train", seed=8)
    assert set(select_chips(ChipFolder.open(tmp_path / "c"), record, "test").ids) == set(
        split_chips(chips, settings).test
    )
    other = ChipWriter(tmp_path / "renamed", HEADER)
    for i, id_ in enumerate(chips.ids):
        chip = chips.read(id_)
        marks = np.where(chip.valid, chip.label, 255).astype(np.uint8)
        other.write(f"x{99 - i}", "one place", chip.image, marks, grid=chip.grid)
    found = select_chips(other.finish(), record, "test")
    assert {f"c{99 - int(id_[1:]):02d}" for id_ in found.ids} == set(split_chips(chips, settings).test)
    assert "by their group alone" not in found.split


def test_another_image_of_a_known_group_counts_as_that_group(chips: ChipFolder, tmp_path: Path):
    record = record_split(chips, split_chips(chips))
    writer = ChipWriter(tmp_path / "again", HEADER)
    for row in chips.rows[:11]:
        writer.write(row.id, row.group, np.full((2, 16, 16), 0.2, np.float32), np.ones((16, 16), np.uint8))
    writer.write("new", "elsewhere", np.full((2, 16, 16), 0.3, np.float32), np.ones((16, 16), np.uint8))
    again = writer.finish()
    found = select_chips(again, record, "test")
    assert found.ids == split_chips(chips).test and "11 of them known by their group alone" in found.split
    assert set(select_chips(again, record, "auto").ids) == {*split_chips(chips).test, "new"}
    assert ", 1 new" in found.split


def test_the_image_decides_before_the_group_and_learning_before_the_rest():
    record = SplitRecord({"train": ("a" * 16,), "test": ("b" * 16,)}, {"train": ("g",), "test": ("g", "h")})
    assert record.part("b" * 64, "g") == "test" and record.part("c" * 64, "g") == "train"
    assert record.part("c" * 64, "h") == "test" and record.part("c" * 64, "i") == ""


def test_what_is_not_known_is_said(chips: ChipFolder, tmp_path: Path):
    save_model(tmp_path / "m.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    assert split_of(tmp_path / "m.safetensors") is None
    done = api.evaluate(tmp_path / "m.safetensors", chips.root, out=tmp_path / "e")
    assert "do not say what they learned from" in str(done.facts["split"]) and done.facts["chips"] == len(chips)
    done = api.evaluate(tmp_path / "m.safetensors", chips.root, out=tmp_path / "f", part="test")
    assert measured(tmp_path / "f") == set(split_chips(chips).test)
    assert "do not say what they learned from" in str(done.facts["split"])
    stranger = SplitRecord({"train": ("0" * 16,)}, {"train": ("far away",)})
    found = select_chips(chips, stranger, "auto")
    assert found.ids == chips.ids and not found.seen and "shares no image and no group" in found.split
    with pytest.raises(DataError, match=r"expected chips of part 'test', got none.*--part all"):
        select_chips(chips, stranger, "test")
    everything = record_split(chips, split_chips(chips))
    learned = SplitRecord({"train": sum(everything.chips.values(), ())}, {})
    with pytest.raises(DataError, match=r"part 'auto', got none.*with a flag"):
        select_chips(chips, learned, "auto")


def test_an_audit_of_labels_by_weights_that_learned_from_them_is_flagged(chips: ChipFolder, tmp_path: Path):
    weights = weights_of(chips, SplitSettings(), tmp_path / "m.safetensors")
    done = api.audit_labels(chips.root, weights=weights, out=tmp_path / "a", worst=1)
    split = split_chips(chips)
    seen = len(split.train) + len(split.val)
    assert str(done.facts[f"flag {SEEN_IN_TRAINING}"]).startswith(f"{seen} of {len(chips)} chips")
    save_model(tmp_path / "plain.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    done = api.audit_labels(chips.root, weights=tmp_path / "plain.safetensors", out=tmp_path / "b", worst=1)
    assert f"flag {SEEN_IN_TRAINING}" not in done.facts


def test_a_batch_has_no_parts(chips: ChipFolder, tmp_path: Path):
    from seawall.data.loader import whole_chips

    batch = next(iter(whole_chips(chips, chips.ids[:2])))
    with pytest.raises(UsageError, match="all or auto for a Batch"):
        api.attack(WaterIndexThreshold("ndwi")(SPEC), batch, THREAT, method=["fgsm"], part="test")


def test_the_corrupt_verb_refuses_what_has_no_effect(chips: ChipFolder, tmp_path: Path):
    with pytest.raises(UsageError, match="expected a part beside another split"):
        api.corrupt(chips.root, noise=["symmetric 5%"], out=tmp_path / "c", changes=["split.test=0.4"])
    with pytest.raises(UsageError, match="expected split\\.by, split\\.val"):
        api.corrupt(chips.root, noise=["symmetric 5%"], out=tmp_path / "c", part="train", changes=["model.name=unet"])


def test_a_training_that_was_split_otherwise_is_not_gone_on_with(chips: ChipFolder, tmp_path: Path):
    recipe = recipe_of(chips, SplitSettings(val=0.2, test=0.3))
    train_only(recipe, tmp_path, device="cpu", resume=True, progress=no_progress)
    other = recipe_of(chips, SplitSettings(val=0.3, test=0.2))
    assert make_split(RunContext(recipe, tmp_path, "cpu", True, no_progress), chips).train
    from seawall.errors import RunError

    with pytest.raises(RunError, match=r"split\.val"):
        train_only(other, tmp_path, device="cpu", resume=True, progress=no_progress)


def test_without_a_validation_part_the_rest_trains_and_the_last_weights_are_kept(chips: ChipFolder, tmp_path: Path):
    recipe = recipe_of(chips, SplitSettings(val=0.0, test=0.3))
    facts, table, _ = train_only(recipe, tmp_path / "a", device="cpu", resume=True, progress=no_progress)
    assert facts["val"] == 0 and facts["train"] + facts["test"] == len(labelled_ids(chips)) and table == []  # type: ignore[operator]
    assert facts["kept"] == "the last"
    found = api.evaluate(str(facts["weights"]), chips.root, out=tmp_path / "rows")
    assert found.table and "flag chips-seen-in-training" not in found.facts
    for section, says in (
        ({"settings": {"monitor": "val.iou.water"}}, r"training\.monitor: expected none without validation chips"),
        ({"robustness": {"threat": THREAT}}, r"training\.robustness: expected none without validation chips"),
    ):
        tree = recipe.model_dump(mode="json", exclude_none=True) | {"training": section}
        with pytest.raises(UsageError, match=says):
            train_only(make_recipe(tree), tmp_path / "b", device="cpu", resume=True, progress=no_progress)


def test_a_training_may_have_all_chips_and_a_run_needs_a_test_part(chips: ChipFolder, tmp_path: Path):
    recipe = recipe_of(chips, SplitSettings(val=0.0, test=0.0))
    facts, _, _ = train_only(recipe, tmp_path / "a", device="cpu", resume=True, progress=no_progress)
    assert (facts["train"], facts["val"], facts["test"]) == (len(labelled_ids(chips)), 0, 0)
    path = tmp_path / "r.toml"
    path.write_text(recipe.to_toml())
    with pytest.raises(RecipeError, match=r"split\.test: expected a share above 0 for a run"):
        api.run(path, out=tmp_path / "runs")


def test_the_real_chips_agree(real_chips: Path, tmp_path: Path):
    chips = curate_chips(real_chips, tmp_path / "hls", select="hls_").folder
    settings = SplitSettings(val=0.15, test=0.35)  # those of recipes/hls.toml
    split = split_chips(chips, settings)
    record = record_split(chips, split)
    assert select_chips(chips, record, "test").ids == split.test == select_chips(chips, record, "auto").ids
    noise, changes = ["erode 10% exact=true of=class"], ["split.val=0.15", "split.test=0.35"]
    api.corrupt(chips.root, noise=noise, out=tmp_path / "c", part="train", changes=changes)
    made = ChipFolder.open(tmp_path / "c")
    assert split_chips(made).parts() == split.parts() == split_chips(made, SplitSettings(seed=3)).parts()
    assert set(select_chips(made, record, "test").ids) == set(split.test)
    changed = {row.id for row in made.rows if row.label_sha256 != chips.row(row.id).label_sha256}
    assert changed and changed <= set(split.train)


def test_blocks_are_split_by_block(chips: ChipFolder):
    settings = SplitSettings("block", 1700.0, 0.25, 0.25, 1)
    parts = {id_: part for part, ids in split_chips(chips, settings).parts().items() for id_ in ids}
    x = {id_: chips.row(id_).grid.point(8, 8)[0] for id_ in parts}
    blocks = {id_: int(x[id_] // 1700) for id_ in parts}
    assert len(set(blocks.values())) < len(parts)
    assert len({(blocks[id_], parts[id_]) for id_ in parts}) == len(set(blocks.values()))
