"""Sanity checks of a robustness number: other attacks, gradients and the forward pass; each failed check is a flag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from seawall.attacks.cost import count_passes
from seawall.attacks.losses import signed_cross_entropy
from seawall.attacks.pgd import PGD
from seawall.attacks.square import Random, Square
from seawall.attacks.target import (
    UNTARGETED,
    attack_mode,
    autograd_ready,
    check_attack_inputs,
    check_logits,
    make_target,
)
from seawall.attacks.transfer import Transfer
from seawall.evaluation.exact import exact_worst_images
from seawall.metrics.consistency import ACCURACY_MARGIN
from seawall.modules import checked_forward
from seawall.rng import Keys
from seawall.settings import settings
from seawall.threat.model import PerBand, ThreatModel, default_bounds
from seawall.types import Batch, ModelSpec, SegmentationModel

NOISE_DRAWS = 5
UNBOUNDED_EPS: Mapping[str, tuple[float, ...]] = {"reflectance": (0.5, 2.0), "stretched": (1.0,)}
UNBOUNDED_EPS_DB = (10.0, 40.0)
"""Budgets of unbounded attacks, in linf and data units."""
SURVIVING_ACCURACY = 0.25
"""Share of right pixels under an unbounded attack above which the attack does not work."""


@dataclass(frozen=True)
class SanityFindings:
    """Findings of sanity checks.

    Args:
        flags: Ids, as `seawall.report.flags` explains them.
        accuracy: Share of right pixels, mean over the chips, by check.
        passes: Forward passes per chip.
        seconds: Time of all chips together.
        chips: How many chips were checked.
    """

    flags: tuple[str, ...]
    accuracy: Mapping[str, float]
    passes: float = 0.0
    seconds: float = 0.0
    chips: int = 0

    def merged(self, other: SanityFindings) -> SanityFindings:
        """Return the findings of both for the same chips."""
        flags = tuple(dict.fromkeys((*self.flags, *other.flags)))
        passes, seconds = self.passes + other.passes, self.seconds + other.seconds
        return SanityFindings(flags, {**self.accuracy, **other.accuracy}, passes, seconds, max(self.chips, other.chips))


@settings("sanity_checks", "see docs/flags.md")
class SanityChecks:
    """Sanity checks and their effort. With the defaults a chip costs about 300 forward passes per budget, and 80 once per model.

    A model that is an index with a threshold is compared with its exact worst case, which costs 30.

    Args:
        chips: Most chips that are checked, of those with a right pixel.
        steps: Steps of the attack that the others are compared with.
        queries: Forward passes of the black-box attack.
        unbounded: Steps of each attack without a budget.
        gain: Most accuracy that twice the steps may take away from a converged attack.
    """

    chips: PositiveInt = 4
    steps: PositiveInt = 20
    queries: PositiveInt = 50
    unbounded: PositiveInt = 40
    gain: float = 0.02

    def __call__(
        self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, *,
        surrogate: SegmentationModel | None = None,
    ) -> SanityFindings:  # fmt: skip
        """Return the flags of a model under a threat; a zero budget or nothing valid raises none of the attack's."""
        once = self.check_model(model, batch, threat, keys)
        return once.merged(self.check_threat(model, batch, threat, keys, surrogate=surrogate))

    def check_model(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> SanityFindings:
        """Check what does not depend on the budget: the forward pass, zero gradients, attacks without a budget.

        Args:
            model: Any model with a spec.
            batch: Labelled chips.
            threat: Any of the threats; a radius of 0 runs no attack.
            keys: Randomness.
        """
        with self._running(model, batch, threat, keys) as run:
            run.flags += [*_forward_flags(model, run.batch), *_gradient_flags(model, run.batch)]
            attackable = len(run.batch) and threat.radius and _has_gradient(model, run.batch)
            if attackable and not exact_worst_images(model, run.batch, threat):
                run.accuracy["unbounded"] = min(
                    run.accuracy_under(PGD(steps=self.unbounded, step=0.1), far)
                    for far in _unbounded_threats(model.spec)
                )
                if run.accuracy["unbounded"] > SURVIVING_ACCURACY:
                    run.flags.append("unbounded-survives")
        return run.findings()

    def check_threat(
        self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, *,
        surrogate: SegmentationModel | None = None, alone: bool = True,
    ) -> SanityFindings:  # fmt: skip
        """Check what depends on the budget; nothing where it is zero.

        Args:
            model: Any model with a spec.
            batch: Labelled chips.
            threat: What the adversary may do.
            keys: Randomness.
            surrogate: Another model for the transfer attack; a classifier per pixel where None.
            alone: Whether no other budget of this kind is checked; then half and twice the budget are checked too.
        """
        with self._running(model, batch, threat, keys) as run:
            if len(run.batch) and threat.radius:
                run.flags += _steepness_flags(model, run.batch, threat)
                corners = exact_worst_images(model, run.batch, threat)
                if corners:
                    run.accuracy["attack"] = run.accuracy_under(PGD(steps=self.steps), threat)
                    run.accuracy["exact"] = _accuracy_on_all(model, run.batch, *corners)
                else:
                    self._compare_attacks(run, threat, surrogate, alone)
                run.flags += self._flags(run.accuracy)
        return run.findings()

    @contextmanager
    def _running(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Iterator[_CheckRun]:
        check_attack_inputs("sanity checks", model, batch, threat)
        start = time.monotonic()
        with attack_mode(model), count_passes(model) as passes:
            chosen = _partly_right_chips(model, autograd_ready(batch), self.chips)
            run = _CheckRun(model, chosen, Keys(keys.seed, chosen.chips, keys.path))
            yield run
        run.passes, run.seconds = passes.forward / max(len(chosen), 1), time.monotonic() - start

    def _compare_attacks(
        self, run: _CheckRun, threat: ThreatModel, surrogate: SegmentationModel | None, alone: bool
    ) -> None:
        """Measure the accuracy under the attack, and under others that should not be stronger.

        The attack is PGD, or the black-box attack where the model has no gradient.
        """
        blind = not _has_gradient(run.model, run.batch)
        black_box = Square(steps=self.queries)
        usual: Callable[..., Tensor] = black_box if blind else PGD(steps=self.steps)
        found = run.accuracy
        found["clean"], found["attack"] = (
            _accuracy_on_all(run.model, run.batch, run.batch.image),
            run.accuracy_under(usual, threat),
        )
        found["noise"] = min(run.accuracy_under(Random(), threat, str(draw)) for draw in range(NOISE_DRAWS))
        found["transfer"] = run.accuracy_under(
            Transfer(surrogate=surrogate, attack_settings={"steps": self.steps}), threat
        )
        if not blind:
            found["black box"] = run.accuracy_under(black_box, threat)
            longer = (PGD(steps=2 * self.steps), PGD(steps=self.steps, restarts=2))
            found["twice the steps"] = min(run.accuracy_under(attack, threat) for attack in longer)
            for factor, name in ((0.5, "half eps"), (2.0, "twice eps")) if alone else ():
                found[name] = run.accuracy_under(usual, threat.scaled(factor))

    def _flags(self, right: Mapping[str, float]) -> list[str]:
        attack, flags = right["attack"], []
        if right.get("exact", attack) < attack - ACCURACY_MARGIN:
            flags.append("weaker-than-exact")
        if right.get("noise", attack) < attack - ACCURACY_MARGIN:
            flags.append("weaker-than-noise")
        if right.get("black box", attack) < attack - ACCURACY_MARGIN:
            flags.append("black-box-wins")
        if right.get("transfer", attack) < attack - ACCURACY_MARGIN:
            flags.append("transfer-wins")
        if right.get("twice the steps", attack) < attack - self.gain:
            flags.append("more-steps-gain")
        if (
            right.get("half eps", attack) < attack - ACCURACY_MARGIN
            or right.get("twice eps", attack) > attack + ACCURACY_MARGIN
        ):
            flags.append("not-monotone")
        return flags


@dataclass
class _CheckRun:
    """The checked model and chips, and the findings so far."""

    model: SegmentationModel
    batch: Batch
    keys: Keys
    flags: list[str] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    passes: float = 0.0
    seconds: float = 0.0

    def accuracy_under(self, attack: Callable[..., Tensor], threat: ThreatModel, name: str = "") -> float:
        """Return the share of right pixels under an attack."""
        return _accuracy_on_all(
            self.model, self.batch, attack(self.model, self.batch, threat, self.keys.fold("sanity-checks", name))
        )

    def findings(self) -> SanityFindings:
        """Return the findings."""
        return SanityFindings(tuple(self.flags), self.accuracy, self.passes, self.seconds, len(self.batch))


def check_sanity(
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
        >>> check_sanity(linear_model(), batch, ThreatModel("linf", 0.03), Keys(0, batch.chips))
        ()
    """
    return SanityChecks()(model, batch, threat, keys, surrogate=surrogate).flags


QUICK_CHECKS = SanityChecks(chips=2, queries=25, unbounded=25)
"""The effort of a run for every network that it attacks."""


def _unbounded_threats(spec: ModelSpec) -> list[ThreatModel]:
    """Return threats with budgets beyond any image: without bounds, and the largest also within the physical range of the unit.

    They touch all bands: whether a gradient reaches the image is a property of the model, not of the threat's bands.

    Free, an image of negative reflectances may lie where a ratio of bands is undefined and has no gradient; within the range,
    a network may be right everywhere. Success of either shows that attacks work.
    """
    sizes: list[PerBand]
    if isinstance(spec.unit, tuple):
        each = [UNBOUNDED_EPS.get(unit, UNBOUNDED_EPS_DB) for unit in spec.unit]
        sizes = [tuple(one[0] for one in each), tuple(one[-1] for one in each)]
    else:
        sizes = [*UNBOUNDED_EPS.get(spec.unit, UNBOUNDED_EPS_DB)]
    within = ThreatModel("linf", sizes[-1], spec.unit, *default_bounds(spec.unit))
    return [*(ThreatModel("linf", eps, spec.unit) for eps in sizes), within]


def _partly_right_chips(model: SegmentationModel, batch: Batch, most: int) -> Batch:
    """Return the first chips with a right pixel, which an attack can change."""
    if not len(batch):
        return batch
    with torch.no_grad():
        right = ((checked_forward(model, batch.image).argmax(1) == batch.label) & batch.valid).flatten(1).any(1)
    return batch.select(right.nonzero()[:most, 0].tolist())


def _forward_flags(model: SegmentationModel, batch: Batch) -> list[str]:
    """Run the model twice: flag outputs that differ, and outputs that are probabilities."""
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


def _gradient_flags(model: SegmentationModel, batch: Batch) -> list[str]:
    """Flag chips whose loss has no gradient at all, or none at most pixels."""
    found = _gradient_statistics(model, batch)
    if found is None:
        return []
    if bool((found.largest == 0).any()):
        return ["zero-gradient"]
    return ["vanishing-gradient"] if bool((found.zero_share > 0.5).any()) else []


def _steepness_flags(model: SegmentationModel, batch: Batch, threat: ThreatModel) -> list[str]:
    """Flag chips where the whole budget moves the loss by less than float32 resolves."""
    found = _gradient_statistics(model, batch)
    if found is None or bool((found.largest == 0).any()):
        return []
    return ["vanishing-gradient"] if bool((threat.radius * found.change < 1e-6 * found.logit_range).any()) else []


class _GradientStatistics(NamedTuple):
    """The gradient of each chip's mean loss, (b,) each."""

    largest: Tensor  # of all values
    zero_share: Tensor  # share of the valid pixels without any
    change: Tensor  # of the loss per unit of budget
    logit_range: Tensor  # between the largest and the smallest logit of a pixel, at most


def _gradient_statistics(model: SegmentationModel, batch: Batch) -> _GradientStatistics | None:
    batch = batch.select(batch.valid.flatten(1).any(1).nonzero()[:, 0].tolist())
    if not len(batch):
        return None
    if not _has_gradient(model, batch):
        none = torch.zeros(len(batch))
        return _GradientStatistics(none, none + 1, none, none)
    target = make_target(model, batch, UNTARGETED)
    image = batch.image.detach().requires_grad_()
    logits = check_logits(model(image), image, len(model.spec.classes))
    loss = torch.where(target.valid, signed_cross_entropy(logits, target), 0.0)
    (grad,) = torch.autograd.grad(loss.sum(), image)
    pixels = target.valid.flatten(1).sum(1)
    logit_range = (logits.detach().amax(1) - logits.detach().amin(1)).flatten(1).amax(1).clamp_min(1e-12)
    zero_share = ((grad == 0).all(1) & target.valid).flatten(1).sum(1) / pixels
    return _GradientStatistics(
        grad.flatten(1).abs().amax(1), zero_share, grad.abs().flatten(1).sum(1) / pixels, logit_range
    )


def _accuracy_on_all(model: SegmentationModel, batch: Batch, *images: Tensor) -> float:
    """Return the share of valid pixels that are right on every one of the images, mean over the chips."""
    right = batch.valid
    with torch.no_grad():
        for image in images:
            right = right & (model(image).argmax(1) == batch.label)
    count = batch.valid.flatten(1).sum(1).clamp_min(1)
    return float((right.flatten(1).sum(1) / count).mean())
