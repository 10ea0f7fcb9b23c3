"""Properties of losses, containers, padding and schedules over drawn inputs."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.errors import ModelError
from seawall.labels.threshold import best_split
from seawall.losses.segmentation import BCE, CrossEntropyLoss, Dice, Focal, Jaccard, Sum
from seawall.models.blocks import pad_to
from seawall.models.weights import pack_safetensors, unpack_safetensors
from seawall.training.configuration import Training, learning_rate

CALM = settings(deadline=None, max_examples=60)  # a busy machine is no failure
LOSSES = st.sampled_from(
    [
        CrossEntropyLoss(),
        CrossEntropyLoss(smoothing=0.3),
        BCE(),
        Dice(),
        Jaccard(),
        Focal(),
        Focal(0.5),
        Sum({"focal": 2.0, "jaccard": 1.0}),
    ]
)


def draw_case(seed: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(3, classes, 4, 5, generator=draw)
    label = torch.randint(0, classes, (3, 4, 5), generator=draw)
    return logits, label, torch.rand(3, 4, 5, generator=draw) > torch.rand((), generator=draw)


@given(LOSSES, st.integers(0, 2**31), st.integers(2, 5))
@CALM
def test_losses_are_finite_not_negative_and_blind_to_order_and_shift(loss, seed, classes) -> None:
    logits, label, valid = draw_case(seed, classes)
    logits.requires_grad_()
    value = loss(logits, label, valid)
    value.backward()
    assert value.item() >= -1e-6
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad.movedim(1, -1)[~valid].any()
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(logits[order], label[order], valid[order]), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(logits + 3.0, label, valid), value, rtol=1e-3, atol=1e-4)


@given(LOSSES, st.integers(0, 2**31))
@CALM
def test_a_step_towards_the_label_lowers_the_loss(loss, seed) -> None:
    logits, label, valid = draw_case(seed, 2)
    truth = torch.nn.functional.one_hot(label, 2).movedim(-1, 1).float()
    if isinstance(loss, CrossEntropyLoss) and loss.smoothing:
        return  # its minimum is not at certainty
    assert loss(logits + truth, label, valid) <= loss(logits, label, valid) + 1e-6


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=5).filter(lambda key: key != "digest"), st.text(max_size=20), max_size=3),
    st.integers(0, 10**6),
)
@CALM
def test_the_container_gives_back_what_went_in_and_notices_a_flipped_bit(kinds, meta, at) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(kind) for name, (kind, shape) in kinds.items()}
    data, _ = pack_safetensors(tensors, meta)
    assert data == pack_safetensors(dict(reversed(tensors.items())), meta)[0]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        got, said = unpack_safetensors(path)
        assert {key: said[key] for key in meta} == meta
        assert set(got) == set(tensors)
        assert all(torch.equal(got[n], t) and got[n].dtype == t.dtype for n, t in tensors.items())
        place, bit = at % len(data), at % 8
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
        try:
            again, told = unpack_safetensors(path)
        except ModelError:
            return
        # The one change that the digest does not see is white space after the header.
        assert told == said and all(torch.equal(again[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("size", [640, 896, 1152, 1408])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path, size: int) -> None:
    for pad in range(size):
        data, _ = pack_safetensors({"w": torch.ones(2)}, {"note": "x" * pad})
        if int.from_bytes(data[:8], "little") == size:
            break
    else:
        pytest.fail(f"no padding makes a header of {size} bytes")
    assert data[0] == 0x80
    (tmp_path / "x").write_bytes(data)
    assert torch.equal(unpack_safetensors(tmp_path / "x")[0]["w"], torch.ones(2))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8, 16]))
@CALM
def test_padding_reaches_the_next_multiple_and_keeps_the_image(height, width, stride) -> None:
    x = torch.rand(1, 1, height, width)
    got = pad_to(x, stride)
    assert got.shape[-2] % stride == got.shape[-1] % stride == 0
    assert 0 <= got.shape[-2] - height < stride and 0 <= got.shape[-1] - width < stride
    assert torch.equal(got[..., :height, :width], x)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(lambda counts: sum(n > 0 for n in counts) > 1))
@CALM
def test_otsu_is_the_best_of_all_cuts(counts) -> None:
    hist = torch.tensor(counts, dtype=torch.float64)
    first, last, share = best_split(np.array(counts))
    cut = (first + last) / 2 + 1
    centers = torch.arange(len(counts), dtype=torch.float64) + 0.5
    mean = (hist * centers).sum() / max(1, hist.sum())
    spread = float((hist * (centers - mean) ** 2).sum())

    def between(k: int) -> float:
        a, b = hist[:k].sum(), hist[k:].sum()
        if not a or not b:
            return 0.0
        gap = (hist[:k] * centers[:k]).sum() / a - (hist[k:] * centers[k:]).sum() / b
        return float(a * b / hist.sum() * gap**2)

    best = max(between(k) for k in range(1, len(counts)))
    assert 0 <= share <= 1 + 1e-9
    if spread:
        assert share == pytest.approx(best / spread, rel=1e-9, abs=1e-12)
        assert between(round(cut)) == pytest.approx(best, rel=1e-9) or cut != round(cut)


@given(
    st.integers(1, 6), st.integers(1, 20), st.sampled_from(["constant", "cosine", "poly", "onecycle"]), st.floats(0.01, 0.9)
)  # fmt: skip
@CALM
def test_the_rate_stays_between_zero_and_its_top_and_falls_after_the_warm_up(epochs, steps, schedule, warmup) -> None:
    training = Training(epochs=epochs, steps_per_epoch=steps, schedule=schedule, warmup=warmup, lr=0.5)
    rates = [learning_rate(training, step) for step in range(training.steps)]
    rise = math.ceil(warmup * training.steps)
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates)
    assert rates[:rise] == sorted(rates[:rise])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    assert max(rates) == pytest.approx(0.5)
