"""Mean teacher: where no label is known, the network predicts what the average of its weights predicts under other noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField, masked_mean
from seawall.modules import eval_mode, running_statistics
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.views import RadiometricView, images_with, without_label
from seawall.types import Batch, Loss, SegmentationModel


@register("objective", "mean-teacher", paper="arXiv:1703.01780", traits=("unlabelled",))
@final
@dataclass(frozen=True)
class MeanTeacher:
    """The loss on known labels, plus the squared distance to the teacher's probabilities on seen pixels without one.

    The network and the teacher see the same patch under different gains, offsets and noise; labelled patches too, as in the
    paper. The weight of the second term rises as exp(-5 (1 - t / ramp)^2). The teacher is the average by `training.ema`. An
    objective that is called without one takes the network itself, in eval mode.

    Args:
        loss: A loss, or in a recipe its name, such as "ce + dice".
        weight: Weight of the second term after the ramp.
        ramp: Share of the training over which the weight rises; 0 has it from the start.
        gain: Largest relative gain of all bands, in each view.
        band_gain: Largest further gain of one band.
        offset: Standard deviation of the offset of a band in data units; None is 0.005 in reflectance, 0.5 in dB.
        noise: Standard deviation of the noise of a pixel in data units.

    Paper: Tarvainen and Valpola 2017, arXiv:1703.01780. Differs: pixels instead of images, and squares are summed over the
    classes as in CutMix-Seg (arXiv:1906.01916); the weight rises over a share of the training.
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)
    weight: float = 1.0
    ramp: float = 0.3
    gain: float = 0.1
    band_gain: float = 0.05
    offset: float | None = None
    noise: float = 0.0
    needs_average: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.ramp <= 1 or self.weight < 0:
            raise UsageError(
                f"mean-teacher: expected ramp in [0, 1] and weight from 0, got {self.ramp} and {self.weight}; 0.3 and 1 are common"
            )
        _ = self.view

    @property
    def view(self) -> RadiometricView:
        """The change of both views."""
        return RadiometricView(self.gain, self.band_gain, self.offset, self.noise)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        return self.at(1.0)(model, batch, keys)

    def at(self, progress: float) -> TeacherConsistency:
        """Return the objective at a share of the training."""
        rise = math.exp(-5 * (1 - progress / self.ramp) ** 2) if progress < self.ramp else 1.0
        return TeacherConsistency(self, self.weight * rise)

    def taught_by(self, teacher: SegmentationModel) -> TeacherConsistency:
        """Return the objective with a teacher, after the ramp."""
        return self.at(1.0).taught_by(teacher)


@final
@dataclass(frozen=True)
class TeacherConsistency:
    """Mean teacher at one step.

    Args:
        method: Loss and views.
        weight: Weight of the second term.
        teacher: The teacher; None for the network itself.
    """

    method: MeanTeacher
    weight: float
    teacher: SegmentationModel | None = None
    needs_average: ClassVar[bool] = True

    def taught_by(self, teacher: SegmentationModel) -> TeacherConsistency:
        """Return the same with a teacher."""
        return replace(self, teacher=teacher)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        unit, network = model.spec.unit, cast(nn.Module, model)
        student = self.method.view(batch, unit, keys.fold("student"))
        value = loss_of_known(model, student, self.method.loss)
        unlabelled = images_with(without_label(batch))
        if not self.weight or not unlabelled:
            return value
        part, own = batch.select(unlabelled), keys.select(unlabelled)
        seen_by_teacher = self.method.view(part, unit, own.fold("teacher"))
        wanted = teacher_logits(self.teacher or model, seen_by_teacher.image).softmax(1)
        with running_statistics(network):
            found = model(student.select(unlabelled).image).float().softmax(1)
        return value + self.weight * masked_mean((found - wanted).square().sum(1), without_label(part))


def loss_of_known(model: SegmentationModel, batch: Batch, loss: Loss) -> Tensor:
    """Return the loss of the images with a known label.

    The others do not go through the network with them, for in batch norms they would decide how labelled images are normalized.
    What images without labels are to teach is learned with the running statistics (`running_statistics`), as the network
    is used, so that with the weight 0 a training is the supervised one to the bit.
    """
    labelled = images_with(batch.valid)
    known = batch.select(labelled) if labelled else batch
    return training_logits(model, known.image).loss(loss, known.label, known.valid)


@torch.no_grad()
def teacher_logits(teacher: SegmentationModel, image: Tensor) -> Tensor:
    """Return what a teacher predicts in eval mode, without gradients, in float32."""
    with eval_mode(cast(nn.Module, teacher)):
        return teacher(image).float()
