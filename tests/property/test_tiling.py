"""Tiled equals whole: any size, tile, window, batch and order of work gives the same map."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seawall.inference.tiling import TileAxis, TilePlan, blend_tiles

SIZES = st.integers(1, 300)
TILES_LIST = [(64, 32), (96, 32), (128, 64), (64, 0), (160, 64)]
TILES = st.sampled_from(TILES_LIST)


class Same(nn.Module):
    """Says of a pixel what the pixel says."""

    def forward(self, x):
        return x


class Local(nn.Module):
    """Two classes; receptive field 4 pixels around, with one 2x pooling on the way."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.a = nn.Conv2d(2, 4, 3, padding=1)
            self.b = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x):
        y = torch.tanh(self.a(x))
        y = y + nn.functional.interpolate(nn.functional.max_pool2d(y, 2), scale_factor=2)
        return self.b(y).mul(3).softmax(1)


def scene(height, width, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, height, width)).astype(np.float32), rng.random((height, width)) > 0.1


def run(model, data, seen, tile, overlap, align=32, **settings):
    height, width = seen.shape

    def fetch(row, col, h, w):
        at = (slice(row, row + h), slice(col, col + w))
        return data[(slice(None), *at)], seen[at]

    def predict(images):
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    whole = np.full((2, height, width), np.nan, np.float32)
    for strip in blend_tiles(TilePlan.of(height, width, tile, overlap, align=align), fetch, predict, 2, **settings):
        h, w = strip.seen.shape
        whole[:, strip.row : strip.row + h, strip.col : strip.col + w] = strip.channels
    return whole


@settings(max_examples=150, deadline=None)
@given(SIZES, TILES)
def test_weights_are_a_partition_of_unity(size, plan):
    axis = TileAxis(size, *plan)
    total = np.zeros(size)
    for k in range(len(axis.starts)):
        low, high = axis.support(k)
        weights = axis.weights(k)
        assert (weights > 0).all()
        assert (weights <= 1 + 1e-6).all()
        total[low:high] += weights
    assert np.allclose(total, 1, atol=1e-6)
    assert list(axis.starts) == sorted(set(axis.starts))


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 240), st.integers(20, 240), st.sampled_from([(64, 32), (96, 32), (128, 64)]), st.integers(0, 99))
def test_tiled_equals_whole_at_every_pixel(height, width, plan, seed):
    height, width = height // 2 * 2, width // 2 * 2
    data, _ = scene(height, width, seed)
    seen = np.ones((height, width), np.bool_)
    model = Local(seed).eval()
    with torch.inference_mode():
        whole = model(torch.from_numpy(data[None]))[0].numpy()
    tiled = run(model, data, seen, *plan, align=2, batch=2)
    assert np.abs(tiled - whole).max() < 1e-5


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.sampled_from([(32, 0), *TILES_LIST]), st.sampled_from([1, 2, 8, 32]), st.integers(0, 99))
def test_a_pixel_goes_where_it_comes_from(height, width, plan, align, seed):
    data, _ = scene(height, width, seed)
    seen = np.ones((height, width), np.bool_)
    assert np.abs(run(Same(), data, seen, *plan, align=align) - data).max() < 1e-5


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, TILES, st.integers(1, 70), st.sampled_from([32, 64, 512]), st.integers(1, 3), st.integers(0, 99))
def test_chunks_steps_and_batches_change_nothing(height, width, plan, chunk, step, batch, seed):
    data, seen = scene(height, width, seed)
    model = Local(seed).eval()
    one = run(model, data, seen, *plan)
    other = run(model, data, seen, *plan, chunk=chunk, step=step, batch=batch)
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() < 1e-6
    assert (other[:, ~seen] == 0).all()
    assert np.allclose(other[:, seen].sum(0), 1, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(2, 300), TILES, st.data(), st.integers(0, 99))
def test_a_window_equals_the_same_window_of_the_whole(height, width, plan, draw, seed):
    data, seen = scene(height, width, seed)
    model = Local(seed).eval()
    first = draw.draw(st.integers(0, height - 1))
    left = draw.draw(st.integers(0, width - 1))
    rows = (first, draw.draw(st.integers(first + 1, height)))
    cols = (left, draw.draw(st.integers(left + 1, width)))
    whole = run(model, data, seen, *plan, step=64)
    part = run(model, data, seen, *plan, step=64, rows=rows, cols=cols)
    at = (slice(None), slice(*rows), slice(*cols))
    assert np.abs(whole - part)[at].max() < 1e-6
    assert np.isnan(np.delete(part, np.s_[rows[0] : rows[1]], 1)).all()
