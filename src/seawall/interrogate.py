"""Questions to a model before its robustness is believed: each answer that speaks against the number is a flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from seawall.attacks.aim import as_found, check, check_logits, take_aim, usable
from seawall.attacks.goal import AWAY
from seawall.attacks.pgd import PGD
from seawall.attacks.pixels import cross_entropy
from seawall.attacks.random import Random
from seawall.attacks.square import Square
from seawall.attacks.transfer import Transfer
from seawall.errors import UsageError
from seawall.evaluate import Case
from seawall.figures.doubts import SLACK, doubts, with_doubts
from seawall.keys import Keys
from seawall.modules import forward_kept
from seawall.threat import ThreatModel
from seawall.types import Batch, SegmentationModel

__all__ = ["QUICK", "Answers", "Interrogation", "doubts", "interrogate", "interrogated", "with_doubts"]

DRAWS = 5
LIMIT: dict[str, tuple[float, ...]] = {"reflectance": (0.5, 2.0), "stretched": (1.0,)}
FAR_DB = (10.0, 40.0)
SURVIVES = 0.25
"""Share of right pixels under an unbounded attack from which on the attack is thought broken."""


@dataclass(frozen=True)
class Answers:
    """What an interrogation found.

    Args:
        flags: Ids, as `seawall.report.flags` explains them.
        accuracy: Share of right pixels, mean over the chips, by question.
    """

    flags: tuple[str, ...]
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Interrogation:
    """How hard to ask. The cost is about 6 steps + 2 unbounded passes with gradients and queries without, per chip.

    Args:
        chips: How many chips with something right on them are asked at most.
        steps: Steps of the attack that the others are compared with.
        queries: Forward passes of the black-box attack.
        unbounded: Steps of each attack without a budget.
        gain: Accuracy that twice the steps may take away before the attack counts as not settled.
    """

    chips: int = 4
    steps: int = 20
    queries: int = 50
    unbounded: int = 40
    gain: float = 0.02

    def __post_init__(self) -> None:
        if min(self.chips, self.steps, self.queries, self.unbounded) < 1:
            raise UsageError(f"interrogation: expected at least one chip, step and query, got {self}; raise it")

    def __call__(
        self,
        model: SegmentationModel,
        batch: Batch,
        threat: ThreatModel,
        keys: Keys,
        *,
        surrogate: SegmentationModel | None = None,
    ) -> Answers:
        """Return the flags of a model under a threat; a zero budget or nothing valid raises none of the attack's."""
        check("interrogate", model, batch, threat)
        with as_found(model):
            batch = _informative(model, usable(batch), self.chips)
            keys = Keys(keys.seed, batch.chips, keys.path)
            flags = [*_forward(model, batch), *_gradient(model, batch, threat)]
            if not len(batch) or threat.radius == 0:
                return Answers(tuple(flags), {})
            right = self._ask(model, batch, threat, keys, surrogate)
        return Answers((*flags, *self._judge(right)), right)

    def _ask(
        self,
        model: SegmentationModel,
        batch: Batch,
        threat: ThreatModel,
        keys: Keys,
        surrogate: SegmentationModel | None,
    ) -> dict[str, float]:
        def after(attack: Callable[..., Tensor], told: ThreatModel = threat, name: str = "") -> float:
            return _right(model, batch, attack(model, batch, told, keys.fold("interrogate", name)))

        blind = not _has_gradient(model, batch)
        usual: Callable[..., Tensor] = Random() if blind else PGD(steps=self.steps)
        found = {"clean": _right(model, batch, batch.image), "attack": after(usual)}
        found["noise"] = min(after(Random(), name=str(draw)) for draw in range(DRAWS))
        found["black box"] = after(Square(steps=self.queries))
        found["transfer"] = after(Transfer(surrogate=surrogate, attack_settings={"steps": self.steps}))
        if not blind:
            found["twice the steps"] = min(after(PGD(steps=2 * self.steps)), after(PGD(steps=self.steps, restarts=2)))
            found["half eps"] = after(usual, threat.scaled(0.5))
            found["twice eps"] = after(usual, threat.scaled(2.0))
            long = PGD(steps=self.unbounded, step=0.1)
            far = [ThreatModel("linf", eps, threat.unit) for eps in LIMIT.get(threat.unit, FAR_DB)]
            found["unbounded"] = min(after(long, told) for told in far)
        return found

    def _judge(self, right: dict[str, float]) -> list[str]:
        attack, flags = right["attack"], []
        if right["noise"] < attack - SLACK:
            flags.append("weaker-than-noise")
        if right["black box"] < attack - SLACK:
            flags.append("black-box-wins")
        if right["transfer"] < attack - SLACK:
            flags.append("transfer-wins")
        if right.get("twice the steps", attack) < attack - self.gain:
            flags.append("more-steps-gain")
        if right.get("half eps", attack) < attack - SLACK or right.get("twice eps", attack) > attack + SLACK:
            flags.append("not-monotone")
        if right.get("unbounded", 0.0) > SURVIVES:
            flags.append("unbounded-survives")
        return flags


def interrogate(
    model: SegmentationModel,
    batch: Batch,
    threat: ThreatModel,
    keys: Keys,
    *,
    surrogate: SegmentationModel | None = None,
) -> tuple[str, ...]:
    """Return the flags that a robustness number of this model carries.

    Args:
        model: Any model with a spec; it is left as it was found.
        batch: Labelled chips; a few are enough.
        threat: What the adversary may do.
        keys: Randomness.
        surrogate: Another model for the transfer attack; a classifier per pixel where None.

    Example:
        >>> from seawall.testing import ground_batch, linear_model
        >>> batch = ground_batch()
        >>> interrogate(linear_model(), batch, ThreatModel("linf", 0.03), Keys(0, batch.chips))
        ()
    """
    return Interrogation()(model, batch, threat, keys, surrogate=surrogate).flags


QUICK = Interrogation(chips=2, queries=25, unbounded=25)
"""What a run can afford for every network that it attacks."""


def interrogated(
    model: SegmentationModel, batches: Iterable[Batch], cases: Sequence[Case], seed: int, ask: Interrogation = QUICK
) -> list[Case]:
    """Return the cases with the model's flags on every attack; it is asked once, at the threat of the first attack.

    Args:
        model: Any model with a spec.
        batches: Chips; as many as the interrogation wants are read.
        cases: What is to be measured.
        seed: Seed of the interrogation.
        ask: How hard to ask.
    """
    threats = [case.threat for case in cases if isinstance(case.threat, ThreatModel)]
    if not threats:
        return list(cases)
    parts: list[Batch] = []
    for batch in batches:
        parts.append(batch.select(range(min(len(batch), ask.chips - sum(map(len, parts))))))
        if sum(map(len, parts)) >= ask.chips:
            break
    flags: dict[str, None] = {}
    for part in parts:  # chips of one size make one batch, so this is mostly one question
        home = next((t.device for t in _tensors(model)), part.image.device)
        keys = Keys(seed, part.chips, ("interrogate",))
        flags |= dict.fromkeys(ask(model, part.to(home), threats[0], keys).flags)
    return [
        replace(case, flags=tuple(dict.fromkeys((*case.flags, *flags))))
        if isinstance(case.threat, ThreatModel)
        else case
        for case in cases
    ]


def _tensors(model: SegmentationModel) -> Iterable[Tensor]:
    return (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()


def _informative(model: SegmentationModel, batch: Batch, most: int) -> Batch:
    """Return the first chips where something is right, so that there is something to lose."""
    if not len(batch):
        return batch
    with torch.no_grad():
        right = ((forward_kept(model, batch.image).argmax(1) == batch.label) & batch.valid).flatten(1).any(1)
    return batch.select(right.nonzero()[:most, 0].tolist())


def _forward(model: SegmentationModel, batch: Batch) -> list[str]:
    """Ask twice, and look whether the answers are probabilities."""
    if not len(batch):
        return []
    flags = []
    with torch.no_grad():
        first, second = (check_logits(model(batch.image), batch.image, len(model.spec.classes)) for _ in range(2))
    spread = (first - first.mean()).abs().amax().clamp_min(1e-12)
    if bool((first - second).abs().amax() > 1e-4 * spread):
        flags.append("random-forward")
    total = first.sum(1)
    if bool((first >= 0).all()) and bool(((total - 1).abs() < 1e-3).all()):
        flags.append("probabilities")
    return flags


def _has_gradient(model: SegmentationModel, batch: Batch) -> bool:
    image = batch.image[:1].detach().requires_grad_()
    return bool(model(image).requires_grad)


def _gradient(model: SegmentationModel, batch: Batch, threat: ThreatModel) -> list[str]:
    """Look at the gradient of each chip's loss: none at all, or too small to move the loss by more than rounding."""
    batch = batch.select(batch.valid.flatten(1).any(1).nonzero()[:, 0].tolist())
    if not len(batch):
        return []
    if not _has_gradient(model, batch):
        return ["zero-gradient"]
    aim = take_aim(model, batch, AWAY)
    image = batch.image.detach().requires_grad_()
    logits = check_logits(model(image), image, len(model.spec.classes))
    loss = torch.where(aim.valid, cross_entropy(logits, aim), 0.0)
    (grad,) = torch.autograd.grad(loss.sum(), image)
    pixels = aim.valid.flatten(1).sum(1)
    if bool((grad.flatten(1).abs().amax(1) == 0).any()):
        return ["zero-gradient"]
    change = threat.radius * grad.abs().flatten(1).sum(1) / pixels
    still = ((grad == 0).all(1) & aim.valid).flatten(1).sum(1) / pixels
    gap = (logits.detach().amax(1) - logits.detach().amin(1)).flatten(1).amax(1).clamp_min(1e-12)
    # half of the pixels without any gradient, or a whole budget that moves the loss by less than float32 resolves
    return ["vanishing-gradient"] if bool(((still > 0.5) | ((change < 1e-6 * gap) & (threat.radius > 0))).any()) else []


def _right(model: SegmentationModel, batch: Batch, image: Tensor) -> float:
    with torch.no_grad():
        right = (model(image).argmax(1) == batch.label) & batch.valid
    count = batch.valid.flatten(1).sum(1).clamp_min(1)
    return float((right.flatten(1).sum(1) / count).mean())
