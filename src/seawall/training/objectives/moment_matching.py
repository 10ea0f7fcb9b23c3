"""Moment matching: a network learns from its labels, and its features get the distribution that those of a trained one have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast, final

import torch
from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField
from seawall.models.encoder_levels import kept_levels
from seawall.models.weights import weights_digest
from seawall.modules import features_stride, seen_features
from seawall.registry import preset, register
from seawall.rng import Keys
from seawall.training.objectives.festa import sampled_pixels
from seawall.training.objectives.mean_teacher import teacher_logits
from seawall.training.objectives.teacher_file import GUIDE, TeacherFile
from seawall.types import Batch, SegmentationModel

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the kernels of the discrepancy, as multiples of the median squared distance."""


@register("objective", "moment-matching", paper="arXiv:1607.01719", smoke={"teacher": GUIDE}, traits=("unlabelled",))
@final
@dataclass(frozen=True)
class MomentMatching(TeacherFile):
    """The loss on labels, plus how far the features of all patches are, as a set, from those of a trained network of other bands.

    The features are those of the coarsest level of both encoders, in cells of which every pixel is seen. The two sets need not
    come from the same places: no cell has a partner. Pixels need no label for it. Where the shares of the classes differ between the
    two sets, equal distributions are wrong, and the objective misleads.

    Args:
        teacher: Weights file of the trained network, such as an optical one, which has not seen the held-out chips.
        distance: "coral", the squared Frobenius distance of the covariances over 4 D^2, or "mmd", the squared maximum mean
            discrepancy of Gaussian kernels.
        weight: Weight of the distance.
        cells: Cells of each image that are drawn, at most.
        loss: A loss, or in a recipe its name, such as "ce + dice".

    Paper: Sun and Saenko 2016, arXiv:1607.01719, eq. 1 (coral); Long et al. 2015, arXiv:1502.02791, for mmd. Differs: the network of
    the source domain is trained already and stays as it is, for its input has other bands.
    """

    distance: Literal["coral", "mmd"] = "coral"
    weight: float = 1.0
    cells: int = 64
    loss: LossField = field(default_factory=CrossEntropyLoss)
    name: ClassVar[str] = "moment-matching"
    paired: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UsageError(f"moment-matching.weight: expected a weight above 0, got {self.weight}; 1 is common")
        if self.cells < 2:
            raise UsageError(f"moment-matching.cells: expected at least 2, got {self.cells}; 64 is common")

    def guided_by(self, teacher: SegmentationModel) -> GuidedMomentMatching:
        """Return the objective with the trained network."""
        return GuidedMomentMatching(self, weights_digest(cast(nn.Module, teacher)), teacher)


preset(
    "objective", "kernel-matching", MomentMatching(GUIDE, "mmd"), paper="arXiv:1502.02791", smoke={"teacher": GUIDE},
    summary="Moment matching by the maximum mean discrepancy of Gaussian kernels.", traits=("unlabelled",),
)  # fmt: skip


@final
@dataclass(frozen=True)
class GuidedMomentMatching:
    """Moment matching to a network that is there.

    Args:
        method: The settings.
        digest: Of the network's weights.
        teacher: The network.
    """

    method: MomentMatching
    digest: str
    teacher: SegmentationModel = field(repr=False, compare=False)
    all_bands: ClassVar[bool] = True

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        """Return the loss over valid pixels plus the weighted distance of the two sets of features.

        Raises:
            DataError: The batch lacks bands of one of the networks.
            ModelError: The coarsest levels of their encoders have different numbers of features.
        """
        method, network = self.method, cast(nn.Module, model)
        teacher = cast(nn.Module, self.teacher).to(batch.image.device)
        own, other = batch.with_bands(model.spec.bands), batch.with_bands(self.teacher.spec.bands)
        with kept_levels(network) as mine:
            value = training_logits(model, own.image).loss(method.loss, own.label, own.valid)
        with kept_levels(teacher) as theirs:
            teacher_logits(self.teacher, other.image)
        cells = self._cells(network, own, mine[-1][0], keys.fold("matched"))
        wanted = self._cells(teacher, other, theirs[-1][0], keys.fold("matching"))
        if cells.shape[1] != wanted.shape[1]:
            raise ModelError(
                f"moment-matching.teacher: expected {cells.shape[1]} features in the coarsest level, got {wanted.shape[1]}; use the "
                "same architecture and width"
            )
        if min(len(cells), len(wanted)) < 2:  # too few for a distribution
            return value + mine[-1][0].sum() * 0.0
        measure = covariance_distance if method.distance == "coral" else kernel_discrepancy
        return value + method.weight * measure(cells, wanted)

    def _cells(self, model: nn.Module, batch: Batch, features: Tensor, keys: Keys) -> Tensor:
        """Return the features (N, D) of cells that are drawn from every image."""
        kept, seen = seen_features(features, batch.seen, features_stride(model, batch.image, features))
        found = [kept.new_zeros(0, kept.shape[1])]
        for i, there in enumerate(seen):
            if count := int(there.sum()):
                at = sampled_pixels(there, min(1.0, self.method.cells / count), keys, i)
                found.append(kept[i].flatten(1).T[at])
        return torch.cat(found).float()


def covariance_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared Frobenius distance of the covariances of two sets (N, D) and (M, D), over 4 D^2.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> covariance_distance(x, 2 * x).item()  # variances 2 and 8
        9.0
    """
    gap = torch.cov(x.T) - torch.cov(y.T)
    return gap.square().sum() / (4 * x.shape[1] ** 2)


def kernel_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two sets (N, D) and (M, D), the mean over Gaussian kernels; at least 0.

    The kernels are exp(-d^2 / w), with w a multiple of the median squared distance of all pairs (`BANDWIDTHS`).

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> kernel_discrepancy(x, x).item()
        0.0
    """
    # one formula for all three, so that equal sets have exactly 0
    own, other, across = (squared_distances(a, b) for a, b in ((x, x), (y, y), (x, y)))
    pairs = [square[torch.ones_like(square, dtype=torch.bool).triu(1)] for square in (own, other)]
    width = torch.cat([*pairs, across.flatten()]).detach().median().clamp_min(torch.finfo(x.dtype).tiny)

    def mean_kernel(square: Tensor) -> Tensor:
        return torch.stack([torch.exp(-square / (factor * width)).mean() for factor in BANDWIDTHS]).mean()

    return mean_kernel(own) + mean_kernel(other) - 2 * mean_kernel(across)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distances (N, M) of the rows of two sets (N, D) and (M, D), by one matrix product."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
