"""Which part of the labels is known: exact budgets, what contains what, and trainings that see nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.loader import PatchFeed, Sampler
from seawall.data.splits import Split
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, RecipeError, RunError, UsageError
from seawall.pipeline.context import RunContext
from seawall.pipeline.run import train_only
from seawall.pipeline.training import known_labels, measure_supervision, train_network
from seawall.pipeline.validate import validate_recipe
from seawall.recipe.recipe import Recipe, change_recipe, make_recipe
from seawall.records import Record
from seawall.report.record_index import RecordIndex
from seawall.report.run_facts import SupervisionFacts
from seawall.report.scores import score_table
from seawall.rng import Keys
from seawall.supervision.build import KnownLabels
from seawall.supervision.chips import LabelledChips, labelling_order
from seawall.supervision.image_labels import ImageLabels
from seawall.supervision.points import Points
from seawall.supervision.scribbles import Scribbles
from seawall.types import Batch, LabelledChip, Supervision

SIZE = 48
EIGHT = np.ones((3, 3))
POINTS = {"name": "points", "settings": {"count": 2}}
TINY = {
    "model": {"name": "unet", "settings": {"width": 4, "depth": 1}},
    "training": {"settings": {"epochs": 2, "steps_per_epoch": 2, "patch": 16, "batch": 2, "tensorboard": False}},
}


def lake(chips: int = 3, size: int = SIZE) -> Batch:
    """A lake with an island, a pond of 2 pixels, a strip without label and an unseen corner."""
    rows, cols = np.mgrid[:size, :size]
    far = np.hypot(rows - size / 2, cols - size / 2)
    label = torch.from_numpy(((far < size / 3) & (far > size / 12)).astype(np.int64))
    label[2, 2:4] = 1
    seen = torch.ones(size, size, dtype=torch.bool)
    seen[-4:, -4:] = False
    valid = seen.clone()
    valid[:, 20] = False
    together = [plane.expand(chips, -1, -1).clone() for plane in (label, seen, valid)]
    return Batch(torch.rand(chips, 2, size, size), *together, tuple(f"c{i}" for i in range(chips)))


def known(method: Supervision, batch: Batch, seed: int = 0) -> Batch:
    return method(batch, Keys(seed, batch.chips))


def folder_of(root: Path, count: int = 6, size: int = 32, water: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> ChipFolder:
    """Chips of two places, half water where there is some, in which the image tells the label."""
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0))
    draw = np.random.default_rng(0)
    for i in range(count):
        label = np.zeros((size, size), np.uint8)
        if i in water:
            label[:, size // 2 :] = 1
        label[:2] = 255
        image = np.stack([0.1 + 0.1 * (label == 1), 0.3 - 0.2 * (label == 1)]).astype(np.float32)
        image += draw.normal(0, 0.01, image.shape).astype(np.float32)
        writer.write(f"c{i}", f"g{i // 2}", image, label, source=f"made {i}")
    return writer.finish()


def run_of(folder: Path, *supervision: dict[str, object], **keys: object) -> RunContext:
    training = {**TINY["training"], "supervision": list(supervision)}
    recipe = make_recipe({"name": "x", **TINY, "training": training, **keys})
    return RunContext(recipe, folder, "cpu", True, lambda stage, done, total, note="": None)


@pytest.mark.parametrize("method", [Points, Scribbles])
@pytest.mark.parametrize("count", [1, 7, 150, 10_000])
def test_budgets_are_met_to_the_pixel(method: type[Points | Scribbles], count: int) -> None:
    batch = lake()
    after = known(method(count=count), batch)
    for i in range(len(batch)):
        for klass in (0, 1):
            there = int(((batch.label[i] == klass) & batch.valid[i]).sum())
            assert int(((batch.label[i] == klass) & after.valid[i]).sum()) == min(count, there)


@pytest.mark.parametrize("method", [Points, Scribbles])
def test_each_chip_and_seed_has_pixels_of_its_own(method: type[Points | Scribbles]) -> None:
    after = known(method(count=9), lake())
    assert not torch.equal(after.valid[0], after.valid[1])
    assert not torch.equal(after.valid, known(method(count=9), lake(), seed=1).valid)


def test_points_keep_from_the_border_of_their_class() -> None:
    batch = lake()
    after = known(Points(count=10_000, within=3), batch)
    for klass in (0, 1):
        other = ((batch.label[0] != klass) & batch.valid[0]).numpy()
        want = (batch.label[0] == klass).numpy() & batch.valid[0].numpy() & ~ndimage.binary_dilation(other, EIGHT, 3)
        assert np.array_equal((after.valid[0] & (batch.label[0] == klass)).numpy(), want)
    assert not after.valid[0, 2, 2:4].any(), "the pond is nowhere so wide"


def test_scribbles_are_thin_connected_and_away_from_the_border() -> None:
    batch = lake()
    batch = replace(batch, valid=batch.seen)
    for count in (60, 100):
        after = known(Scribbles(count=count), batch)
        for i in range(len(batch)):
            drawn = (after.valid[i] & (batch.label[i] == 1)).numpy()
            parts = ndimage.label(drawn, EIGHT)[1]
            assert 8 * parts <= count, f"{count} pixels in {parts} pieces"
            assert ndimage.binary_erosion(drawn, EIGHT).sum() == 0, "a curve, not a blob"
            inside = ndimage.distance_transform_edt((batch.label[i] == 1).numpy())
            mean = inside[(batch.label[i] == 1).numpy()].mean()
            assert inside[drawn].mean() > mean, "farther from the shore than a pixel by chance"


def test_image_labels_follow_the_share_of_each_tile() -> None:
    label = torch.zeros(1, 4, 6, dtype=torch.long)
    label[0, :2, 0], label[0, :, 3:5] = 1, 1
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[0, 3], valid[0, :2, 2] = False, False
    batch = Batch.of(torch.zeros(1, 1, 4, 6), label, valid=valid)
    # water of the valid pixels, tile by tile: 2/4, 2/2, 2/4 above, 0/2, 1/2, 1/2 below
    for share, want in ((0.0, [[1, 1, 1], [0, 1, 1]]), (0.49, [[1, 1, 1], [0, 1, 1]]), (0.5, [[0, 1, 0], [0, 0, 0]])):
        after = known(ImageLabels(share=share, tile=2), batch)
        assert torch.equal(after.valid, valid)
        for row in range(2):
            for col in range(3):
                tile = slice(2 * row, 2 * row + 2), slice(2 * col, 2 * col + 2)
                assert set(after.label[0][tile][valid[0][tile]].tolist()) == {want[row][col]}, (share, row, col)
    whole = known(ImageLabels(share=8 / 16 - 0.01), batch)  # 8 of 16 pixels of the chip
    assert set(whole.label[valid].tolist()) == {1}
    assert set(known(ImageLabels(share=0.5), batch).label[valid].tolist()) == {0}


def test_images_of_several_classes_get_the_most_frequent_other_one() -> None:
    label = torch.tensor([[[0, 2, 2, 1]]])
    batch = Batch.of(torch.zeros(1, 1, 1, 4), label)
    assert known(ImageLabels(share=0.3), batch).label.unique().tolist() == [2]
    assert known(ImageLabels(share=0.2), batch).label.unique().tolist() == [1]


PLACES = [
    LabelledChip(f"{place}{i}", place, (9, water))
    for place in "abcd"
    for i, water in enumerate((0, 0, 5, 0) if place == "c" else (0,) * 4)
]


def test_chips_are_nested_whole_places_with_every_class_first() -> None:
    for seed in range(8):
        order = labelling_order(PLACES, Keys(seed, tuple(chip.id for chip in PLACES)))
        assert sorted(order) == sorted(chip.id for chip in PLACES)
        assert order[0] == "c2", "the only chip with both classes"
        assert [id_[0] for id_ in order[:4]] == ["c"] * 4, "its place is finished first"
        assert all(len({id_[0] for id_ in order[i : i + 4]}) == 1 for i in (4, 8, 12)), "place after place"
    others = {labelling_order(PLACES, Keys(seed, tuple(c.id for c in PLACES)))[4:] for seed in range(8)}
    assert len(others) > 1
    keys = Keys(0, tuple(chip.id for chip in PLACES))
    for share, count in ((0.01, 1), (0.29, 4), (0.5, 8), (1.0, 16)):
        chosen = LabelledChips(share=share).chosen_from(PLACES, keys).chosen
        assert chosen == LabelledChips(count=count).chosen_from(PLACES, keys).chosen
        assert chosen is not None and len(chosen) == count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Points(count=0), "points.count: expected at least 1, got 0"),
        (lambda: Points(within=-1), "points.within: expected pixels from 0 up"),
        (lambda: Scribbles(count=0), "scribbles.count: expected at least 1"),
        (lambda: ImageLabels(share=1.0), "image-labels.share: expected a share from 0 to below 1"),
        (lambda: ImageLabels(tile=-1), "image-labels.tile"),
        (LabelledChips, "chips: expected share or count, got neither"),
        (lambda: LabelledChips(share=0.1, count=3), "chips: expected share or count, got both"),
        (lambda: LabelledChips(share=float("nan")), "chips.share: expected a share above 0"),
        (lambda: known(LabelledChips(count=1), lake()), "chips: expected chosen chips, got none yet"),
        (lambda: LabelledChips(count=17).chosen_from(PLACES, Keys(0, ())), "expected at most the 16 training chips"),
        (lambda: Points()(lake(), Keys(0, ())), "supervision: expected 3 keys, got 0"),
    ],
)
def test_wrong_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


def test_kinds_are_applied_one_after_the_other(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips")
    split = Split(chips.ids, (), (), "all")
    run = run_of(tmp_path / "run", {"name": "chips", "settings": {"count": 3}}, POINTS)
    labels = known_labels(run, chips, split, run.recipe.networks[0])
    assert labels is not None and len(labels.labelled) == 3 and len(labels.unlabelled) == 3
    assert len({chips.row(id_).group for id_ in labels.labelled}) == 2, "a whole place and one chip of the next"
    for id_ in chips.ids:
        plane, stored = labels(id_), chips.stored(id_)[1]
        assert np.array_equal(plane[plane != 255], stored[plane != 255])
        assert np.bincount(plane.ravel(), minlength=256)[[0, 1]].tolist() == (
            [2, 2] if id_ in labels.labelled else [0, 0]
        )
    facts = measure_supervision(run, chips, split)
    assert facts == {"unet": {"pixels": 12, "of_pixels": 6 * 30 * 32, "chips": 3, "of_chips": 6}}


def test_noise_comes_first(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips")
    split = Split(chips.ids, (), (), "all")
    run = run_of(tmp_path / "run", POINTS, noises=[{"name": "symmetric", "rates": [0.5]}])
    clean, noisy = (known_labels(run, chips, split, network) for network in run.recipe.networks)
    assert clean is not None and noisy is not None and clean.identity != noisy.identity
    wrong = 0
    for id_ in chips.ids:
        plane = noisy(id_)
        assert np.bincount(plane.ravel(), minlength=256)[[0, 1]].tolist() == [2, 2], (
            "2 of each class of the noisy labels"
        )
        wrong += int(np.count_nonzero((plane != chips.stored(id_)[1]) & (plane != 255)))
    assert 6 <= wrong <= 18, "about half of 24"


def test_balanced_patches_are_centered_on_known_pixels(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips")
    labels = KnownLabels(chips, chips.ids, [Points(count=2)], 0, tmp_path / "cache")
    sampler = Sampler(chips, labels.labelled, patch=8, seed=0, balance="classes", balance_labels=labels)
    drawn = [sampler.draw(0, i) for i in range(300)]
    classes = [int(labels(draw.chip)[draw.center]) for draw in drawn]
    assert set(classes) == {0, 1} and 100 < sum(classes) < 200, "both classes alike, and never an unknown pixel"
    image = KnownLabels(chips, chips.ids, [ImageLabels(share=0.6)], 0, tmp_path / "cache")
    with pytest.raises(DataError, match="expected known labels of every class, got none of 'water', which 2880 pixels"):
        image.counts()
    feed = PatchFeed(chips, chips.ids, 8, 50, 50, balance="classes", labels=image, balance_labels=image, workers=0)
    (batch,) = feed(0)
    assert bool((batch.label == 0).all()), "image-level labels are not balanced by the labels of pixels"


def test_class_without_any_known_label_is_refused(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips", water=(4,))
    split = Split(chips.ids[:4], chips.ids[4:5], chips.ids[5:], "by hand")
    run = run_of(tmp_path / "a", POINTS)
    assert measure_supervision(run, chips, split)["unet"]["pixels"] == 8, "the training part has no water to know"
    split = Split(chips.ids[1:], chips.ids[:1], (), "by hand")
    run = run_of(tmp_path / "b", {"name": "image-labels", "settings": {"share": 0.9}})
    for act in (
        lambda: measure_supervision(run, chips, split),
        lambda: train_network(run, chips, split, run.recipe.networks[0]),
    ):
        with pytest.raises(DataError, match=r"expected known labels of every class, got none of 'water'"):
            act()


def test_supervision_changes_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips")
    split = Split(chips.ids[:4], chips.ids[4:5], chips.ids[5:], "by hand")
    run = run_of(tmp_path / "run", POINTS)
    train_network(run, chips, split, run.recipe.networks[0])
    again = run_of(tmp_path / "run", POINTS)
    train_network(again, chips, split, again.recipe.networks[0])
    for other in ({"name": "points", "settings": {"count": 3}}, {"name": "chips", "settings": {"count": 2}}):
        changed = run_of(tmp_path / "run", other)
        with pytest.raises(RunError, match="labels"):
            train_network(changed, chips, split, changed.recipe.networks[0])


def test_loss_counts_known_pixels_alone(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips")
    labels = KnownLabels(chips, chips.ids, [Points(count=1)], 0, tmp_path / "cache")
    seen = 0
    for batch in PatchFeed(chips, chips.ids, 32, 6, 6, labels=labels, workers=0)(0):
        seen += int(batch.valid.sum())
        for i, key in enumerate(batch.chips):
            assert int(batch.valid[i].sum()) == 2, key
    assert seen == 12


def test_recipes_name_supervision_and_keep_their_ids() -> None:
    plain = Recipe(name="mine")
    assert "supervision" not in plain.deciding["training"]
    order = 'training.supervision=[{name="chips",settings={share=0.5}},{name="points",settings={count=3}}]'
    few = change_recipe({"name": "mine"}, [order])
    assert [one.name for one in few.training.supervision] == ["chips", "points"] and few.id != plain.id
    more = change_recipe(few.model_dump(mode="json", exclude_none=True), ["training.supervision.1.settings.count=10"])
    assert more.training.supervision[1].settings == {"count": 10}
    validate_recipe(few)
    for wrong, message in (
        ('[{name="point"}]', "supervision: unknown name 'point'"),
        ('[{name="points",settings={cout=3}}]', "points: unknown setting 'cout'"),
        ('[{name="image-labels"},{name="points"}]', "expected image-labels with labels of no other kind, got points"),
        ('[{name="image-labels"},{name="image-labels"}]', "got image-labels beside it"),
    ):
        with pytest.raises(UsageError, match=message):
            validate_recipe(change_recipe({"name": "mine"}, [f"training.supervision={wrong}"]))
    with pytest.raises(RecipeError, match="settngs"):
        change_recipe({"name": "mine"}, ['training.supervision=[{name="points",settngs={}}]'])
    validate_recipe(
        change_recipe(
            {"name": "mine"}, ['training.supervision=[{name="chips",settings={share=0.5}},{name="image-labels"}]']
        )
    )


def test_known_labels_stand_beside_the_network_and_are_printed(tmp_path: Path) -> None:
    found = {"unet": SupervisionFacts(pixels=12, of_pixels=6000, chips=3, of_chips=6)}
    rows = [
        Record("r", model, "clean", "", chip, "", metric, "water", value, 16)
        for model in ("unet", "ndwi")
        for chip in ("a", "b")
        for metric, value in (("tp", 5.0), ("fp", 1.0), ("fn", 2.0), ("tn", 8.0))
    ]
    index = RecordIndex(rows, "water", supervision=found)
    table = score_table(index, ("unet", "ndwi"))
    assert table.head[-1][0] == "Known labels"
    assert [row[-1] for row in table.rows] == ["12 pixels (0.2\u202f%) of 3 of 6 chips", "–"]
    assert score_table(RecordIndex(rows, "water"), ("unet",)).head[-1][0] != "Known labels"


def test_seawall_train_prints_what_is_known(tmp_path: Path) -> None:
    chips = folder_of(tmp_path / "chips")
    recipe = run_of(
        tmp_path / "x", POINTS, data={"source": str(chips.root), "kind": "chips"}, split={"val": 0.3, "test": 0.3}
    ).recipe
    facts, _, _ = train_only(recipe, tmp_path / "out", device="cpu", resume=True, progress=lambda *_: None)
    assert facts["known labels of unet"] == "8 pixels (0.4\u202f%) of 2 of 2 chips"
