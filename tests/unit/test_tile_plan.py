"""The tile plan and its stream, on numbers that can be checked by hand."""

import numpy as np
import pytest
import torch

from seawall.errors import UsageError
from seawall.inference.tiling import TILE_ALIGN, TileAxis, TilePlan, blend_tiles
from seawall.models.blocks import pad_to


def everything(height, width, bands=1):
    data = np.arange(bands * height * width, dtype=np.float32).reshape(bands, height, width)
    return data, np.ones((height, width), np.bool_)


def reader(data, seen, log=None):
    def fetch(row, col, height, width):
        if log is not None:
            log.append((row, col, height, width))
        at = (slice(row, row + height), slice(col, col + width))
        return data[(slice(None), *at)], seen[at]

    return fetch


def constant(value):
    def predict(images):
        low = np.full((len(images), 1, *images.shape[2:]), 1 - value, np.float32)
        return np.concatenate([low, 1 - low], 1)

    return predict


def assemble(strips, shape, classes=2):
    whole = np.full((classes, *shape), np.nan, np.float32)
    for strip in strips:
        rows, cols = strip.seen.shape
        whole[:, strip.row : strip.row + rows, strip.col : strip.col + cols] = strip.channels
    return whole


def test_starts_are_aligned_and_the_last_tile_is_moved_back():
    assert TileAxis(1000, 512, 64).starts == (0, 448, 512)
    assert TileAxis(1000, 512, 64, align=8).starts == (0, 448, 488)
    assert TileAxis(10980, 512, 64).starts[-1] + 512 == 11008
    assert all(start % TILE_ALIGN == 0 for start in TileAxis(10980, 512, 64).starts)


def test_a_small_scene_gets_one_small_tile():
    axis = TileAxis(100, 512, 64)
    assert (axis.starts, axis.length) == ((0,), 128)
    assert TileAxis(100, 512, 64, align=8).length == 104


def test_the_fade_is_symmetric_and_sums_to_one():
    axis = TileAxis(512, 128, 64)
    total = np.zeros(512)
    for k in range(len(axis.starts)):
        low, high = axis.support(k)
        total[low:high] += axis.weights(k)
    assert total == pytest.approx(np.ones(512), abs=1e-6)
    inner = axis.weights(2)
    assert inner == pytest.approx(inner[::-1], abs=1e-6)
    assert inner[0] == pytest.approx(np.sin(np.pi / 2 * 0.5 / 32) ** 2, rel=1e-4)


def test_past_the_end_pixels_are_mirrored_as_a_network_pads_them():
    for size in (1, 2, 3, 5, 8, 13, 100):
        for align in (1, 8, 32):
            axis = TileAxis(size, 64, 32, align=align)
            row = torch.arange(size, dtype=torch.float32).expand(1, 1, 1, size)
            padded = pad_to(row, align)[0, 0, 0]
            assert axis.take(0)[0] == 0
            assert axis.take(len(axis.starts) - 1).tolist() == padded[-axis.length :].tolist()


def test_no_pixel_within_the_margin_of_a_neighbor_has_weight():
    axis = TileAxis(512, 128, 64, margin=30)
    assert [axis.support(k) for k in (0, 1, len(axis.starts) - 1)] == [(0, 98), (94, 162), (414, 512)]
    assert axis.weights(0)[0] == axis.weights(len(axis.starts) - 1)[-1] == 1
    with pytest.raises(UsageError, match="expected at least 66 pixels, twice the margin"):
        TileAxis(512, 128, 64, margin=33)


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (100, 0), (64, 33), (64, 64), (-64, 0), (64, -32)])
def test_settings_that_cannot_be_are_refused(tile, overlap):
    with pytest.raises(UsageError, match="expected"):
        TileAxis(100, tile, overlap)


def test_a_constant_stays_constant():
    data, seen = everything(150, 170)
    got = assemble(
        blend_tiles(TilePlan.of(150, 170, 64, 32), reader(data, seen), constant(0.7), 2, step=64), (150, 170)
    )
    assert got[1] == pytest.approx(np.full((150, 170), 0.7), abs=1e-6)


def test_every_pixel_is_fetched_once_in_aligned_chunks():
    data, seen = everything(300, 200)
    log = []
    list(blend_tiles(TilePlan.of(300, 200, 64, 32), reader(data, seen, log), constant(0.5), 2, chunk=128, step=64))
    assert [row for row, *_ in log] == [0, 128, 256]
    assert sum(height * width for *_, height, width in log) == 300 * 200


def test_strips_end_at_multiples_of_the_step():
    data, seen = everything(300, 80)
    strips = list(blend_tiles(TilePlan.of(300, 80, 64, 32), reader(data, seen), constant(0.5), 2, step=128))
    assert [(s.row, len(s.seen)) for s in strips] == [(0, 128), (128, 128), (256, 44)]


def test_tiles_without_a_seen_pixel_are_not_predicted():
    data, seen = everything(256, 256)
    seen[:, 128:] = False
    calls = []

    def predict(images):
        calls.append(len(images))
        return constant(0.25)(images)

    ticks = []
    strips = list(blend_tiles(TilePlan.of(256, 256, 64, 0), reader(data, seen), predict, 2, batch=3, tick=ticks.append))
    got = assemble(strips, (256, 256))
    assert sum(calls) == 8
    assert sum(ticks) == 16
    assert (got[:, :, 128:] == 0).all()
    assert got[1, :, :128] == pytest.approx(0.25)


def test_a_scene_that_was_never_seen_needs_no_network():
    data, _ = everything(70, 70)
    unseen = np.zeros((70, 70), np.bool_)

    def never(images):
        raise AssertionError("called")

    strips = list(blend_tiles(TilePlan.of(70, 70, 64, 32), reader(data, unseen), never, 2))
    assert not any(s.seen.any() or s.channels.any() for s in strips)
