"""APGD with the red-eps schedule, large balls first and adaptive steps, and its presets by loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from seawall.attacks.ascent import BestAdversarial, check_steps
from seawall.attacks.losses import (
    CROSS_ENTROPY,
    AttackLoss,
    BalancedCrossEntropy,
    JensenShannon,
    LossSetting,
    MaskedCrossEntropy,
    SphericalLoss,
    TsallisCrossEntropy,
)
from seawall.attacks.target import UNTARGETED, Goal, attack_mode, autograd_ready, check_attack_inputs, make_target
from seawall.errors import UsageError
from seawall.registry import preset, register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel, per_image
from seawall.types import Batch, SegmentationModel

RED_EPS = (2.0, 1.5, 1.0)
STEP_SHARES = (0.3, 0.3, 0.4)


@register("attack", "apgd", paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class APGD:
    """Automatic step sizes and momentum, in balls that shrink to eps.

    Each stage starts from the most adversarial image of the one before, projected to its ball; only the last stage's
    images count. A step is halved, and the ascent resumes at the best loss, when too few steps raised the loss. Progress is
    measured by plain cross-entropy whatever the loss. A loss with a schedule runs through it in every stage anew, as in the
    released code.

    Args:
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps of all stages together; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1. `(1.0,)` with `shares = (1.0,)` keeps eps.
        shares: Share of the steps that each stage gets.
        random_start: Whether to start at a random image of the first ball, or at the clean one.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3.2; Croce, Hein 2020, arXiv:2003.01690. Differs: pixel
    accuracy and losses are over valid pixels only.
    """

    name: ClassVar[str] = "apgd"
    goal: Goal = UNTARGETED
    loss: LossSetting = CROSS_ENTROPY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = STEP_SHARES
    random_start: bool = True

    def __post_init__(self) -> None:
        check_steps(self.name, self.steps)
        if len(self.radii) != len(self.shares) or not self.radii or self.radii[-1] != 1 or min(self.radii) < 1:
            raise UsageError(
                f"{self.name}: expected radii that end at 1 with a share each, got {self.radii} and {self.shares}; "
                "write radii = [2, 1.5, 1], shares = [0.3, 0.3, 0.4]"
            )
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.plan) < 1:
            raise UsageError(
                f"{self.name}: expected shares that sum to 1 and give each stage a step, got {self.shares} of {self.steps}; "
                "take more steps"
            )

    @property
    def plan(self) -> tuple[int, ...]:
        """Steps of each stage; the last one gets what rounding leaves."""
        early = [int(share * self.steps + 1e-9) for share in self.shares[:-1]]
        return (*early, self.steps - sum(early))

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs(self.name, model, batch, threat)
        if threat.radius == 0:
            return batch.image.detach().clone()
        with attack_mode(model):
            batch = autograd_ready(batch)
            target = make_target(model, batch, self.goal)
            adv = batch.image
            for stage, (radius, steps) in enumerate(zip(self.radii, self.plan, strict=True)):
                best = BestAdversarial(model, target, threat.scaled(radius).around(batch.image, batch.image_seen))
                if best.done:
                    break
                if stage == 0 and self.random_start:
                    start = best.ball.start(keys.select(best.active.tolist()).fold("start"))
                else:
                    start = best.ball.project(adv[best.active])
                adv = _run_stage(best, start, self.loss, steps)
        return adv.detach().clone() if adv is batch.image else adv


@dataclass
class _ApgdState:
    """State of the ascent of each active image."""

    adv: Tensor
    before: Tensor  # the image one step ago, for the momentum
    grad: Tensor
    top: Tensor  # the image of the best loss, with its gradient
    top_grad: Tensor
    loss: Tensor
    top_loss: Tensor
    top_at_check: Tensor
    step: Tensor
    gains: Tensor  # steps of this window that raised the loss
    halved: Tensor  # at the last check

    def select(self, kept: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[kept])


def _run_stage(best: BestAdversarial, start: Tensor, loss: AttackLoss, steps: int) -> Tensor:
    grad, tracked = best.loss_gradient(start, loss, 0.0, track=True)
    # the released code finds a gain in the first step of a stage, whatever the loss was at its start
    no_loss = torch.full_like(tracked, -torch.inf)
    state = _ApgdState(
        start, start, grad, start, grad, no_loss, tracked, tracked,
        torch.full_like(tracked, 2.0), torch.zeros_like(tracked), torch.ones_like(tracked, dtype=torch.bool),
    )  # fmt: skip
    window, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    age = 0
    for i in range(steps):
        if (kept := best.drop_done()) is not None:
            state.select(kept)
        if best.done:
            break
        _momentum_step(best, state, momentum=0.25 if i else 0.0)
        if i == steps - 1:
            best.evaluate(state.adv)
            break
        state.grad, tracked = best.loss_gradient(state.adv, loss, (i + 1) / steps, track=True)
        _track_best(state, tracked)
        age += 1
        if age == window:
            _adapt_step(state, window)
            age, window = 0, max(window - shrink, least)
    return best.result()


def _momentum_step(best: BestAdversarial, state: _ApgdState, momentum: float) -> None:
    shift, state.before = state.adv - state.before, state.adv
    ahead = best.ball.project(state.adv.addcmul(per_image(state.step), best.ball.ascend(state.grad)))
    state.adv = best.ball.project(state.adv.lerp(ahead, 1 - momentum).add_(shift, alpha=momentum))


def _track_best(state: _ApgdState, tracked: Tensor) -> None:
    state.gains = state.gains + (tracked > state.loss)
    state.loss = tracked
    better = tracked > state.top_loss
    state.top_loss = torch.maximum(tracked, state.top_loss)
    if bool(better.all()):
        state.top, state.top_grad = state.adv, state.grad
    elif bool(better.any()):
        state.top = torch.where(per_image(better), state.adv, state.top)
        state.top_grad = torch.where(per_image(better), state.grad, state.top_grad)


def _adapt_step(state: _ApgdState, window: int) -> None:
    stuck = ~state.halved & (state.top_at_check >= state.top_loss)
    halve = (state.gains <= 0.75 * window) | stuck
    if bool(halve.any()):
        state.step = torch.where(halve, state.step / 2, state.step)
        state.adv = torch.where(per_image(halve), state.top, state.adv)
        state.grad = torch.where(per_image(halve), state.top_grad, state.grad)
    state.halved, state.top_at_check, state.gains = halve, state.top_loss, torch.zeros_like(state.gains)


preset(
    "attack", "masked-ce", APGD(loss=MaskedCrossEntropy()), paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",),
    summary="APGD on the cross-entropy of the pixels that are still right.", differs="counts valid pixels only",
)  # fmt: skip
preset(
    "attack", "balanced-ce", APGD(loss=BalancedCrossEntropy()), paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",),
    summary="APGD on the masked cross-entropy with each class weighted by one over its pixels.",
    differs="counts valid pixels only; without weights the pixels are counted in each image, where the paper counts the training set",
)  # fmt: skip
preset(
    "attack", "js", APGD(loss=JensenShannon()), paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",),
    summary="APGD on the Jensen-Shannon divergence of prediction and label, in closed form.", differs="counts valid pixels only",
)  # fmt: skip
# weak on two classes: the angle of opposite logits (-z, z) does not change, so their gradient vanishes
preset(
    "attack", "spherical", APGD(loss=SphericalLoss()), paper="arXiv:2306.12941v1", smoke={"steps": 10}, traits=("weak", "stochastic"),
    summary="APGD on the cosine of the logits with the label, over the pixels that are still right.", differs="counts valid pixels only",
)  # fmt: skip
preset(
    "attack", "tsallis", APGD(loss=TsallisCrossEntropy()), paper="Matyasko et al. 2026", smoke={"steps": 10}, traits=("stochastic",),
    summary="APGD on the Tsallis cross-entropy, q moving linearly over each stage.", differs="counts valid pixels only",
)  # fmt: skip
