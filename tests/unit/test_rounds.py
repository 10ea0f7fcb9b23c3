"""Training in rounds: which labels follow from predictions, and that a killed training goes on in the round that it was in."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.loader import PatchFeed
from seawall.data.splits import Split
from seawall.data.unlabelled import SemiSupervisedFeed, chips_without_labels
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, RecipeError, UsageError
from seawall.pipeline import training as pipeline_training
from seawall.pipeline.context import RunContext
from seawall.pipeline.rounds import predicted_chips, round_figures
from seawall.pipeline.run import rounds_of_networks
from seawall.pipeline.training import train_network
from seawall.pipeline.validate import validate_recipe
from seawall.recipe.recipe import make_recipe
from seawall.report.record_index import RecordIndex
from seawall.report.rounds import rounds_section
from seawall.report.run_facts import RunFacts
from seawall.report.run_reader import RunFolder
from seawall.supervision.image_labels import ImageLabels
from seawall.testing.fixtures import linear_model
from seawall.training.round_settings import PaulGanju
from seawall.training.rounds import AcceptedTile, accepted_tiles, changed_share, relabel_within, thin_tiles

QUICK = {"epochs": 2, "steps_per_epoch": 3, "patch": 16, "batch": 2, "lr": 1e-2, "tensorboard": False}
TINY = {"name": "unet", "settings": {"width": 4, "depth": 1}}
BESIDE = {"beside": "unet++", "beside_settings": {"width": 4, "depth": 1}}
SPLIT = Split(("c0", "c1", "c2", "c3"), ("c4",), ("c5",), "by hand")


def water_chips(root: Path, count: int = 6, size: int = 16, bare: tuple[str, ...] = ()) -> ChipFolder:
    """Water on the right of each chip; c1 is all land. Those of `bare` have no label, and every third pair shares a place."""
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0))
    draw = np.random.default_rng(0)
    for i in range(count):
        label = np.zeros((size, size), np.uint8)
        label[:, size if i == 1 else size // 2 :] = 1
        image = np.stack([0.1 + 0.1 * label, 0.3 - 0.25 * label]).astype(np.float32)
        image += draw.normal(0, 0.01, image.shape).astype(np.float32)
        label = np.full_like(label, IGNORE) if f"c{i}" in bare else label
        writer.write(f"c{i}", f"g{i % 6}", image, label, source=f"made {i}")
    return writer.finish()


def run_of(folder: Path, **keys: object) -> RunContext:
    tree = {"name": "x", "model": TINY, **keys}
    return RunContext(make_recipe(tree), folder, "cpu", True, lambda *_: None)


def few(**keys: object) -> dict[str, object]:
    chips = [{"name": "chips", "settings": {"count": 2}}]
    return {"training": {"settings": QUICK, "supervision": chips, **keys}}


def tile(chip: str, water: int, land: int) -> AcceptedTile:
    return AcceptedTile(chip, slice(0, 1), slice(0, water + land), np.array([[1] * water + [0] * land], np.uint8))


def test_a_tile_is_accepted_where_enough_pixels_are_sure() -> None:
    water = np.full((4, 4), 0.02)
    water[0, :2] = 0.5  # two pixels of 16, of the upper left tile, are unsure
    water[:2, 2:] = 0.99
    probability, seen = np.stack([1 - water, water]), np.ones((4, 4), bool)
    found = {
        (t.rows.start, t.cols.start): t.label.tolist()
        for t in accepted_tiles(PaulGanju(tile=2), "a", probability, seen)
    }
    assert found == {(0, 2): [[1, 1], [1, 1]], (2, 0): [[0, 0], [0, 0]], (2, 2): [[0, 0], [0, 0]]}
    assert not list(accepted_tiles(PaulGanju(pixels=14 / 16), "a", probability, seen)), (
        "more than the share, not as much"
    )
    assert len(list(accepted_tiles(PaulGanju(pixels=14 / 16 - 0.01), "a", probability, seen))) == 1
    assert not list(accepted_tiles(PaulGanju(tile=2, confidence=0.99), "a", probability, seen)), "above, not at"
    seen[0, :2] = False
    (whole,) = accepted_tiles(PaulGanju(), "a", probability, seen)
    assert whole.label[0].tolist() == [255, 255, 1, 1], "unseen pixels neither count nor get a label"
    seen[:] = False
    assert not list(accepted_tiles(PaulGanju(pixels=0.0), "a", probability, seen))


def test_tiles_of_land_are_thinned_until_water_has_its_share() -> None:
    tiles = [tile("w0", 4, 6), *(tile(f"l{i}", 0, 10) for i in range(9))]
    kept = thin_tiles(tiles, 1, 0.2, seed=0)
    assert [t.chip for t in kept if t.chip == "w0"] == ["w0"] and len(kept) == 2, "4 of 20 pixels are a fifth"
    assert len(thin_tiles(tiles, 1, 0.1, seed=0)) == 4 and thin_tiles(tiles, 1, 0.04, seed=0) == tiles
    assert [t.chip for t in thin_tiles(tiles, 1, 0.5, seed=0)] == ["w0"], "tiles with water stay, whatever the share"
    assert thin_tiles(tiles[1:], 1, 0.2, seed=0) == [], "a network that accepts land alone teaches nothing"
    assert thin_tiles([], 1, 0.2, seed=0) == []
    order = {t.chip for t in thin_tiles(tiles[::-1], 1, 0.1, seed=0)}
    assert order == {t.chip for t in thin_tiles(tiles, 1, 0.1, seed=0)}, "the order of the chips means nothing"
    drawn = {tuple(t.chip for t in thin_tiles(tiles, 1, 0.1, seed=s)) for s in range(8)}
    assert len(drawn) > 3, "the seed decides"


def test_new_labels_stay_within_the_image_labels() -> None:
    water = np.array([[0.9, 0.8, 0.3, 0.1], [0.6, 0.2, 0.4, 0.05]])
    probability = np.stack([1 - water, water])
    wet, dry = np.full((2, 4), 1, np.uint8), np.zeros((2, 4), np.uint8)
    wet[1, 3] = dry[1, 3] = IGNORE
    plain, tenth = ImageLabels(), ImageLabels(share=2 / 7)
    assert relabel_within(wet, probability, plain).tolist() == [[1, 1, 0, 0], [1, 0, 0, 255]]
    assert relabel_within(dry, probability, plain).tolist() == [[0, 0, 0, 0], [0, 0, 0, 255]], "no water at all"
    assert relabel_within(dry, probability, tenth).tolist() == [[1, 1, 0, 0], [0, 0, 0, 255]], "at most its share"
    low = np.stack([1 - water / 2, water / 2])
    assert relabel_within(wet, low, plain).tolist() == [[1, 0, 0, 0], [0, 0, 0, 255]], "one pixel at least"
    assert relabel_within(wet, low, tenth).tolist() == [[1, 1, 0, 0], [1, 0, 0, 255]], "more than its share"
    tiled = relabel_within(wet, low, ImageLabels(tile=2))
    assert tiled.tolist() == [[1, 0, 0, 0], [0, 0, 1, 255]], "each tile has an image-level label"
    three = np.stack([0.2 * np.ones((2, 4)), water, 0.3 * np.ones((2, 4))])
    assert relabel_within(wet, three, plain)[0].tolist() == [1, 1, 1, 2]
    assert relabel_within(np.full((2, 4), 2, np.uint8), three, plain).tolist() == [[2] * 4] * 2
    assert changed_share([wet], [relabel_within(wet, probability, plain)]) == pytest.approx(4 / 7)


def test_ensembles_are_the_mean_of_logits_over_the_symmetries(tmp_path: Path) -> None:
    """A network that sees every pixel alone has the same logits in every orientation, so the mean is that of the two networks."""
    chips = water_chips(tmp_path)
    one, two = linear_model(), linear_model()
    with torch.no_grad():
        two.weight.mul_(0.5)
    found = {chip: probability for chip, probability, _ in predicted_chips([one, two], chips, ("c0", "c3"))}
    image = torch.from_numpy(chips.read("c3").image)[None]
    expected = ((one(image) + two(image)) / 2).softmax(1)[0]
    assert list(found) == ["c0", "c3"] and np.allclose(found["c3"], expected.detach().numpy(), atol=1e-6)


def test_unlabelled_chips_are_never_of_a_held_out_place_or_image(tmp_path: Path) -> None:
    chips = water_chips(tmp_path, 10, bare=("c3", "c6", "c7", "c8", "c9"))
    split = Split(("c0", "c1"), ("c2",), ("c4", "c5"), "by hand")
    assert chips_without_labels(chips, split) == ("c3", "c6", "c7", "c9"), "c8 is of the place of c2"
    row = replace(chips.row("c6"), sha256=chips.row("c4").sha256)
    copied = ChipFolder(chips.root, chips.header, [row if one.id == "c6" else one for one in chips.rows])
    assert chips_without_labels(copied, split) == ("c3", "c7", "c9"), "c6 is the image of c4"


def test_batches_hold_labelled_and_unlabelled_patches_from_any_step_on(tmp_path: Path) -> None:
    chips = water_chips(tmp_path)
    labelled = PatchFeed(chips, ("c0", "c1"), 8, 2, 6, augment="d4")
    feed = SemiSupervisedFeed(labelled, ("c2", "c3"), 3)
    batches = list(feed(1))
    assert [len(batch) for batch in batches] == [8, 8, 8]
    for batch in batches:
        assert {id_.split("@")[0] for id_ in batch.chips[2:]} <= {"c2", "c3"}
        assert batch.valid[:2].all() and not batch.valid[2:].any() and batch.seen.all()
    alone = list(labelled(1))
    assert all(torch.equal(batch.image[:2], own.image) for batch, own in zip(batches, alone, strict=True))
    later = list(feed.starting_at(1, 2))
    assert len(later) == 1 and later[0].chips == batches[2].chips and torch.equal(later[0].image, batches[2].image)
    with pytest.raises(DataError, match=r"training\.unlabelled: expected training chips without labels, got none"):
        SemiSupervisedFeed(labelled, ())


@pytest.mark.parametrize("objective", ["fixmatch", "mean-teacher"])
def test_a_recipe_learns_from_hidden_chips_and_never_looks_at_held_out_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    chips = water_chips(tmp_path / "chips")
    seen: list[str] = []
    real = pipeline_training.fit

    def spy(model, objective, feed, *given, **named):
        seen.extend(id_.split("@")[0] for batch in feed(0) for id_ in batch.chips)
        return real(model, objective, feed, *given, **named)

    monkeypatch.setattr(pipeline_training, "fit", spy)
    keys = few(objective={"name": objective}, unlabelled=2)
    keys["training"]["settings"] = {**QUICK, "ema": 0.9}  # type: ignore[index]
    run = run_of(tmp_path / "run", **keys)
    train_network(run, chips, SPLIT, run.recipe.networks[0])
    assert set(seen) == {"c0", "c1", "c2", "c3"} and len(seen) == 3 * 2 * 3
    assert "unlabelled" not in make_recipe({"name": "x"}).deciding["training"], "ids of recipes without it stay"
    everything = run_of(tmp_path / "all", training={**keys["training"], "supervision": []})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="expected training chips without labels, got none"):
        train_network(everything, chips, SPLIT, everything.recipe.networks[0])


def test_pseudo_labels_are_of_training_chips_and_a_killed_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips = water_chips(tmp_path / "chips")
    keys = few(
        rounds={"name": "paul-ganju", "settings": {**BESIDE, "confidence": 0.51, "settings": {"epochs": 1, "lr": 1e-7}}}
    )
    keys["training"]["settings"] = {**QUICK, "epochs": 4, "lr": 3e-2}  # type: ignore[index]
    whole = run_of(tmp_path / "whole", **keys)
    train_network(whole, chips, SPLIT, whole.recipe.networks[0])
    home = tmp_path / "whole/models/unet"
    rows = round_figures(home)
    assert [row["round"] for row in rows] == [0, 1, 2] and sum(bool(row["kept"]) for row in rows) == 1
    assert all(row["of_chips"] == 2 and row["cpu_minutes"] > 0 for row in rows[1:])
    assert all(row["share"] >= min(row["known_share"], 0.5) - 1e-9 for row in rows[1:])
    labelled = {path.stem for path in home.glob("rounds/*/labels/*.npy")}
    assert labelled and labelled < {"c0", "c1", "c2", "c3"} and len(labelled) <= 2, "never c4 or c5"
    weights = [load_file(home / f"rounds/{n}/model.safetensors") for n in (0, 1)]
    trained = [name for name in weights[0] if name.endswith("weight")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in trained), (
        "it goes on with them"
    )
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in trained)
    kept = next(n for n, row in enumerate(rows) if row["kept"])
    assert (home / "model.safetensors").read_bytes() == (home / f"rounds/{kept}/model.safetensors").read_bytes()
    epochs = [json.loads(line)["epoch"] for line in (home / "history.jsonl").read_text().splitlines()]
    assert epochs == list(range(4 + 1 + 1))

    def killed(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "train unet, round 1" and done == 2:
            raise KeyboardInterrupt

    cut = replace(run_of(tmp_path / "cut", **keys), progress=killed)
    with pytest.raises(KeyboardInterrupt):
        train_network(cut, chips, SPLIT, cut.recipe.networks[0])
    written = (tmp_path / "cut/models/unet/rounds/0/model.safetensors").stat().st_mtime_ns
    cut = run_of(tmp_path / "cut", **keys)
    train_network(cut, chips, SPLIT, cut.recipe.networks[0])
    assert (tmp_path / "cut/models/unet/rounds/0/model.safetensors").stat().st_mtime_ns == written, "done is done"
    for part in ("rounds/1", "rounds/2", "."):
        one, other = (load_file(tmp_path / at / "models/unet" / part / "model.safetensors") for at in ("whole", "cut"))
        assert all(torch.equal(one[name], other[name]) for name in one), part
    fresh = [
        {k: v for k, v in row.items() if k != "cpu_minutes"} for row in round_figures(tmp_path / "cut/models/unet")
    ]
    assert fresh == [{k: v for k, v in row.items() if k != "cpu_minutes"} for row in rows]


def test_without_an_accepted_tile_the_rounds_end(tmp_path: Path) -> None:
    chips = water_chips(tmp_path / "chips")
    run = run_of(
        tmp_path / "run",
        **few(rounds={"name": "paul-ganju", "settings": {**BESIDE, "confidence": 0.9999999, "rounds": 5}}),
    )
    train_network(run, chips, SPLIT, run.recipe.networks[0])
    rows = round_figures(tmp_path / "run/models/unet")
    assert [(row["round"], row.get("accepted")) for row in rows] == [(0, None), (1, 0)] and rows[0]["kept"]
    full = run_of(tmp_path / "full", training={"settings": QUICK, "rounds": {"name": "paul-ganju", "settings": BESIDE}})
    with pytest.raises(DataError, match="expected training chips without labels for paul-ganju, got none"):
        train_network(full, chips, SPLIT, full.recipe.networks[0])


def test_the_loop_on_image_labels_relabels_until_little_changes(tmp_path: Path) -> None:
    chips = water_chips(tmp_path / "chips")
    labels = [{"name": "image-labels"}]
    section = {"settings": {**QUICK, "epochs": 8, "lr": 3e-2}, "supervision": labels}
    loop = {"name": "relabel-loop", "settings": {"rounds": 3, "stop": 0.0}}
    run = run_of(tmp_path / "run", training={**section, "rounds": loop})
    train_network(run, chips, SPLIT, run.recipe.networks[0])
    home = tmp_path / "run/models/unet"
    rows = round_figures(home)
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["share"] == pytest.approx(0.75), (
        "three of four chips have water, all of their pixels are labelled so"
    )
    for number in (0, 1, 2, 3):
        planes = {path.stem: np.load(path) for path in home.glob(f"rounds/{number}/labels/*.npy")}
        assert set(planes) == {"c0", "c1", "c2", "c3"}
        assert not planes["c1"].any(), "a chip of land has no water"
        assert all((planes[id_] == 1).any() for id_ in ("c0", "c2", "c3")), "a chip of water keeps some"
    before, after = ({p.stem: np.load(p) for p in home.glob(f"rounds/{n}/labels/*.npy")} for n in (0, 1))
    changed = sum(int((before[id_] != after[id_]).sum()) for id_ in before) / (4 * 16 * 16)
    assert rows[1]["changed"] == pytest.approx(changed)
    shares = [sum(float((np.load(p) == 1).mean()) / 4 for p in home.glob(f"rounds/{n}/labels/*.npy")) for n in (0, 1)]
    assert [row["share"] for row in rows[1:3]] == pytest.approx(shares)
    early = {"name": "relabel-loop", "settings": {"rounds": 3, "stop": 0.99}}
    short = run_of(tmp_path / "short", training={**section, "rounds": early})
    train_network(short, chips, SPLIT, short.recipe.networks[0])
    assert [row["round"] for row in round_figures(tmp_path / "short/models/unet")] == [0]
    assert rows[0]["changed"] < 0.99
    dense = run_of(tmp_path / "dense", training={"settings": QUICK, "rounds": loop})
    with pytest.raises(UsageError, match="expected image-level labels for relabel-loop, got none"):
        train_network(dense, chips, SPLIT, dense.recipe.networks[0])


def test_recipes_that_cannot_be_are_refused() -> None:
    for training, says in (
        ({"rounds": {"name": "paul-ganju", "settings": {"rouds": 1}}}, "rouds"),
        ({"rounds": {"name": "paul-ganju", "settings": {"settings": {"epoch": 1}}}}, "epoch"),
        ({"rounds": {"name": "relabel-loop", "settings": {"stop": 1.0}}}, "stop"),
        ({"rounds": {"name": "relabel"}}, "rounds.name"),
        ({"rounds": {"name": "relabel-loop"}, "pretraining": {}}, "no pretraining beside rounds"),
        ({"rounds": {"name": "relabel-loop"}, "start": "x"}, "no start beside rounds"),
        ({"rounds": {"name": "relabel-loop"}, "devices": 2}, "one process for a training with rounds"),
        ({"unlabelled": 1, "devices": 2}, "one process for a training with unlabelled"),
        ({"pretraining": {"masking": {"block": 4}}}, "no masking for patch-labels"),
        ({"pretraining": {"task": "reconstruction", "share": 0.2}}, "no share for reconstruction"),
        ({"pretraining": {"task": "reconstruction", "masking": {"blok": 4}}}, "blok"),
    ):
        with pytest.raises((RecipeError, UsageError), match=says):
            make_recipe({"name": "x", "training": training})
    with pytest.raises(RecipeError, match="expected an objective that learns without labels, got 'supervised'; choose one of distillation, festa, fixmatch"):  # fmt: skip
        validate_recipe(make_recipe({"name": "x", "training": {"unlabelled": 1}}))
    with pytest.raises(UsageError, match=r"unet\+\+\+"):
        rounds = {"name": "paul-ganju", "settings": {"beside": "unet+++"}}
        validate_recipe(make_recipe({"name": "x", "training": {"rounds": rounds}}))


def test_pre_training_sees_every_training_chip_and_is_billed(tmp_path: Path) -> None:
    chips = water_chips(tmp_path / "chips")
    task = {"task": "reconstruction", "masking": {"block": 4}, "settings": {"epochs": 3}}
    run = run_of(tmp_path / "run", **few(pretraining=task))
    assert make_recipe(run.recipe.model_dump(mode="json")).id == run.recipe.id, "the canonical text is read again"
    train_network(run, chips, SPLIT, run.recipe.networks[0])
    home = tmp_path / "run/models/unet"
    first, then = (load_file(path / "model.safetensors") for path in (home / pipeline_training.PRETRAINING, home))
    assert first["network.head.weight"].shape[0] == 3 and then["network.head.weight"].shape[0] == 2
    rows = [json.loads(line) for line in (home / "pretraining/history.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["cpu_seconds"] > 0 for row in rows)
    assert make_recipe({"name": "x", "training": {"pretraining": {"share": 0.2}}}).deciding["training"]["pretraining"] == {
        "objective": None, "settings": {}, "of": "", "share": 0.2,
    }  # fmt: skip


def test_the_report_has_a_row_per_round_and_the_columns_that_there_are(tmp_path: Path) -> None:
    chips = water_chips(tmp_path / "chips")
    settings = {**BESIDE, "confidence": 0.51, "rounds": 1}
    run = run_of(tmp_path / "run", **few(rounds={"name": "paul-ganju", "settings": settings}))
    train_network(run, chips, SPLIT, run.recipe.networks[0])
    facts = RunFacts.model_validate({"rounds": rounds_of_networks(run)})
    assert facts.rounds.keys() == {"unet"} and [one.round for one in facts.rounds["unet"]] == [0, 1]
    index = RecordIndex((), "water")
    section = rounds_section(cast(RunFolder, SimpleNamespace(facts=facts)), index)
    assert section is not None
    (table,) = section.blocks
    heads, rows = [name for name, _ in table.head], table.rows
    assert heads[0] == "Round" and {"Chips", "Share, known", "Validation", "CPU-minutes"} <= set(heads)
    assert "Changed" not in heads and len(rows) == 2 and all(len(row) == len(heads) for row in rows)
    assert sum("kept" in str(row[0]) for row in rows) == 1
    loop = RunFacts.model_validate({"rounds": {"unet": [{"round": 0, "share": 0.75, "changed": 0.2, "val": 0.5}]}})
    (other,) = rounds_section(cast(RunFolder, SimpleNamespace(facts=loop)), index).blocks
    assert [name for name, _ in other.head] == ["Round", "Share, trained", "Changed", "Validation"]
    assert [cell.text for cell in other.rows[0][1:]] == ["75.0\u202f%", "20.0\u202f%", "0.500"]
    assert rounds_section(cast(RunFolder, SimpleNamespace(facts=RunFacts())), index) is None
