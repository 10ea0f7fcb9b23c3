"""FixMatch: what the network is sure of in a weak view of an image is the label of a strong view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.losses.segmentation import CrossEntropyLoss, LossField, masked_mean, pixel_cross_entropy
from seawall.models.weights import spec_of
from seawall.modules import running_statistics, to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.mean_teacher import loss_of_known, teacher_logits
from seawall.training.objectives.sensitivity_augmentation import first_chips, measurements_due
from seawall.training.objectives.views import (
    RadiometricView,
    cutmix_boxes,
    images_with,
    mix_images,
    mix_next,
    without_label,
)
from seawall.types import Batch, ModelSpec, ObjectiveState, SegmentationModel


@register("objective", "fixmatch", paper="arXiv:2001.07685", smoke={"confidence": 0.5, "gain": 0.02, "band_gain": 0.0, "offset": 0.001}, traits=("unlabelled",))  # fmt: skip
@final
@dataclass(frozen=True)
class FixMatch:
    """The loss on known labels, plus the cross-entropy of a strong view where a weak view is predicted with confidence.

    The weak view is the patch as the loader turned it, a little brighter or darker. The strong view has other gains and
    offsets per band on top, and a box of the next image (CutMix), whose pseudo-labels come with it. The teacher by
    `training.ema` predicts the weak view; without an average the network itself does, in eval mode, as in the paper. The term is
    divided by all seen pixels without a label, accepted or not.

    What is accepted is measured `checks` times in a training, on `sample` patches, and stands in the history:
    "objective.accepted" is the accepted share of the pixels, "objective.accepted.water" the share of water among those, and
    "objective.known.water" that among the known labels. Where the share of a class falls below its known share by more than the factor
    `bound`, pixels of the other classes weigh less, so that the known shares hold again; a class that is not accepted at all takes
    the term to 0. This is the guard against a network that accepts land alone.

    Args:
        loss: A loss, or in a recipe its name, such as "ce + dice".
        weight: Weight of the second term.
        confidence: Least probability of a pseudo-label.
        confidences: Least probability for each class instead; empty for one of all.
        brightness: Largest relative gain of the weak view.
        gain: Largest relative gain of all bands in the strong view.
        band_gain: Largest further gain of one band.
        offset: Standard deviation of the offset of a band in data units; None is 0.005 in reflectance, 0.5 in dB.
        cutmix: Probability of a box.
        bound: Largest factor by which a class may be accepted less often than it is known; 0 has no guard.
        checks: Measurements of what is accepted.
        sample: Patches of a measurement.

    Paper: Sohn et al. 2020, arXiv:2001.07685, eqs. 3 and 4; boxes and the division as in UniMatch (Yang et al. 2023,
    arXiv:2208.09910). Differs: pixels instead of images; views in data units; the guard.
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)
    weight: float = 1.0
    confidence: float = 0.95
    confidences: tuple[float, ...] = ()
    brightness: float = 0.05
    gain: float = 0.2
    band_gain: float = 0.05
    offset: float | None = None
    cutmix: float = 0.5
    bound: float = 2.0
    checks: int = 20
    sample: int = 32
    needs_average: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(0 < value < 1 for value in (self.confidence, *self.confidences)):
            raise UsageError(
                f"fixmatch.confidence: expected probabilities in (0, 1), got {self.confidences or self.confidence}; 0.95 is common"
            )
        if self.weight < 0 or not 0 <= self.cutmix <= 1 or (self.bound and self.bound < 1):
            raise UsageError(
                f"fixmatch: expected weight from 0, cutmix in [0, 1] and bound 0 or from 1, got {self.weight}, {self.cutmix}, {self.bound}; "
                "1, 0.5 and 2 are common"
            )
        if self.checks < 1 or self.sample < 1:
            raise UsageError(
                f"fixmatch: expected checks and sample from 1, got {self.checks} and {self.sample}; 20 and 32 are common"
            )
        _ = self.weak, self.strong

    @property
    def weak(self) -> RadiometricView:
        """The change of the weak view."""
        return RadiometricView(self.brightness, 0.0, 0.0)

    @property
    def strong(self) -> RadiometricView:
        """The change of the strong view, before the boxes."""
        return RadiometricView(self.gain, self.band_gain, self.offset)

    def thresholds(self, spec: ModelSpec) -> tuple[float, ...]:
        """Return the least probability of each class.

        Raises:
            UsageError: There is not one per class.
        """
        if self.confidences and len(self.confidences) != len(spec.classes):
            raise UsageError(
                f"fixmatch.confidences: expected {len(spec.classes)} probabilities, got {len(self.confidences)}; give one per class"
            )
        return self.confidences or (self.confidence,) * len(spec.classes)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        return PseudoLabelTerm(self)(model, batch, keys)

    def taught_by(self, teacher: SegmentationModel) -> PseudoLabelTerm:
        """Return the objective with a teacher, before any measurement."""
        return PseudoLabelTerm(self, (), teacher)

    def given(self, state: ObjectiveState) -> PseudoLabelTerm:
        """Return the objective with the class weights of a state."""
        return PseudoLabelTerm(self, tuple(cast(Sequence[float], state.get("weights", ()))))

    def revise(
        self, model: nn.Module, draw: Callable[[], Iterable[Batch]], progress: float, seed: int, state: ObjectiveState
    ) -> ObjectiveState:
        """Return the state of this part of the training: what is accepted, by class, and the weights that follow."""
        due = measurements_due(progress, self.checks)
        if state and cast(int, state["check"]) >= due:
            return state
        spec, network = spec_of(model), cast(SegmentationModel, model)
        known, accepted = [0] * len(spec.classes), [0] * len(spec.classes)
        unknown_pixels = 0
        for stored in first_chips(draw(), self.sample):
            batch = to_device_of(model, stored)
            weak = self.weak(batch, spec.unit, Keys(seed, batch.chips).fold("check", due).fold("weak"))
            label, sure = self.pseudo_label(network, weak)
            unknown = without_label(batch)
            unknown_pixels += int(unknown.sum())
            for k in range(len(spec.classes)):
                known[k] += int((batch.valid & (batch.label == k)).sum())
                accepted[k] += int((unknown & sure & (label == k)).sum())
        found: dict[str, float | list[float]] = {"accepted": sum(accepted) / max(unknown_pixels, 1)}
        for part, counts in (("accepted", accepted), ("known", known)):
            found |= {f"{part}.{name}": n / max(sum(counts), 1) for name, n in zip(spec.classes, counts, strict=True)}
        weights = class_weights(known, accepted, self.bound)
        return {"check": due, **found, "weights": list(weights)}

    def pseudo_label(self, teacher: SegmentationModel, weak: Batch) -> tuple[Tensor, Tensor]:
        """Return the class (B, H, W) that the teacher gives the weak view, and whether it is sure of it."""
        probability, label = teacher_logits(teacher, weak.image).softmax(1).max(1)
        least = torch.tensor(self.thresholds(teacher.spec), dtype=probability.dtype, device=probability.device)
        return label, probability >= least[label]


@final
@dataclass(frozen=True)
class PseudoLabelTerm:
    """FixMatch at one step.

    Args:
        method: Loss, views and thresholds.
        weights: Weight of the pseudo-labels of each class; empty for 1.
        teacher: What predicts weak views; None for the network itself.
    """

    method: FixMatch
    weights: tuple[float, ...] = ()
    teacher: SegmentationModel | None = None
    needs_average: ClassVar[bool] = False

    def taught_by(self, teacher: SegmentationModel) -> PseudoLabelTerm:
        """Return the same with a teacher."""
        return replace(self, teacher=teacher)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        method, unit = self.method, model.spec.unit
        value = loss_of_known(model, batch, method.loss)
        unlabelled = images_with(without_label(batch))
        if not unlabelled or not method.weight:
            return value
        part, own = batch.select(unlabelled), keys.select(unlabelled)
        weak = method.weak(part, unit, own.fold("weak"))
        label, sure = method.pseudo_label(self.teacher or model, weak)
        boxes = cutmix_boxes(part, method.cutmix, own)
        strong = mix_images(method.strong(weak, unit, own.fold("strong")), boxes)
        label, weight = mix_next(label, boxes), mix_next(sure, boxes).float()
        if self.weights:
            weight = weight * torch.tensor(self.weights, device=weight.device)[label]
        with running_statistics(cast(nn.Module, model)):
            wrong = pixel_cross_entropy(model(strong.image), label)
        return value + method.weight * masked_mean(wrong * weight, without_label(strong))


def class_weights(known: Sequence[int], accepted: Sequence[int], bound: float) -> tuple[float, ...]:
    """Return the weight of the pseudo-labels of each class, at most 1, from pixels by class.

    They are 1 as long as no class is accepted less often, by more than the factor `bound`, than it is known. Else they are such that
    the weighted shares are the known ones: known share over accepted share, divided by the largest of these. Classes
    without a known pixel have weight 1 and count for nothing.

    Example:
        >>> class_weights([50, 50], [60, 40], 2.0), class_weights([50, 50], [80, 20], 2.0), class_weights([50, 50], [90, 0], 2.0)
        ((1.0, 1.0), (0.25, 1.0), (0.0, 1.0))
    """
    present = [k for k, n in enumerate(known) if n]
    total = sum(accepted[k] for k in present)
    if not bound or not total:
        return (1.0,) * len(known)
    pixels = sum(known)
    relative = {k: accepted[k] / total / (known[k] / pixels) for k in present}
    least = min(relative.values())
    if least >= 1 / bound:
        return (1.0,) * len(known)
    return tuple(least / relative[k] if k in relative and relative[k] > least else 1.0 for k in range(len(known)))
