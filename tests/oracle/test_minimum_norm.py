"""Minimum-norm attacks against closed forms: the prox of each norm, and the smallest noise on a linear model."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seawall.attacks.alma_prox import ALMAProx, _penalty, _penalty_derivative
from seawall.attacks.fgsm import FGSM
from seawall.attacks.minimum_norm import DAG, PerturbationSpace, prox_l2, prox_linf
from seawall.attacks.pdpgd import PDPGD
from seawall.evaluation.case import Case
from seawall.evaluation.evaluate import evaluate_model
from seawall.metrics.aggregate import aggregate_records
from seawall.records import RecordLog
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.threat.model import ThreatModel

FAR = torch.full((3, 1, 4, 5), 1e9)
ONES = torch.ones(3, 1, 4, 5)


def noise() -> Tensor:
    return torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))


def project_l1(v: Tensor, radius: float) -> Tensor:
    """The nearest point of the l1 ball, by sorting."""
    if v.abs().sum() <= radius:
        return v
    sorted_ = v.abs().flatten().sort(descending=True).values
    sums = sorted_.cumsum(0) - radius
    count = torch.arange(1, len(sorted_) + 1)
    last = int((sorted_ > sums / count).nonzero().max())
    return v.sign() * (v.abs() - sums[last] / (last + 1)).clamp_min(0)


@pytest.mark.parametrize("weight", [0.1, 1.0, 7.0, 1000.0])
def test_prox_of_linf_is_what_the_l1_ball_leaves(weight: float) -> None:
    v = noise()
    got = prox_linf(v, torch.full((3,), weight), ONES, -FAR, FAR)
    want = torch.stack([one - weight * project_l1(one / weight, 1.0) for one in v])
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("weight", [0.1, 1.0, 1000.0])
def test_prox_of_l2_shrinks_towards_zero(weight: float) -> None:
    v = noise()
    got = prox_l2(v, torch.full((3,), weight), ONES, -FAR, FAR)
    length = v.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.allclose(got, v * (1 - weight / length).clamp_min(0), atol=1e-5)


@pytest.mark.parametrize("prox", [prox_linf, prox_l2])
def test_prox_without_weight_is_the_identity_and_a_metric_is_kept(prox: object) -> None:
    v, metric = noise(), torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(1)) + 0.1
    assert torch.allclose(prox(v, torch.zeros(3), metric, -FAR, FAR), v, atol=1e-6)  # type: ignore[operator]
    weight = torch.full((3,), 0.4)
    best = prox(v, weight, metric, -FAR, FAR)  # type: ignore[operator]
    norm = (lambda p: p.flatten(1).abs().amax(1)) if prox is prox_linf else (lambda p: p.flatten(1).norm(dim=1))

    def cost(p: Tensor) -> Tensor:
        return weight * norm(p) + (metric * (p - v).square() / 2).flatten(1).sum(1)

    draw = torch.Generator().manual_seed(2)
    for scale in (1e-1, 1e-2, 1e-3):
        other = best + scale * torch.randn(v.shape, generator=draw)
        assert (cost(best) <= cost(other) + 1e-6).all()


def test_prox_in_a_box_beats_every_other_point_of_the_box() -> None:
    v, low, high = 2 * noise(), -0.3 * ONES, 0.8 * ONES
    weight = torch.full((3,), 0.7)
    best = torch.clamp(prox_linf(v, weight, ONES, low, high), low, high)

    def cost(p: Tensor) -> Tensor:
        return weight * p.flatten(1).abs().amax(1) + ((p - v).square() / 2).flatten(1).sum(1)

    draw = torch.Generator().manual_seed(3)
    for scale in (0.3, 0.03, 0.003):
        other = torch.clamp(best + scale * torch.randn(v.shape, generator=draw), low, high)
        assert (cost(best) <= cost(other) + 1e-6).all()


def test_slope_of_the_penalty_is_its_derivative() -> None:
    y = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    for rho, mu in ((0.01, 1.0), (2.0, 0.3), (50.0, 1e-6)):
        rhos, mus = torch.full_like(y, rho), torch.full_like(y, mu)
        (grad,) = torch.autograd.grad(_penalty(y, rhos, mus).sum(), y)
        assert torch.allclose(grad, _penalty_derivative(y.detach(), rhos, mus))


def smallest(norm: str, enough: float) -> tuple[Tensor, Tensor]:
    """The smallest noise that moves enough pixels of a linear model, and the margins over the weights."""
    model, batch = linear_model(), ground_batch(size=16)
    away = (model.weight[1] - model.weight[0]).detach()
    logits, sign = model(batch.image).detach(), 1 - 2 * torch.where(batch.valid, batch.label, 0)
    gap = ((logits[:, 0] - logits[:, 1]) * sign).clamp_min(0)
    found = []
    for one, valid in zip(gap, batch.valid, strict=True):
        need = (one[valid] / (away.abs().sum() if norm == "linf" else away.norm())).sort().values
        need = need[: math.ceil(enough * len(need))]
        found.append(need[-1] if norm == "linf" else need.square().sum().sqrt())
    return torch.stack(found), away


@pytest.mark.parametrize(
    ("attack", "linf", "l2"),
    [(DAG(steps=400, step=0.01), 1.05, 1.05), (PDPGD(steps=300), 1.05, 1.25), (ALMAProx(steps=300), 1.01, 1.04)],
    ids=["dag", "pdpgd", "alma-prox"],
)
def test_smallest_noise_on_a_linear_model(attack: DAG | PDPGD | ALMAProx, linf: float, l2: float) -> None:
    model, batch = linear_model(), ground_batch(size=16)
    for norm, eps, within in (("linf", 0.03, linf), ("l2", 0.5, l2)):
        threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
        adv = attack.solve(model, batch, threat, Keys(0, batch.chips)).free
        best, _ = smallest(norm, 0.99)
        far = threat.distance(adv, batch.image)
        assert (far >= best * (1 - 1e-4)).all(), "less than the least is impossible"
        assert (far <= best * within).all(), f"{norm}: {far / best}"
        fell = ((model(adv).argmax(1) != batch.label) & batch.valid).flatten(1).sum(1)
        assert (fell >= 0.99 * batch.valid.flatten(1).sum(1)).all()


@pytest.mark.parametrize(
    "attack", [DAG(), PDPGD(steps=250), ALMAProx(steps=60, rate=0.2)], ids=["dag", "pdpgd", "alma-prox"]
)
def test_free_noise_leaves_the_budget_and_the_call_does_not(attack: DAG | PDPGD | ALMAProx) -> None:
    model, batch, tight = linear_model(), ground_batch(), ThreatModel("linf", 0.01)
    keys = Keys(0, batch.chips)
    assert (tight.distance(attack.solve(model, batch, tight, keys).free, batch.image) > tight.radius).all()
    inside = attack(model, batch, tight, keys)
    assert (tight.distance(inside, batch.image) <= tight.radius * 1.0001).all()
    right = lambda image: ((model(image).argmax(1) == batch.label) & batch.valid).sum()  # noqa: E731
    assert right(inside) < right(batch.image)


def test_two_classes_and_a_bounded_image_are_no_special_case() -> None:
    batch = ground_batch()
    field = PerturbationSpace.of(ThreatModel("linf", 0.02, low=0.25, bands=(0,)), batch.image, batch.seen)
    assert not bool((field.image(field.low) < torch.minimum(batch.image, torch.tensor(0.25)) - 1e-5).any())
    assert torch.equal(field.image(field.low)[:, 1], batch.image[:, 1])


def test_the_free_norm_reaches_the_rows_beside_the_result_inside(tmp_path: Path) -> None:
    model, batch = linear_model(), ground_batch(size=12)
    tight = ThreatModel("linf", 0.005)
    rows = evaluate_model(
        model, [batch], log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m",
        attacks=[Case("dag", DAG(steps=150, step=0.5), tight), Case("fgsm", FGSM(), tight)],
    )  # fmt: skip
    solved = DAG(steps=150, step=0.5).solve(model, batch, tight, Keys(0, batch.chips))
    assert solved.reached.all()
    free = {r.chip: r.value for r in rows if r.metric == "distance.free.linf"}
    for i, chip in enumerate(batch.chips):
        assert free[chip] == pytest.approx(float((solved.free[i] - batch.image[i]).abs().max()), abs=1e-7)
        assert free[chip] > 0.005 >= max(r.value for r in rows if r.metric == "distance.linf" and r.chip == chip) - 1e-6
    assert {r.method for r in rows if r.metric.startswith("distance.free")} == {"dag"}
    whole = {r.metric: r.value for r in aggregate_records(rows) if r.method == "dag" and not r.group}
    assert whole["distance.free.linf"] == pytest.approx(sum(free.values()) / 3) and whole["distance.free.reached"] == 1


def test_a_noise_that_was_not_found_has_no_norm(tmp_path: Path) -> None:
    model, batch = linear_model(), ground_batch(size=12)
    short = Case("dag", DAG(steps=1, step=0.001), ThreatModel("linf", 0.005))
    rows = evaluate_model(model, [batch], log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m", attacks=[short])
    assert {r.value for r in rows if r.metric == "distance.free.linf"} == {None}
    assert {r.value for r in rows if r.metric == "distance.free.reached"} == {0.0}
