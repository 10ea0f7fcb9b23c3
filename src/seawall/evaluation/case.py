"""A case of an evaluation: the attack or the corruption of the images, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from seawall.attacks.minimum_norm import MinimumNorm, MinimumNormResult
from seawall.attacks.target import Hide, Towards, with_predicted_labels
from seawall.attacks.universal import SetAttack
from seawall.corruptions.build import registered_name
from seawall.corruptions.severity import check_severity
from seawall.errors import ModelError, UsageError, did_you_mean
from seawall.records import CorruptionFacts
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Attack, Batch, Corruption, ModelSpec, SegmentationModel

MEASURES: Mapping[str, str] = {
    "counts": "pixels",
    "srip": "srip.accuracy",
    "calibration": "calib.pixels",
    "boundary": "boundary.pixels",
    "sizes": "area.true_km2",
    "hiding": "hiding.pixels",
}
"""Measures, each with the metric that is written last: a chip is done where its row is there."""


COUNTED = ("counts",)
"""What is measured under a corruption; calibration and object sizes would make the records many times as long."""


class SanityCheckCost(NamedTuple):
    """Cost of sanity checks: forward passes per chip, seconds in all, and the number of chips."""

    passes: float
    seconds: float
    chips: int


@dataclass(frozen=True)
class Case:
    """What is done to the images before the model gets them.

    Args:
        method: Name in the rows; "clean" where nothing is done.
        attack: What changes the images; None for clean ones.
        threat: What the adversary may do.
        text: The threat as text with its unit; written from `threat` where it is "".
        measures: Which of `MEASURES` to take.
        label_free: The attack sees the model's own clean prediction on all seen pixels instead of the label.
        flags: Known objections to the numbers, as flags.
        check_cost: Cost of the sanity checks that the flags come from; None where there were none.
        corruption: What changes images, labels, seen and valid pixels; None for none.
        severity: Severity of the corruption, from 0 to 1; None where there is none.

    Raises:
        UsageError: `attack` and `threat` or `corruption` and `severity` do not go together, there is an attack and a
            corruption, the severity is not in [0, 1], or a measure is unknown.
    """

    method: str = "clean"
    attack: Attack | None = None
    threat: ThreatModel | None = None
    text: str = ""
    measures: tuple[str, ...] = tuple(MEASURES)
    label_free: bool = False
    flags: tuple[str, ...] = ()
    check_cost: SanityCheckCost | None = None
    corruption: Corruption | None = None
    severity: float | None = None

    def __post_init__(self) -> None:
        for name in self.measures:
            if name not in MEASURES:
                raise UsageError(f"case {self.method}: unknown measure {name!r}; {did_you_mean(name, MEASURES)}")
        if (self.attack is None) != (self.threat is None) or (self.attack is not None and not callable(self.attack)):
            raise UsageError(
                f"case {self.method}: expected an attack with its threat, or neither, "
                f"got {self.attack!r} with {self.threat!r}; give both or none"
            )
        if self.label_free and self.attack is None:
            raise UsageError(f"case {self.method}: expected an attack where label_free is set, got none; leave it out")
        if (self.corruption is None) != (self.severity is None) or (self.corruption and self.attack):
            raise UsageError(
                f"case {self.method}: expected a corruption with its severity and no attack, or neither, "
                f"got {self.corruption!r} with {self.severity!r} and {self.attack!r}; measure them as two cases"
            )
        if self.severity is not None:
            check_severity(self.method, self.severity)

    @property
    def threat_text(self) -> str:
        """The threat or the severity as text, as in the rows."""
        if self.severity is not None:
            return f"severity {self.severity!r}"
        return self.text if self.text or self.threat is None else str(self.threat)

    @property
    def corruption_facts(self) -> CorruptionFacts:
        """Severity, level, quantity and unit of the corruption, as in the rows."""
        if self.corruption is None or self.severity is None:
            return CorruptionFacts()
        level = float(self.corruption.level(self.severity))
        return CorruptionFacts(float(self.severity), level, self.corruption.quantity, self.corruption.unit)

    def corrupted(self, batch: Batch, seed: int) -> Batch:
        """Return the batch that is measured: after the corruption where there is one, else the very batch.

        Severity, settings and the case's name are no part of the random stream, so that all share one random field.

        Raises:
            ModelError: The corruption changed the shape, or made pixels that are no finite numbers.
        """
        if self.corruption is None or self.severity is None:
            return batch
        made = self.corruption(
            batch, self.severity, Keys(seed, batch.chips, ("corrupt", registered_name(self.corruption)))
        )
        self._check_finite(made.image, batch)
        return made

    def applicable(self, classes: int) -> tuple[str, ...]:
        """The measures that apply with so many classes: SRIP scores need two, hiding an attack that hides a class.

        Boundaries are measured without an attack; under one they would double the records for a figure that nobody reads.
        """
        fits = {
            "srip": classes == 2,
            "hiding": bool(hidden_class(self.attack)),
            "boundary": self.attack is None,
        }
        return tuple(m for m in MEASURES if m in self.measures and fits.get(m, True))

    def image(self, model: SegmentationModel, batch: Batch, seed: int) -> Tensor:
        """Return the images that the model gets; see `images`."""
        return self.images(model, batch, seed).image

    def images(self, model: SegmentationModel, batch: Batch, seed: int) -> CaseImages:
        """Return the images that the model gets, and the smallest noise where the attack looks for it.

        Raises:
            ModelError: The method changed the shape, or made pixels that are no finite numbers.
            UsageError: The attack makes one noise for a set, and was not fitted to one.
        """
        if self.attack is None or self.threat is None:
            return CaseImages(batch.image)
        # The threat is no part of the stream: budgets share their draws, so curves are not jagged.
        keys = Keys(seed, batch.chips, ("evaluate", self.method))
        known = with_predicted_labels(model, batch) if self.label_free else batch
        made = self._attacked(model, known, self.threat, keys)
        image = made.image.detach()
        self._check_finite(image, batch)
        return made._replace(image=image)

    def target(self, spec: ModelSpec, batch: Batch, logits: Tensor) -> Tensor | None:
        """Return the class (B, H, W) that a targeted attack wants at every pixel; None for any other.

        Args:
            spec: The model's.
            batch: The clean images.
            logits: (B, K, H, W) of the clean images.
        """
        goal = getattr(self.attack, "goal", None)
        return goal.class_map(spec, batch, logits) if isinstance(goal, Hide | Towards) else None

    def _check_finite(self, image: Tensor, batch: Batch) -> None:
        if image.shape != batch.image.shape or not bool(torch.isfinite(image).all()):
            raise ModelError(
                f"{self.method} {self.threat_text}: expected finite images of shape {tuple(batch.image.shape)}, got "
                f"{tuple(image.shape)}{'' if image.shape != batch.image.shape else ' with NaN or infinity'}; fix the method"
            )

    def _attacked(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> CaseImages:
        if isinstance(self.attack, SetAttack):
            raise UsageError(
                f"{self.method}: expected a noise that was fitted to a set, got none; call seawall.evaluation.fit_set_attacks first"
            )
        if isinstance(self.attack, MinimumNorm):
            solved = self.attack.solve(model, batch, threat, keys)
            return CaseImages(solved.inside, solved)
        assert self.attack is not None  # `images` returns before where there is none
        return CaseImages(self.attack(model, batch, threat, keys))


class CaseImages(NamedTuple):
    """The images that a model gets under a case.

    Args:
        image: (B, C, H, W).
        solved: What a minimum-norm attack found; None for any other.
    """

    image: Tensor
    solved: MinimumNormResult | None = None


def fit_set_attacks(
    cases: Iterable[Case], model: SegmentationModel, read: Callable[[], Iterable[Batch]], seed: int
) -> list[Case]:
    """Return the cases with each attack that makes one noise for a set fitted to that set.

    Args:
        cases: What is to be measured.
        model: Any model with a spec.
        read: Gives the chips of the set; called only where an attack needs them.
        seed: Seed of the fit.
    """
    made = []
    for case in cases:
        attack = case.attack
        if isinstance(attack, SetAttack) and isinstance(case.threat, ThreatModel):
            batches = list(read())
            keys = Keys(seed, tuple(chip for batch in batches for chip in batch.chips), ("fit", case.method))
            made.append(replace(case, attack=attack.fitted(model, batches, case.threat, keys)))
        else:
            made.append(case)
    return made


def hidden_class(attack: object) -> str:
    """Return the class that an attack hides, by its goal; "" for any other."""
    goal = getattr(attack, "goal", None)
    return goal.klass if isinstance(goal, Hide) else ""


def severity_cases(corruptions: Mapping[str, Corruption], severities: Sequence[float]) -> list[Case]:
    """Return a case per corruption and severity."""
    return [
        Case(name, measures=COUNTED, corruption=corruption, severity=severity)
        for name, corruption in corruptions.items()
        for severity in severities
    ]


CLEAN_CASE = Case()
