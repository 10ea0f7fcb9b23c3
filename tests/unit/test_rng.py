"""Random numbers per chip: order, batch size and the other chips of a batch change nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from seawall.rng import Keys


@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 2**31))
def test_a_draw_follows_its_chip(order: list[str], seed: int) -> None:
    whole = dict(zip("abcd", Keys(seed, tuple("abcd")).fold("x").normal((3,)), strict=True))
    for chip, draw in zip(order, Keys(seed, tuple(order)).fold("x").normal((3,)), strict=True):
        assert torch.equal(draw, whole[chip])


def test_purposes_seeds_and_chips_do_not_share_a_stream() -> None:
    keys = Keys(0, ("a",))
    draws = [keys, keys.fold("x"), keys.fold("x", 1), keys.fold("x1"), Keys(1, ("a",)), Keys(0, ("b",))]
    assert len({k.number(0) for k in draws}) == len(draws)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    Keys(0, ("a", "b")).uniform((4, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_uniform_stays_in_its_range() -> None:
    draw = Keys(3, ("a", "b")).uniform((1000,), -2.0, 5.0)
    assert draw.shape == (2, 1000)
    assert -2 <= float(draw.min()) < -1.9
    assert 4.9 < float(draw.max()) <= 5
