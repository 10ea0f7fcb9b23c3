"""The stages of a run: what decides is in the id, labels are corrupted once and alike, and the weights are chosen rightly."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seawall import api
from seawall.chip_context import ChipContext
from seawall.data import label_planes
from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.label_planes import stored_label
from seawall.data.splits import Split
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, RecipeError, RunError, SeawallError, UsageError
from seawall.label_noise.build import (
    ChipNoise,
    CorruptedLabels,
    build_noise,
    parse_noise_settings,
)
from seawall.models.weights import load_model
from seawall.pipeline import provenance
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips
from seawall.pipeline.provenance import record_environment
from seawall.pipeline.reference import hardening_facts
from seawall.pipeline.run import check_same_experiment, train_only
from seawall.pipeline.train import few_chips_model
from seawall.pipeline.training import (
    corrupted_labels,
    known_labels,
    measure_label_noise,
    train_network,
    training_settings,
)
from seawall.pipeline.validate import check_distinct_names
from seawall.pipeline.validation_metrics import metric_names, validation_metrics
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.recipe.sections import RobustnessSection
from seawall.registry import build
from seawall.training.checkpoint import describe_differences
from seawall.training.configuration import MEAN_IOU
from seawall.types import LabelNoise, ModelSpec
from tiny import pair

COVER = ("water", "wet soil", "bare", "grass", "crop", "forest", "built", "rock")
PAIR = ("land", "water")
TINY = {"model": {"name": "unet", "settings": {"width": 4, "depth": 1}}}
QUICK = {"epochs": 2, "steps_per_epoch": 2, "patch": 16, "batch": 2, "tensorboard": False}


def chips_of(root: Path, classes: tuple[str, ...] = COVER, count: int = 6, size: int = 32, seed: int = 0) -> ChipFolder:
    """Blobs of every class, a strip without label and a corner that the sensor did not see."""
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", classes, 10.0))
    draw = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size]
    for i in range(count):
        centers = draw.integers(0, size, (3 * len(classes), 2))
        near = ((rows[..., None] - centers[:, 0]) ** 2 + (cols[..., None] - centers[:, 1]) ** 2).argmin(-1)
        label = (near % len(classes)).astype(np.uint8)
        label[-3:] = 255
        seen = np.ones((size, size), bool)
        seen[:4, :4] = False
        image = np.stack([0.05 * label.clip(0, 8) + 0.1, 0.3 - 0.02 * label.clip(0, 8)]).astype(np.float32)
        image += draw.normal(0, 0.01, image.shape).astype(np.float32)
        writer.write(f"c{i}", f"g{i}", image, label, seen=seen, source=f"made {i}")
    return writer.finish()


def run_of(folder: Path, **keys: object) -> RunContext:
    tree = {"name": "x", **TINY, **keys}
    return RunContext(make_recipe(tree), folder, "cpu", True, lambda stage, done, total, note="": None)


def on_all(chips: ChipFolder) -> Split:
    """Every chip is a training chip, as it is for `seawall corrupt` without a part."""
    return Split(chips.ids, (), (), "all")


def noise_from_text(text: str, context: ChipContext) -> LabelNoise:
    return build_noise(*parse_noise_settings(text), context)


BOTH = [
    ("dilate 10%", {"name": "dilate", "rates": [0.1]}),
    ("erode 60% of=class", {"name": "erode", "rates": [0.6], "settings": {"of": "class"}}),
    ("dilate 30 m", {"name": "dilate", "rates": [30.0], "settings": {"of": "meters"}}),
    ("dilate 10% klass=2", {"name": "dilate", "rates": [0.1], "settings": {"klass": 2}}),
    ("dilate 10% klass=forest", {"name": "dilate", "rates": [0.1], "settings": {"klass": "forest"}}),
    ("symmetric 30%", {"name": "symmetric", "rates": [0.3]}),
    ("thirds 10%", {"name": "thirds", "rates": [0.1]}),
    ("shift 30 m", {"name": "shift", "rates": [30.0]}),
    ("jitter 5%", {"name": "jitter", "rates": [0.05]}),
    ("patches 20%", {"name": "patches", "rates": [0.2]}),
    ("pixels 10%", {"name": "pixels", "rates": [0.1]}),
    ("drop-objects 20%", {"name": "drop-objects", "rates": [0.2]}),
]


@pytest.mark.parametrize(("text", "order"), BOTH, ids=[text for text, _ in BOTH])
def test_recipes_and_corrupt_give_the_same_labels_bit_for_bit(
    tmp_path: Path, text: str, order: dict[str, object]
) -> None:
    chips = chips_of(tmp_path / "chips")
    api.corrupt(chips.root, noise=[text], out=tmp_path / "corrupted", seed=3)
    made = ChipFolder.open(tmp_path / "corrupted")
    run = run_of(tmp_path / "run", seed=3, noises=[order])
    labels = corrupted_labels(run, chips, on_all(chips), run.recipe.networks[1])
    assert labels is not None
    changed = 0
    for id_ in chips.ids:
        assert np.array_equal(labels(id_), stored_label(made.read(id_)))
        changed += int((labels(id_) != stored_label(chips.read(id_))).sum())
    assert changed > 0


def test_a_recipe_dilates_water_whatever_its_place_and_flips_into_every_class(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips")
    run = run_of(tmp_path, noises=[{"name": "dilate", "rates": [0.1]}, {"name": "symmetric", "rates": [0.5]}])
    dilated, flipped = (corrupted_labels(run, chips, on_all(chips), network) for network in run.recipe.networks[1:])
    before = [stored_label(chips.read(id_)) for id_ in chips.ids]
    for klass, grows in ((0, True), (1, False), (5, False)):
        was, now = (sum(int((p == klass).sum()) for p in planes) for planes in (before, map(dilated, chips.ids)))
        assert (now > was) if grows else (now <= was)
    for id_, plane in zip(chips.ids, before, strict=True):
        assert set(np.unique(flipped(id_)[plane == 0])) >= set(range(8)), "water becomes any class"


def test_the_thirds_of_a_recipe_are_those_of_its_training_part(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips")
    run = run_of(tmp_path, noises=[{"name": "thirds", "rates": [0.2]}])
    labels = corrupted_labels(
        run, chips, Split(("c1", "c2", "c4"), ("c0",), ("c3", "c5"), "by hand"), run.recipe.networks[1]
    )
    grown = {}
    for id_ in ("c1", "c2", "c4"):
        was, now = stored_label(chips.read(id_)) == 0, labels(id_) == 0
        grown[id_] = int(now.sum()) - int(was.sum())
    assert grown["c1"] < 0 < grown["c2"] and grown["c4"] == 0, "one eroded, one dilated, one untouched"
    with pytest.raises(DataError, match="c0"):
        labels("c0")


def test_a_noise_asks_for_its_class_where_nothing_tells_it(tmp_path: Path) -> None:
    others = ChipContext(10.0, ("B03",), "reflectance", ("field", "forest", "town"))
    with pytest.raises(UsageError, match="klass=<name>"):
        noise_from_text("dilate 10%", others)
    assert noise_from_text("dilate 10% klass=forest", others) == build_noise(
        "dilate", {"budget": 0.1, "klass": 1}, others
    )
    with pytest.raises(UsageError, match="did you mean 'forest'"):
        noise_from_text("dilate 10% klass=forst", others)
    for klass in (3, -1):
        with pytest.raises(UsageError, match=r"0\.\.2"):
            build_noise("dilate", {"budget": 0.1, "klass": klass}, others)
    with pytest.raises(UsageError, match="expected 3 as the chips have, got 2"):
        noise_from_text("symmetric 10% classes=2", others)
    two = replace(others, classes=("ice", "sea"))
    assert build_noise("dilate", {"budget": 0.1}, two).klass == 1


def test_a_control_rate_of_zero_trains_the_clean_network(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR)
    split = Split(chips.ids[:4], chips.ids[4:5], chips.ids[5:], "by hand")
    run = run_of(tmp_path / "run", training={"settings": QUICK}, noises=[{"name": "dilate", "rates": [0.0, 0.1]}])
    found = measure_label_noise(run, chips, split)
    assert [found[f"unet@dilate-{rate}"]["changed_share"] > 0 for rate in ("0", "0.1")] == [False, True]
    clean, control, noisy = (train_network(run, chips, split, network).state_dict() for network in run.recipe.networks)
    assert all(torch.equal(clean[name], control[name]) for name in clean)
    assert not all(torch.equal(clean[name], noisy[name]) for name in clean)


def test_the_change_of_a_noise_is_that_of_known_labels(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR)
    split = Split(chips.ids[:4], chips.ids[4:5], chips.ids[5:], "by hand")
    points = [{"name": "points", "settings": {"count": 5}}]
    run = run_of(
        tmp_path / "run",
        training={"supervision": points},
        noises=[{"name": "symmetric", "rates": [0.4], "vary": "budget"}],
    )
    noisy = run.recipe.networks[1]
    known = known_labels(run, chips, split, noisy)
    assert known is not None
    pairs = [(known(id_)[known(id_) != IGNORE], chips.stored(id_)[1][known(id_) != IGNORE]) for id_ in split.train]
    wrong = sum(int((mine != true).sum()) for mine, true in pairs)
    found = measure_label_noise(run, chips, split)[noisy.name]
    assert 0 < wrong < 40 and found["changed_share"] == wrong / sum(len(mine) for mine, _ in pairs)


def test_a_rate_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR)
    run = run_of(tmp_path, noises=[{"name": "dilate", "rates": [0.0, 1e-9]}])
    with pytest.raises(DataError, match="budget 1e-09 to change labels of 6 training chips"):
        measure_label_noise(run, chips, on_all(chips))


def test_corrupted_labels_are_made_once_and_bounded_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chips = chips_of(tmp_path / "chips", PAIR)
    split = Split(chips.ids[:4], chips.ids[4:5], chips.ids[5:], "by hand")
    made: list[str] = []
    real = ChipNoise.__call__
    monkeypatch.setattr(ChipNoise, "__call__", lambda self, chip: (made.append(chip.id), real(self, chip))[1])
    monkeypatch.setattr(label_planes, "MEMORY_BYTES", 2 * 32 * 32)
    run = run_of(tmp_path / "run", training={"settings": QUICK}, noises=[{"name": "symmetric", "rates": [0.1, 0.2]}])
    measure_label_noise(run, chips, split)
    for network in run.recipe.networks[1:]:
        train_network(run, chips, split, network)
        labels = corrupted_labels(run, chips, split, network)
        planes = [labels(id_) for id_ in split.train]
        assert all(plane.dtype == np.uint8 for plane in planes)
        assert sum(plane.nbytes for plane in labels._recent.values()) <= 2 * 32 * 32
        assert labels._bytes == sum(plane.nbytes for plane in labels._recent.values())
    assert sorted(made) == sorted([*split.train] * 2), "once per chip and rate, over realizing and training"


def test_a_damaged_label_on_the_disk_is_made_again(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR, 2)
    noise = noise_from_text("symmetric 20%", ChipContext.of(chips, chips.ids))
    want = CorruptedLabels(chips, noise, 0, tmp_path / "home")("c0")
    (path,) = (tmp_path / "home").iterdir()
    assert path.stat().st_size < want.nbytes
    for damage in (b"", b"torn", path.read_bytes()[:-9]):
        path.write_bytes(damage)
        assert np.array_equal(CorruptedLabels(chips, noise, 0, tmp_path / "home")("c0"), want)
    CorruptedLabels(chips, noise, 1, tmp_path / "home")("c0")
    CorruptedLabels(chips, noise_from_text("symmetric 30%", ChipContext.of(chips, chips.ids)), 0, tmp_path / "home")(
        "c0"
    )
    assert len(list((tmp_path / "home").iterdir())) == 3, "another seed or rate has planes of its own"


class Green(torch.nn.Module):
    """Says water where the first band is bright."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.spec = ModelSpec(("B03", "B08"), PAIR, "reflectance", 10.0)
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        odds = image[:, 0] - self.level
        return torch.stack([-odds, odds], 1)


def written(root: Path, label: np.ndarray, classes: tuple[str, ...] = PAIR) -> ChipFolder:
    """One chip of 4 x 4 pixels whose first band counts them from 0.00 to 0.15."""
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", classes, 10.0))
    image = np.stack([np.arange(16).reshape(4, 4) / 100, np.full((4, 4), 0.2)]).astype(np.float32)
    writer.write("a", "g", image, label.astype(np.uint8), source="made")
    return writer.finish()


def test_the_validation_figures_are_iou_and_undefined_is_none(tmp_path: Path) -> None:
    label = np.zeros((4, 4))
    label[3] = 1  # pixels 12 to 15 are water
    chips = written(tmp_path / "a", label)
    found = validation_metrics(Green(0.095), chips, ["a"])  # says water from pixel 10 on: 4 hits, 2 false alarms
    assert found == pytest.approx({"val.iou.land": 10 / 12, "val.iou.water": 4 / 6, MEAN_IOU: (10 / 12 + 4 / 6) / 2})
    found = validation_metrics(Green(0.125), chips, ["a"])  # from pixel 13 on: 3 hits, 1 miss
    assert found["val.iou.water"] == pytest.approx(3 / 4)
    dry = written(tmp_path / "b", np.zeros((4, 4)))
    assert validation_metrics(Green(1.0), dry, ["a"]) == {"val.iou.land": 1.0, "val.iou.water": None, MEAN_IOU: 1.0}
    assert validation_metrics(Green(1.0), written(tmp_path / "c", np.full((4, 4), 255)), ["a"]) == {
        "val.iou.land": None,
        "val.iou.water": None,
        MEAN_IOU: None,
    }


class WrongAtHundredths(Green):
    """`Green` whose gradient points the wrong way at whole hundredths, so that one step from there does no harm."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hundredth = ((100 * image).round() / 100 - image).abs() < 1e-6
        return super().forward(image - 2 * hundredth * (image - image.detach()))


def test_attacked_validation_chips_tell_one_step_from_several(tmp_path: Path) -> None:
    label = np.zeros((4, 4))
    label[3] = 1
    chips = written(tmp_path / "a", label)
    within = RobustnessSection(threat="linf 2% reflectance", steps=20)
    found = validation_metrics(Green(0.095), chips, ["a"], within)  # 0.08 and 0.09 turn into water, no water turns
    assert found["val.iou.water"] == pytest.approx(4 / 6)
    worst = {"land": 8 / 12, "water": 4 / 8, "mean": (8 / 12 + 4 / 8) / 2}
    for kind in ("val.robust.iou", "val.fgsm.iou"):
        assert {name: found[f"{kind}.{name}"] for name in worst} == pytest.approx(worst)
    assert found["val.robust.overfitting"] == 0
    assert list(found) == metric_names(PAIR, within)
    within = RobustnessSection(threat="linf 5% reflectance", steps=20)
    found = validation_metrics(WrongAtHundredths(0.115), chips, ["a"], within)
    assert found["val.fgsm.iou.water"] == 1 and found["val.robust.iou.water"] < 0.4
    assert found["val.robust.overfitting"] == 1


def test_robust_validation_selects_by_itself_and_decides_the_id(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR, 3)
    split = Split(("c0",), ("c1",), ("c2",), "by hand")
    plain = run_of(tmp_path / "plain", training={"settings": QUICK})
    keys = {"settings": QUICK, "robustness": {"threat": "linf 1% reflectance", "steps": 2}}
    run = run_of(tmp_path / "run", training=keys)
    assert training_settings(run, chips, split).monitor == "val.robust.iou.water"
    assert run.recipe.id != plain.recipe.id
    assert "robustness" not in plain.recipe.deciding["training"], "ids of recipes without it stay"
    train_network(run, chips, split, run.recipe.networks[0])
    rows = (tmp_path / "run/models/unet/history.jsonl").read_text()
    assert "val.robust.iou.water" in rows and "val.robust.overfitting" in rows


def test_training_starts_from_weights_that_have_not_seen_the_held_out_chips(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR, 3)
    split = Split(("c0",), ("c1",), ("c2",), "by hand")
    first = run_of(tmp_path / "first", training={"settings": QUICK})
    train_network(first, chips, split, first.recipe.networks[0])
    start = tmp_path / "first/models/unet/model.safetensors"
    still = run_of(tmp_path / "still", training={"settings": {**QUICK, "lr": 1e-12}, "start": str(start)})
    got = train_network(still, chips, split, still.recipe.networks[0]).state_dict()
    want = load_model(start).state_dict()
    parameters = [name for name in want if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(got[name], want[name], atol=1e-8) for name in parameters)
    for other in (Split(("c1",), ("c2",), ("c0",), "x"), Split(("c0",), ("c2",), ("c1",), "x")):
        leak = run_of(tmp_path / f"leak{other.test[0]}", training={"settings": QUICK, "start": str(start)})
        with pytest.raises(UsageError, match=r"training\.start: expected weights that have not seen"):
            train_network(leak, chips, other, leak.recipe.networks[0])


def test_an_encoder_is_trained_first_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR, 3)
    split = Split(("c0",), ("c1",), ("c2",), "by hand")
    attacked = {"name": "fgsm", "settings": {"threat": "linf 1% reflectance"}}
    section = {"objective": attacked, "settings": {"epochs": 2, "lr": 1e-3}, "share": 0.3}
    keys = {"settings": {**QUICK, "lr": 1e-12}, "pretraining": section}
    run = run_of(tmp_path / "run", training=keys, reference={"objective": {"name": "supervised"}})
    got = train_network(run, chips, split, run.recipe.networks[0]).state_dict()
    home = tmp_path / "run/models/unet/pretraining"
    assert len((home / "history.jsonl").read_text().splitlines()) == 2
    encoder = load_file(home / "model.safetensors")
    trained = [name for name in encoder if name.endswith("weight") and name.startswith(("stem", "down"))]
    assert len(trained) >= 4
    assert all(torch.allclose(encoder[name], got[f"network.{name}"], atol=1e-8) for name in trained)
    written = (home / "model.safetensors").stat().st_mtime_ns
    train_network(run, chips, split, run.recipe.networks[0])
    assert (home / "model.safetensors").stat().st_mtime_ns == written, "it is loaded the second time"
    minutes = hardening_facts(run)["cpu_minutes"]["unet"]  # type: ignore[index]
    rows = [json.loads(line) for part in (home, home.parent) for line in (part / "history.jsonl").open()]
    assert minutes == pytest.approx(sum(row["cpu_seconds"] for row in rows) / 60)
    assert run.recipe.training_of(run.recipe.networks[1]).pretraining is None, "the reference has none"
    plain = run_of(tmp_path, training={"settings": QUICK})
    assert "pretraining" not in plain.recipe.deciding["training"], "ids of recipes without it stay"


def test_pretraining_that_cannot_be_is_refused(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR, 3)
    split = Split(("c0",), ("c1",), ("c2",), "by hand")
    for keys, says in (
        ({"model": {"name": "linear"}}, "pretraining: expected a U-Net, got linear"),
        ({"training": {"settings": QUICK, "pretraining": {"of": "snow"}}}, "class: expected one of land, water, got 'snow'"),
    ):  # fmt: skip
        run = run_of(tmp_path / says[:5], **{"training": {"settings": QUICK, "pretraining": {}}, **keys})
        with pytest.raises(SeawallError, match=says):
            train_network(run, chips, split, run.recipe.networks[0])
    for wrong, says in (({"share": 1.0}, "pretraining.share"), ({"settings": {"epoch": 1}}, "epochs")):
        with pytest.raises(UsageError, match=says):
            run_of(tmp_path, training={"pretraining": wrong})
    with pytest.raises(UsageError, match="one process for a training with pretraining"):
        run_of(tmp_path, training={"pretraining": {}, "devices": 2})


@pytest.mark.parametrize(
    ("classes", "settings", "chosen"),
    [
        (PAIR, {}, "val.iou.water"),
        (("sea", "water", "ice"), {}, "val.iou.water"),
        (("field", "forest", "town"), {}, MEAN_IOU),
        (("field", "forest", "town"), {"monitor": "val.iou.town"}, "val.iou.town"),
        (PAIR, {"monitor": MEAN_IOU}, MEAN_IOU),
    ],
)
def test_the_monitor_goes_by_the_classes(
    tmp_path: Path, classes: tuple[str, ...], settings: dict[str, str], chosen: str
) -> None:
    chips = chips_of(tmp_path / "chips", classes, 3)
    split = Split(("c0",), ("c1",), ("c2",), "by hand")
    run = run_of(tmp_path / "run", training={"settings": {**QUICK, **settings}})
    assert training_settings(run, chips, split).monitor == chosen
    train_network(run, chips, split, run.recipe.networks[0])


def test_a_monitor_that_cannot_be_is_refused_before_training(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", ("field", "forest", "town"), 3)
    split = Split(("c0",), ("c1",), ("c2",), "by hand")
    run = run_of(tmp_path / "run", training={"settings": {**QUICK, "monitor": "val.iou.water"}})
    with pytest.raises(UsageError, match=r"val\.iou\.water"):
        train_network(run, chips, split, run.recipe.networks[0])
    assert not (tmp_path / "run").exists(), "nothing was begun"
    dry = written(tmp_path / "dry", np.zeros((4, 4)))
    only = Split(("a",), ("a",), ("a",), "by hand")
    with pytest.raises(UsageError, match="without a pixel"):
        training_settings(run_of(tmp_path, training={"settings": {"monitor": "val.iou.water"}}), dry, only)
    assert training_settings(run_of(tmp_path), dry, only).monitor == MEAN_IOU, "without a wish the mean takes its place"


def test_other_seeds_share_curated_files_and_not_simulated_scenes(tmp_path: Path) -> None:
    for i in range(2):
        pair(tmp_path / "in", f"place{i}", f"chip{i}", seed=i)
    for source, folders in ((str(tmp_path / "in"), 1), ("simulated", 2)):
        data = {"source": source} if source != "simulated" else {"count": 3, "size": 64, "bands": ["B03", "B08"]}
        roots = {load_chips(run_of(tmp_path, seed=s, data=data), tmp_path / source[-3:])[0].root for s in (0, 1)}
        assert len(roots) == folders


def test_a_folder_of_another_experiment_is_refused_naming_what_differs(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "chips", PAIR)
    data = {"source": str(chips.root), "kind": "chips"}

    def train(**keys: object) -> None:
        run = run_of(tmp_path / "run", data=data, **{"training": {"settings": QUICK}, **keys})
        train_only(run.recipe, run.folder, device="cpu", resume=True, progress=run.progress)

    train()
    weights = tmp_path / "run" / "models" / "unet" / "model.safetensors"
    before = weights.read_bytes(), (tmp_path / "run" / "recipe.toml").read_bytes()
    for keys, says in (
        ({"training": {"settings": {**QUICK, "lr": 0.5}}}, r"training\.settings\.lr 0\.5 \(was None\)"),
        ({"training": {"settings": QUICK, "augment": "none"}}, r"training\.augment none \(was d4\)"),
        ({"training": {"settings": QUICK, "balance": "classes"}}, r"training\.balance classes \(was area\)"),
        ({"model": {"name": "unet", "settings": {"width": 5, "depth": 1}}}, r"model\.settings\.width 5 \(was 4\)"),
        ({"split": {"test": 0.2}}, r"split\.test 0\.2 \(was 0\.3\)"),
        ({"seed": 1}, r"seed 1 \(was 0\)"),
    ):
        with pytest.raises(RunError, match=says):
            train(**keys)
    assert before == (weights.read_bytes(), (tmp_path / "run" / "recipe.toml").read_bytes())
    train(title="A better title", training={"settings": {**QUICK, "save_s": 5.0, "workers": 0}})
    assert weights.read_bytes() == before[0], "what decides nothing may change"
    chips_of(tmp_path / "chips", PAIR, seed=1)
    with pytest.raises(RunError, match=r"chips\.test .* \(was "):
        train()


def test_only_the_test_chips_changed_and_it_is_refused(tmp_path: Path) -> None:
    chips = chips_of(tmp_path / "a", PAIR)
    split = Split(chips.ids[:4], chips.ids[4:5], chips.ids[5:], "by hand")
    run = run_of(tmp_path / "run")
    check_same_experiment(run, chips, split)
    check_same_experiment(run, chips, split)
    with pytest.raises(RunError, match=r"chips\.test"):
        check_same_experiment(run, chips, Split(split.train, split.val, ("c4",), "by hand"))
    check_same_experiment(replace(run, resume=False), chips, Split(split.train, split.val, ("c4",), "by hand"))
    path = run.folder / "experiment.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "training.devices"}))
    check_same_experiment(
        run, chips, Split(split.train, split.val, ("c4",), "by hand")
    )  # a key that did not exist then


def test_differences_name_both_values() -> None:
    assert describe_differences({"a": "1"}, {"a": "1"}) == ""
    assert describe_differences({"a": "1", "b": "2"}, {"b": "3"}) == "a None (was 1), b 3 (was 2)"


def test_another_code_version_is_noted_with_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(record_environment(tmp_path)) == 1
    first = (tmp_path / "env.json").read_bytes()
    assert len(record_environment(tmp_path)) == 1
    assert (tmp_path / "env.json").read_bytes() == first, "the same code again changes nothing"
    (tmp_path / "records.jsonl").write_text("{}\n" * 7)
    monkeypatch.setattr(provenance, "code_version", lambda: "9.9+new")
    old = json.loads(first)["code"]
    assert record_environment(tmp_path) == (old, "9.9+new")
    said = json.loads((tmp_path / "env.json").read_text())
    assert said["code"] == "9.9+new"
    assert [(entry["code"], entry["rows_before"]) for entry in said["history"]] == [(old, 0), ("9.9+new", 7)]
    (tmp_path / "records.jsonl").write_text("{}\n" * 9)
    assert record_environment(tmp_path) == (old, "9.9+new")
    assert len(json.loads((tmp_path / "env.json").read_text())["history"]) == 2


def test_methods_that_would_share_their_rows_are_refused() -> None:
    spec = ModelSpec(("B03", "B08"), PAIR, "reflectance", 10.0)

    def of(**keys: object) -> Recipe:
        return make_recipe({"name": "x", **keys})

    check_distinct_names(
        of(suites=[{"name": "seawall", "threats": ["linf 1% reflectance", "linf 2% reflectance"]}]), spec
    )
    twice = [{"name": "pgd", "threats": ["linf 1% reflectance"]}, {"name": "pgd", "threats": ["linf 0.01 reflectance"]}]
    with pytest.raises(RecipeError, match="'pgd' twice"):
        check_distinct_names(of(attacks=twice), spec)
    levels = [{"name": "threshold", "settings": {"index": "ndwi", "value": v}} for v in (0.0, 0.2)]
    with pytest.raises(RecipeError, match="'ndwi' twice"):
        check_distinct_names(of(baselines=levels), spec)


@pytest.mark.parametrize(
    ("bands", "unit", "name"),
    [
        (("B03", "B08"), "reflectance", "index-unet"),
        (("B03",), "reflectance", "unet"),
        (("VV", "VH"), "sigma0_db", "unet"),
        (("VV", "B03"), ("sigma0_db", "reflectance"), "unet"),
    ],
)
def test_few_chips_are_given_the_model_that_takes_them(bands, unit, name) -> None:
    section = few_chips_model(ModelSpec(bands, ("land", "water"), unit, 10.0))
    assert section.name == name
    build("model", section.name, section.settings)(ModelSpec(bands, ("land", "water"), unit, 10.0))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ((), "index-unet"),
        (("inputs=['B03']",), "unet"),
        (("model.name=linknet", "model.settings.width=8"), "linknet"),
        (("model={name='linear'}",), "linear"),
    ],
)
def test_train_takes_the_model_and_the_bands_of_the_changes(
    tmp_path: Path, changes: tuple[str, ...], name: str
) -> None:
    api.curate("4", out=tmp_path / "chips", kind="simulated size=64", bands=("B03", "B08"))
    small = ("training.settings.epochs=1", "training.settings.steps_per_epoch=1", "training.settings.patch=32")
    api.train(tmp_path / "chips", out=tmp_path / "run", changes=(*changes, *small))
    assert (tmp_path / f"run/models/{name}/model.safetensors").is_file()


def test_train_takes_another_objective_with_settings_of_its_own(tmp_path: Path) -> None:
    api.curate("4", out=tmp_path / "chips", kind="simulated size=64", bands=("B03", "B08"))
    small = ("training.settings.epochs=1", "training.settings.steps_per_epoch=1", "training.settings.patch=32")
    noise = ("training.objective.name=gaussian-noise", "training.objective.settings.sigma=0.1")
    api.train(tmp_path / "chips", out=tmp_path / "run", changes=(*noise, *small))
    assert "sigma = 0.1" in (tmp_path / "run/recipe.toml").read_text()
