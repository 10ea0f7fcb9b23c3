"""Whatever the threat: projections are idempotent, the identity inside, and steps never leave the set."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.region import Patch

BANDS = 3
strengths = st.floats(0.001, 0.5)


@st.composite
def threats(draw: st.DrawFn) -> ThreatModel:
    spectrum = draw(st.none() | st.tuples(strengths, strengths, strengths))
    eps = draw(strengths if spectrum else strengths | st.tuples(strengths, strengths, strengths))
    low = draw(st.none() | st.floats(-0.2, 0.4))
    high = draw(st.none() | st.floats(0.5, 1.0))
    return ThreatModel(
        draw(st.sampled_from(["linf", "l2"])), eps, low=low, high=high,
        bands=draw(st.none() | st.sets(st.integers(0, BANDS - 1), min_size=1).map(lambda s: tuple(sorted(s)))),
        region=draw(st.none() | st.builds(Patch, st.integers(0, 5), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6))),
        sign=draw(st.sampled_from(["both", "up", "down"])), spectrum=spectrum,
    )  # fmt: skip


def ground(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(2, BANDS, 6, 6, generator=draw)
    seen = torch.rand(2, 6, 6, generator=draw) > 0.2
    return x, seen, x + torch.randn(x.shape, generator=draw), torch.randn(x.shape, generator=draw)


def rounding(threat: ThreatModel, x: Tensor) -> float:
    """How far storing an image of values up to 1 in float32 can move its distance: bands of a small eps are scaled up."""
    if not isinstance(threat.eps, tuple):
        return 0.0
    smallest = min((eps for eps in threat.eps if eps > 0), default=threat.radius)
    return 2**-25 * x[0].numel() ** 0.5 * threat.radius / max(smallest, 1e-30)


@settings(max_examples=60, deadline=None)
@given(threats(), st.integers(0, 1000))
def test_projection(threat: ThreatModel, seed: int) -> None:
    x, seen, far, _ = ground(seed)
    once = threat.project(far, x, seen)
    assert torch.allclose(threat.project(once, x, seen), once, rtol=0, atol=1e-6)
    assert torch.allclose(threat.project(x, x, seen), x, rtol=0, atol=0)
    assert bool((threat.distance(once, x) <= threat.radius * (1 + 1e-5) + 1e-6 + rounding(threat, x)).all())
    free = threat.free(x, seen)
    assert torch.equal(once[~free], x[~free])
    if threat.spectrum is None:
        low = x.clamp(max=-torch.inf if threat.low is None else threat.low)
        high = x.clamp(min=torch.inf if threat.high is None else threat.high)
        assert bool((once >= torch.minimum(low, x) - 1e-6).all() and (once <= torch.maximum(high, x) + 1e-6).all())
        inside = x + 0.3 * (once - x)  # the set is convex and holds x
        assert torch.allclose(threat.project(inside, x, seen), inside, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(threats(), st.integers(0, 1000))
def test_starts_and_steps_stay_inside_and_steps_climb(threat: ThreatModel, seed: int) -> None:
    x, seen, _, grad = ground(seed)
    ball = threat.around(x, seen)
    start = ball.start(Keys(seed, ("a", "b")))
    moved = ball.project(x + ball.ascend(grad))
    for adv in (start, moved):
        assert torch.allclose(ball.project(adv), adv, rtol=0, atol=1e-6)
    gain = (grad * (moved - x)).flatten(1).sum(1)
    assert bool((gain >= -1e-5).all())


@settings(max_examples=40, deadline=None)
@given(threats(), st.integers(0, 1000))
def test_selecting_and_narrowing_commute_with_the_whole(threat: ThreatModel, seed: int) -> None:
    x, seen, far, _ = ground(seed)
    ball = threat.around(x, seen)
    assert torch.equal(ball.select(torch.tensor([1])).project(far[1:]), ball.project(far)[1:])
    mask = far[:, 0] > 0.5
    narrow = ball.within(mask).project(far)
    assert torch.equal(narrow[~mask[:, None].expand_as(x)], x[~mask[:, None].expand_as(x)])


@settings(max_examples=30, deadline=None)
@given(strengths, st.integers(0, 1000), st.sampled_from(["linf", "l2"]))
def test_no_direction_climbs_steeper(eps: float, seed: int, norm: str) -> None:
    x, seen, far, grad = ground(seed)
    ball = ThreatModel(norm, eps).around(x, torch.ones_like(seen))  # type: ignore[arg-type]
    best = (grad * ball.ascend(grad)).flatten(1).sum(1)
    other = (grad * (ball.project(far) - x)).flatten(1).sum(1)
    assert bool((other <= best + 1e-4).all())
