"""Distillation: a network learns from its labels and from a trained one that sees other bands of the same ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from seawall.errors import ModelError, UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField, masked_mean
from seawall.models.encoder_levels import kept_levels, level_channels
from seawall.models.weights import spec_of, weights_digest
from seawall.modules import features_stride, seen_features
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.mean_teacher import teacher_logits
from seawall.training.objectives.teacher_file import GUIDE, TeacherFile
from seawall.types import Batch, SegmentationModel


@register("objective", "distillation", paper="arXiv:2210.08988", smoke={"teacher": GUIDE}, traits=("unlabelled",))
@final
@dataclass(frozen=True)
class Distillation(TeacherFile):
    """The loss on labels, plus how far features and predictions are from those of a teacher on the same patch.

    The teacher is a trained network of other bands, such as an optical one beside a radar student, which is used without it. At
    every level of the encoder the student's features go through a 1x1 convolution of its own, the alignment, and both are
    scaled to length 1 in each pixel; the squared distance counts where both see all pixels of a cell. The alignments start as the
    identity, are trained with the network and are no part of it. Pixels need no label for the teacher's part.

    Args:
        teacher: Weights file of the teacher, which has not seen the held-out chips.
        weight: Weight of the features, whose squared distances are summed over the levels.
        kd_weight: Weight of the predictions: T^2 KL(teacher, student) of the probabilities at a temperature T.
        temperature: T; above 1 both are softer.
        loss: A loss, or in a recipe its name, such as "ce + dice".

    Paper: Gao and Dong 2022, arXiv:2210.08988 (HFD-Net); predictions as in Hinton et al. 2015, arXiv:1503.02531. Differs: there is
    no released code and its weights are not published; the alignment is one convolution per level.
    """

    weight: float = 1.0
    kd_weight: float = 1.0
    temperature: float = 2.0
    loss: LossField = field(default_factory=CrossEntropyLoss)
    name: ClassVar[str] = "distillation"
    paired: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("weight", "kd_weight"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UsageError(f"distillation.{name}: expected a weight from 0 up, got {value}; 1 is common")
        if not self.weight + self.kd_weight > 0:
            raise UsageError("distillation: expected a weight above 0, got none; use the objective supervised")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(
                f"distillation.temperature: expected a number above 0, got {self.temperature}; 2 is common"
            )

    def guided_by(self, teacher: SegmentationModel) -> GuidedDistillation:
        """Return the objective with its teacher."""
        return GuidedDistillation(self, weights_digest(cast(nn.Module, teacher)), teacher)


@final
@dataclass(frozen=True)
class GuidedDistillation:
    """Distillation from a teacher that is there.

    Args:
        method: The settings.
        digest: Of the teacher's weights.
        teacher: The teacher.
        alignments: A layer for each level of the student's encoder; None takes the features as they are.
    """

    method: Distillation
    digest: str
    teacher: SegmentationModel = field(repr=False, compare=False)
    alignments: nn.ModuleList | None = field(default=None, repr=False, compare=False)
    all_bands: ClassVar[bool] = True

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        """Return the loss over valid pixels plus the weighted distances where student and teacher see.

        Raises:
            DataError: The batch lacks bands of one of them.
            ModelError: The teacher has other classes, or an encoder of other levels.
        """
        method, network = self.method, cast(nn.Module, model)
        teacher = cast(nn.Module, self.teacher).to(batch.image.device)
        check_same_classes(network, teacher)
        own, other = batch.with_bands(model.spec.bands), batch.with_bands(self.teacher.spec.bands)
        both = own.seen & other.seen
        if not method.weight:
            found = training_logits(model, own.image)
            wanted = teacher_logits(self.teacher, other.image)
            distance = wanted.new_zeros(())
        else:
            with kept_levels(network) as mine:
                found = training_logits(model, own.image)
            with kept_levels(teacher) as theirs:
                wanted = teacher_logits(self.teacher, other.image)
            distance = self._distance(network, own.image, [m[0] for m in mine], [m[0] for m in theirs], both)
        value = found.loss(method.loss, own.label, own.valid) + method.weight * distance
        if not method.kd_weight:
            return value
        return value + method.kd_weight * softened_divergence(found.logits, wanted, both, method.temperature)

    def _distance(
        self, model: nn.Module, image: Tensor, mine: Sequence[Tensor], theirs: Sequence[Tensor], both: Tensor
    ) -> Tensor:
        """Return the sum over levels of the distances of aligned features."""
        check_same_levels(mine, theirs)
        layers = [nn.Identity()] * len(mine) if self.alignments is None else self.alignments
        parts = []
        for layer, own, other in zip(layers, mine, theirs, strict=True):
            kept, seen = seen_features(layer(own), both, features_stride(model, image, own))
            parts.append(feature_distance(kept, other[..., : kept.shape[2], : kept.shape[3]], seen))
        return torch.stack(parts).sum()

    def new_layers(self, model: nn.Module) -> nn.ModuleList:
        """Return an alignment for each level, the identity as far as there are features; none without a weight."""
        if not self.method.weight:
            return nn.ModuleList()
        pairs = zip(level_channels(model), level_channels(cast(nn.Module, self.teacher)), strict=False)
        # skip_init draws no random weights, which the identity would replace
        layers = [skip_init(nn.Conv2d, i, o, 1, bias=False) for i, o in pairs]  # type: ignore[no-untyped-call]
        for layer in layers:
            nn.init.dirac_(cast(Tensor, layer.weight))
        return nn.ModuleList(layers)

    def with_layers(self, layers: nn.Module) -> GuidedDistillation:
        """Return the objective with the alignments."""
        return replace(self, alignments=cast(nn.ModuleList, layers))


def feature_distance(mine: Tensor, theirs: Tensor, both: Tensor) -> Tensor:
    """Return the mean squared distance of features, each scaled to length 1, from 0 to 4.

    Args:
        mine: (B, D, h, w).
        theirs: (B, D, h, w).
        both: (B, h, w), the cells that count.

    Raises:
        ModelError: There are more features of one than of the other.

    Example:
        >>> one, two = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 0.5]).view(1, 2, 1, 1)
        >>> feature_distance(one, two, torch.ones(1, 1, 1, dtype=torch.bool)).item()  # a right angle
        2.0
    """
    if mine.shape[1] != theirs.shape[1]:
        raise ModelError(
            f"distillation: expected {theirs.shape[1]} features, got {mine.shape[1]}; align them with the layers of new_layers"
        )
    gap = functional.normalize(mine.float(), dim=1) - functional.normalize(theirs.float(), dim=1)
    return masked_mean(gap.square().sum(1), both)


def softened_divergence(mine: Tensor, theirs: Tensor, both: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(theirs, mine) of the probabilities of logits (B, K, H, W) at a temperature T, the mean over pixels (B, H, W)."""
    log_q, log_p = ((logits.float() / temperature).log_softmax(1) for logits in (mine, theirs))
    return temperature**2 * masked_mean((log_p.exp() * (log_p - log_q)).sum(1), both)


def check_same_classes(model: nn.Module, teacher: nn.Module) -> None:
    """Check that a teacher has the classes of the network that learns.

    Raises:
        ModelError: It has others.
    """
    mine, theirs = spec_of(model).classes, spec_of(teacher).classes
    if mine != theirs:
        raise ModelError(
            f"distillation.teacher: expected the classes {', '.join(mine)}, got {', '.join(theirs)}; train it on the same classes"
        )


def check_same_levels(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Check that the encoders of two networks have as many levels, each of the same grid.

    Raises:
        ModelError: They differ.
    """
    grids = [[f"{part.shape[2]}x{part.shape[3]}" for part in parts] for parts in (mine, theirs)]
    if grids[0] != grids[1]:
        raise ModelError(
            f"distillation.teacher: expected an encoder with levels of {', '.join(grids[0])}, got {', '.join(grids[1])}; "
            "use the same architecture and depth"
        )
