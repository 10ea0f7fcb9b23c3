"""Patches depend on (seed, epoch, index) alone, show chips exactly, and balance what they promise to balance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seawall.data.index import ChipHeader
from seawall.data.loader import PatchFeed, Sampler, patches, whole_chips
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, UsageError

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
SIZES = ((40, 40), (40, 40), (24, 40), (10, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    writer = ChipWriter(tmp_path_factory.mktemp("chips"), HEADER)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        image = rng.integers(1, 5000, (2, height, width)) * np.float32(1e-4)
        label = np.zeros((height, width), np.uint8)
        label[:2, :3] = 1  # rare water, in a corner
        label[-1] = 255
        seen = np.ones((height, width), bool)
        seen[:, -1] = False
        writer.write(f"c{i}", f"g{i}", image.astype(np.float32), label, seen=seen, gain=1e-4)
    return writer.finish()


def same(a, b) -> bool:
    return a.chips == b.chips and all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("image", "label", "seen", "valid")
    )


def test_patches_show_the_chip(folder):
    sampler = Sampler(folder, folder.ids, patch=16, seed=3)
    batches = list(patches(folder, folder.ids, patch=16, batch=5, count=23, seed=3))
    assert [len(b) for b in batches] == [5, 5, 5, 5, 3]
    index = 0
    for batch in batches:
        assert batch.image.dtype == torch.float32 and batch.label.dtype == torch.int64
        assert not (batch.valid & ~batch.seen).any()
        for i, name in enumerate(batch.chips):
            draw = sampler.draw(0, index)
            chip = folder.read(draw.chip)
            assert name == f"{draw.chip}@0.{index}" == draw.key
            tall, wide = min(16, chip.label.shape[0]), min(16, chip.label.shape[1])
            r, c = max(0, draw.row), max(0, draw.col)
            a, b = r - draw.row, c - draw.col
            want = chip.image[:, r : r + tall, c : c + wide]
            assert np.array_equal(batch.image[i, :, a : a + tall, b : b + wide].numpy(), want)
            assert batch.seen[i].sum() == chip.seen[r : r + tall, c : c + wide].sum()
            assert batch.valid[i].sum() == chip.valid[r : r + tall, c : c + wide].sum()
            assert (batch.label[i].numpy()[~batch.valid[i].numpy()] == 0).all()
            index += 1


@pytest.mark.parametrize("balance", [None, "classes"])
@pytest.mark.parametrize("augment", ["none", "d4"])
def test_workers_batches_and_restarts_change_nothing(folder, balance, augment):
    settings = {"patch": 16, "seed": 5, "epoch": 2, "balance": balance, "augment": augment, "count": 24}
    alone = list(patches(folder, folder.ids, batch=6, **settings))
    for workers in (1, 3):
        threads = list(patches(folder, folder.ids, batch=6, workers=workers, **settings))
        assert all(same(a, b) for a, b in zip(alone, threads, strict=True))
    late = list(patches(folder, folder.ids, batch=6, start=12, **settings))
    assert all(same(a, b) for a, b in zip(alone[2:], late, strict=True))
    singles = list(patches(folder, folder.ids, batch=1, **settings))
    assert all(same(alone[i // 6].select([i % 6]), one) for i, one in enumerate(singles))


def test_seed_and_epoch_change_the_patches(folder):
    settings = {"patch": 16, "batch": 8, "count": 8}
    (a,), (b,), (c,) = (
        list(patches(folder, folder.ids, seed=s, epoch=e, **settings)) for s, e in ((0, 0), (1, 0), (0, 1))
    )
    assert not torch.equal(a.image, b.image) and not torch.equal(a.image, c.image)


def test_every_chip_has_its_turn_in_proportion_to_its_area(folder):
    sampler = Sampler(folder, folder.ids, patch=8, seed=0)
    assert len(sampler) == 25 + 25 + 15 + 1
    for lap in range(2):
        drawn = [sampler.draw(0, lap * len(sampler) + i).chip for i in range(len(sampler))]
        assert [drawn.count(id_) for id_ in folder.ids] == [25, 25, 15, 1]


def test_class_balanced_centers_are_uniform_within_three_sigma(folder):
    n = 2000
    sampler = Sampler(folder, folder.ids, patch=9, seed=1, balance="classes")
    labels = {id_: folder.read(id_) for id_ in folder.ids}
    centers = [(labels[d.chip], d.center) for d in (sampler.draw(0, i) for i in range(n))]
    assert all(chip.valid[at] for chip, at in centers)
    water = sum(int(chip.label[at]) for chip, at in centers)
    assert abs(water - n / 2) < 3 * np.sqrt(n) / 2
    for i in range(200):
        draw = sampler.draw(0, i)
        if folder.row(draw.chip).height >= 9 and folder.row(draw.chip).width >= 9:
            assert 0 <= draw.center[0] - draw.row < 9 and 0 <= draw.center[1] - draw.col < 9


def test_every_class_that_is_there_is_drawn_alike_and_centered(tmp_path):
    """Of four classes one has no pixel, and the rarest a single one in a corner."""
    writer = ChipWriter(tmp_path, ChipHeader(("B03",), "reflectance", ("land", "water", "ice", "snow"), 10.0))
    for i in range(3):
        label = np.zeros((20, 30), np.uint8)
        label[5:9, 4:20] = 3
        label[0, 0] = 1 if i == 2 else 0
        writer.write(f"c{i}", f"g{i}", np.full((1, 20, 30), 0.1, np.float32), label)
    folder, n = writer.finish(), 1800
    draws = [Sampler(folder, folder.ids, patch=7, seed=0, balance="classes").draw(0, i) for i in range(n)]
    drawn = np.bincount([int(folder.read(d.chip).label[d.center]) for d in draws], minlength=4)
    assert drawn[2] == 0
    assert (np.abs(drawn[[0, 1, 3]] - n / 3) < 3 * np.sqrt(n * 2 / 9)).all(), drawn
    for d in draws:
        moved = [min(max(c - 3, 0), side - 7) for c, side in zip(d.center, (20, 30), strict=True)]
        assert [d.row, d.col] == moved  # in the middle, unless the patch would leave the chip
    assert {(d.chip, d.row, d.col) for d in draws if d.center == (0, 0) and d.chip == "c2"} == {("c2", 0, 0)}


def test_class_balanced_chips_are_drawn_in_proportion_to_their_pixels_of_the_class(folder):
    sampler = Sampler(folder, folder.ids, patch=9, seed=4, balance="classes")
    chips = {id_: folder.read(id_) for id_ in folder.ids}
    draws = [sampler.draw(0, i) for i in range(3000)]
    land = [d.chip for d in draws if chips[d.chip].label[d.center] == 0]
    pixels = np.array([folder.row(id_).class_counts[0] for id_ in folder.ids])
    expected = pixels / pixels.sum()
    found = np.array([land.count(id_) for id_ in folder.ids]) / len(land)
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / len(land))).all(), (found, expected)


def test_d4_turns_all_planes_alike_and_all_eight_occur(folder):
    plain = {"patch": 40, "batch": 1, "count": 64, "seed": 2}
    turns = [Sampler(folder, ["c0"], patch=40, seed=2, augment="d4").draw(0, i).turn for i in range(64)]
    assert set(turns) == set(range(8))
    for batch, turn in zip(patches(folder, ["c0"], augment="d4", **plain), turns, strict=True):
        chip = folder.read("c0")

        def turned(a, turn=turn):
            a = np.rot90(a, turn % 4, axes=(-2, -1))
            return a[..., ::-1] if turn >= 4 else a

        assert np.array_equal(batch.image[0].numpy(), turned(chip.image))
        assert np.array_equal(batch.label[0].numpy(), turned(chip.label))
        assert np.array_equal(batch.valid[0].numpy(), turned(chip.valid))
        assert np.array_equal(batch.seen[0].numpy(), turned(chip.seen))


def test_a_small_chip_sits_in_unseen_pixels(folder):
    (batch,) = patches(folder, ["c3"], patch=32, batch=1, count=1)
    assert batch.seen.sum() == 10 * 11 and batch.seen[0, 11:21, 10:21].all()
    assert (batch.image[:, :, ~batch.seen[0]] == 0).all() and not batch.valid[~batch.seen].any()


def test_whole_chips_share_a_batch_only_with_their_size(folder):
    batches = list(whole_chips(folder, folder.ids, 8))
    assert [b.chips for b in batches] == [("c0", "c1"), ("c2",), ("c3",)]
    for batch in batches:
        for i, id_ in enumerate(batch.chips):
            chip = folder.read(id_)
            assert np.array_equal(batch.image[i].numpy(), chip.image) and np.array_equal(
                batch.valid[i].numpy(), chip.valid
            )
    (padded,) = whole_chips(folder, ["c3"], multiple=16, workers=2)
    assert padded.image.shape == (1, 2, 16, 16) and padded.seen.sum() == 110 and not padded.seen[0, 10:].any()


def test_edits_reach_patches_and_whole_chips(folder):
    def flip(chip):
        return replace(chip, label=np.where(chip.valid, 1 - chip.label, 0))

    settings = {"patch": 16, "batch": 8, "count": 16, "seed": 4}
    for a, b in zip(
        patches(folder, folder.ids, **settings),
        patches(folder, folder.ids, edit=flip, workers=2, **settings),
        strict=True,
    ):
        assert a.chips == b.chips and torch.equal(a.image, b.image) and torch.equal(a.valid, b.valid)
        assert torch.equal(a.label[a.valid], 1 - b.label[b.valid])
    (a,), (b,) = list(whole_chips(folder, ["c0"])), list(whole_chips(folder, ["c0"], edit=flip))
    assert torch.equal(a.label[a.valid], 1 - b.label[b.valid])
    with pytest.raises(DataError, match="fix edit"):
        list(whole_chips(folder, ["c0"], edit=lambda chip: replace(chip, valid=np.ones_like(chip.valid))))
    with pytest.raises(DataError, match="fix edit"):
        list(patches(folder, ["c0"], edit=lambda chip: replace(chip, id="x"), **settings))


def test_bad_settings_are_refused_before_the_first_batch(folder):
    for settings, match in (
        ({"patch": 0}, "at least 1"),
        ({"balance": "clases"}, "did you mean 'classes'"),
        ({"augment": "d8"}, "known: d4"),
        ({"batch": 0}, "batch >= 1"),
        ({"workers": -1}, "workers >= 0"),
        ({"count": -1}, "count"),
    ):
        with pytest.raises(UsageError, match=match):
            patches(folder, folder.ids, **{"patch": 8, "batch": 2, **settings})
    with pytest.raises(DataError, match="got none"):
        patches(folder, [], patch=8, batch=2)
    with pytest.raises(DataError, match="expected an id"):
        patches(folder, ["nope"], patch=8, batch=2)
    with pytest.raises(UsageError, match="multiple"):
        whole_chips(folder, folder.ids, multiple=0)


def test_nothing_valid_cannot_be_balanced(tmp_path):
    writer = ChipWriter(tmp_path, HEADER)
    writer.write("x", "g", np.ones((2, 8, 8), np.float32), np.full((8, 8), 255, np.uint8))
    folder = writer.finish()
    with pytest.raises(DataError, match="valid pixels"):
        patches(folder, ["x"], patch=4, batch=1, balance="classes")
    (batch,) = patches(folder, ["x"], patch=8, batch=4, count=1)
    assert not batch.valid.any() and batch.seen.all()


def test_a_consumer_that_stops_early_leaves_no_threads(folder):
    import threading

    before = threading.active_count()
    stream = patches(folder, folder.ids, patch=16, batch=2, count=500, workers=3)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_a_broken_chip_is_named_through_the_threads(tmp_path):
    writer = ChipWriter(tmp_path, HEADER)
    for i in range(3):
        writer.write(f"c{i}", "g", np.ones((2, 8, 8), np.float32), np.zeros((8, 8), np.uint8))
    folder = writer.finish()
    (tmp_path / "images/c1.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"c1\.tif"):
        list(patches(folder, folder.ids, patch=8, batch=1, workers=2))


def test_many_chips_keep_few_maps_open(tmp_path, monkeypatch):
    from seawall.data import chips

    monkeypatch.setattr(chips, "MAX_MAPPED_CHIPS", 4)
    writer = ChipWriter(tmp_path, HEADER)
    for i in range(12):
        writer.write(f"c{i:02d}", "g", np.full((2, 8, 8), i, np.float32), np.zeros((8, 8), np.uint8))
    folder = writer.finish()
    for batch in patches(folder, folder.ids, patch=8, batch=3, workers=2):
        for i, name in enumerate(batch.chips):
            assert (batch.image[i] == int(name[1:3])).all()
    assert len(folder._maps) <= 4
    monkeypatch.setattr(chips, "MAX_MAPPED_BYTES", 1000)  # one chip has 2 * 64 * 4 + 64 bytes
    folder = chips.ChipFolder.open(tmp_path)
    list(patches(folder, folder.ids, patch=8, batch=3))
    assert len(folder._maps) == 1 and folder._bytes == 576


def test_a_feed_begins_in_the_middle_of_an_epoch_without_cutting_what_was_before(folder, monkeypatch):
    feed = PatchFeed(folder, folder.ids, 16, 3, 13, seed=2, balance="classes", augment="d4", workers=2)
    all_of_them = list(feed(1))
    assert [len(batch) for batch in all_of_them] == [3, 3, 3, 3, 1]
    drawn = []
    real = Sampler.draw
    monkeypatch.setattr(Sampler, "draw", lambda self, epoch, i: (drawn.append((epoch, i)), real(self, epoch, i))[1])
    late = list(feed.starting_at(1, 3))
    assert sorted(drawn) == [(1, i) for i in range(9, 13)]
    assert len(late) == 2 and all(same(a, b) for a, b in zip(late, all_of_them[3:], strict=True))
    assert not same(next(iter(feed(0))), all_of_them[0])


def test_label_planes_take_the_place_of_the_stored_ones(folder):
    planes = {id_: folder.stored(id_)[1].copy() for id_ in folder.ids}
    for plane in planes.values():
        plane[plane != 255] = 1 - plane[plane != 255]
    planes["c1"][5] = 255
    settings = {"patch": 16, "batch": 4, "count": 16, "augment": "d4"}
    ignored = 0
    for a, b in zip(
        patches(folder, folder.ids, **settings),
        patches(folder, folder.ids, labels=planes.__getitem__, workers=2, **settings),
        strict=True,
    ):
        assert torch.equal(a.image, b.image) and torch.equal(a.seen, b.seen)
        assert torch.equal(b.label[b.valid], 1 - a.label[b.valid])
        assert not (b.valid & ~a.valid).any()
        ignored += int((a.valid & ~b.valid).sum())
    assert ignored > 0
    with pytest.raises(DataError, match="expected a label of 40x40"):
        list(patches(folder, ["c0"], labels=lambda id_: planes["c3"], **settings))
    with pytest.raises(UsageError, match="edit or labels"):
        list(patches(folder, ["c0"], labels=planes.__getitem__, edit=lambda chip: chip, **settings))
