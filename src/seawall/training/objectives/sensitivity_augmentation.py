"""Sensitivity-informed augmentation: corruptions at severities of equal harm to the network as it is, the worst most often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast, final

import numpy as np
from torch import nn

from seawall.defenses.corrupted_batches import Chain, corrupt_each, training_corruptions
from seawall.defenses.equal_harm import rank_weights
from seawall.defenses.sensitivity import SensitivityPoint, SensitivityProbe, deepest_layer, severe_first
from seawall.errors import UsageError
from seawall.models.weights import spec_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.augmentation import ChangedImages
from seawall.types import Batch, Corruption, ObjectiveState, SegmentationModel, Setting

LevelWeights = Sequence[tuple[float, float]]
"""Severities with their probabilities."""


@register("objective", "sensitivity-augmentation", paper="arXiv:2406.01425", smoke={"corruptions": ["gain", "rotation worst=5"]})  # fmt: skip
@final
@dataclass(frozen=True)
class SensitivityAugmentation(ChangedImages):
    """Each chip gets one corruption, or none, with equal probability; its severity by how much it harms the network.

    The training is divided into rounds. In the first ones images stay clean. Then, of each corruption, severities are
    chosen whose kernel distances are equally spaced, on features of the network's own encoder
    (`seawall.defenses.sensitivity`); this is done again every `curve_rounds` rounds. In every round the mean IoU at these
    severities is measured, and ranks them: the probability of a rank is `rank_weights`, the most harmful first. All is
    measured on training patches, with the present weights. Passes and CPU seconds stand in the history.

    Args:
        corruptions: Texts such as "haze worst=0.4"; empty is the stated set of the sensor
            (`seawall.defenses.corrupted_batches.TRAINING_CORRUPTIONS`).
        levels: Severities per corruption.
        rounds: Parts of the training.
        clean_rounds: Rounds before the first measurement.
        curve_rounds: Rounds between two choices of severities.
        sample: Patches to measure on.
        most: Measurements of one curve at most.

    Paper: Zheng et al. 2024, arXiv:2406.01425. Differs: the kernel distance is of the network's own encoder and without bias on
    pairs, not of Inception in subsets of 4; severities are equally spaced in it alone; the worst level has the highest
    probability and probabilities sum to 1; training patches instead of half of the validation images.
    """

    corruptions: tuple[str, ...] = ()
    levels: int = 5
    rounds: int = 20
    clean_rounds: int = 4
    curve_rounds: int = 6
    sample: int = 32
    most: int = 8
    name: ClassVar[str] = "sensitivity-augmentation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clean_rounds < self.rounds or self.curve_rounds < 1:
            raise UsageError(
                f"{self.name}: expected fewer clean_rounds than rounds and curve_rounds from 1, got {self.clean_rounds}, {self.rounds}, "
                f"{self.curve_rounds}; the paper has 4, 20, 6"
            )
        if self.levels < 1 or self.sample < 2 or self.most < 1:
            raise UsageError(
                f"{self.name}: expected levels and most from 1 and a sample from 2, got {self.levels}, {self.most}, {self.sample}; such as 5, 8, 32"
            )

    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch as before any measurement: severities are evenly spaced, the highest ranks first."""
        even = [(1 - k / self.levels, weight) for k, weight in enumerate(rank_weights(self.levels))]
        known = training_corruptions(self.corruptions, model.spec)
        return corrupt_each(batch, drawn_chains(known, dict.fromkeys(known, even), keys), keys)

    def given(self, state: ObjectiveState) -> PlannedAugmentation:
        """Return the objective with the severities and probabilities of a state; without any, images stay clean."""
        plan = cast(Mapping[str, Sequence[Sequence[float]]], state.get("plan", {}))
        kept = tuple((name, tuple((s, w) for s, w in pairs)) for name, pairs in plan.items())
        return PlannedAugmentation(kept, objective=self.objective, objective_settings=self.objective_settings)

    def revise(
        self, model: nn.Module, draw: Callable[[], Iterable[Batch]], progress: float, seed: int, state: ObjectiveState
    ) -> ObjectiveState:
        """Return the state of this round: the plan, and the passes of the sample so far."""
        due = measurements_due(progress, self.rounds)
        if state and cast(int, state["round"]) >= due:
            return state
        known = training_corruptions(self.corruptions, spec_of(model))
        if not state:  # what cannot be measured is refused at the first step, not after the clean rounds
            deepest_layer(model, next(iter(draw())))
        if due < self.clean_rounds:
            return {"round": due, "passes": 0, "plan": {}}
        probe = SensitivityProbe(model, first_chips(draw(), self.sample), seed)
        old = cast(Mapping[str, Sequence[Sequence[float]]], state.get("plan", {}))
        fresh = not old or due - cast(int, state["curve_round"]) >= self.curve_rounds
        plan: dict[str, Setting] = {}
        for name, corruption in known.items():
            met: dict[float, SensitivityPoint] = {}
            severities = tuple(sorted(severity for severity, _ in old.get(name, ())))
            if fresh:
                curve = probe.curve(name, corruption, self.levels, most=self.most)
                met, severities = {point.severity: point for point in curve.points}, curve.severities
            ranked = severe_first([met.get(s) or probe.point(corruption, s) for s in severities])
            plan[name] = [[p.severity, w] for p, w in zip(ranked, rank_weights(len(ranked)), strict=True)]
        passes = cast(int, state.get("passes", 0)) + probe.passes
        return {"round": due, "curve_round": due if fresh else state["curve_round"], "passes": passes, "plan": plan}


@final
@dataclass(frozen=True)
class PlannedAugmentation(ChangedImages):
    """Each chip gets one corruption, or none, with equal probability, at a severity of the plan.

    Args:
        plan: Severities with their probabilities, by corruption; empty leaves the images clean.
    """

    plan: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    name: ClassVar[str] = SensitivityAugmentation.name

    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with one corruption per chip, or none."""
        if not self.plan:
            return batch
        weights = dict(self.plan)
        known = training_corruptions(tuple(weights), model.spec)
        return corrupt_each(batch, drawn_chains(known, weights, keys), keys)


def drawn_chains(known: Mapping[str, Corruption], weights: Mapping[str, LevelWeights], keys: Keys) -> Iterator[Chain]:
    """Yield one corruption, or none, per chip: all alike, the severity by its probability."""
    names = list(known)
    for choice, point in keys.fold("choice").uniform((2,)).tolist():
        index = int(choice * (len(names) + 1))
        if index == len(names):
            yield ()
            continue
        levels = weights[names[index]]
        reached = np.cumsum([weight for _, weight in levels])
        at = min(int(np.searchsorted(reached, point, side="right")), len(levels) - 1)
        yield ((known[names[index]], levels[at][0]),)


def measurements_due(progress: float, count: int) -> int:
    """Return how many of the measurements of a training are due at a share of it, beside the one before its first step."""
    return int(progress * count + 1e-9)  # a step count over a step count, times the count, may round below


def first_chips(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yield the first chips of some batches."""
    for batch in batches:
        yield batch if len(batch) <= count else batch.select(range(count))
        count -= len(batch)
        if count <= 0:
            return
