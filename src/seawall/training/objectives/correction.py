"""Loss correction for label noise with a known transition matrix."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from seawall.errors import DataError, UsageError
from seawall.label_noise.label_view import check_transition_matrix
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import check_input, masked_mean
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel

PATRINI = "arXiv:1609.03683"
Matrix = tuple[tuple[float, ...], ...]


@register("objective", "forward-corrected", paper=PATRINI, smoke={"matrix": [[0.9, 0.1], [0.2, 0.8]]})
@final
@dataclass(frozen=True)
class ForwardCorrected:
    """Cross-entropy of the given labels under the predicted distribution, multiplied by the transition matrix.

    Paper: Patrini et al. 2017, arXiv:1609.03683, theorem 2. Differs: over valid pixels.

    Args:
        matrix: Row i, column j: probability that class i is labelled j; or the path of the confident.json that
            `seawall audit-labels` wrote, whose estimate is taken.
    """

    matrix: Matrix | str

    def __post_init__(self) -> None:
        check_matrix("forward-corrected", self.transition)

    @cached_property
    def transition(self) -> Matrix:
        """The matrix as numbers."""
        return read_matrix(self.matrix)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        loss = partial(forward_corrected, matrix=self.transition)
        return training_logits(model, batch.image).loss(loss, batch.label, batch.valid)


@register("objective", "backward-corrected", paper=PATRINI, smoke={"matrix": [[0.9, 0.1], [0.2, 0.8]]})
@final
@dataclass(frozen=True)
class BackwardCorrected:
    """Cross-entropy of every class, weighted by the inverse matrix; its expectation is the loss on clean labels.

    Unbiased, but its terms can be negative and large: the forward correction is steadier.

    Paper: Patrini et al. 2017, arXiv:1609.03683, theorem 1. Differs: over valid pixels.

    Args:
        matrix: As for "forward-corrected"; it must have an inverse.
    """

    matrix: Matrix | str

    def __post_init__(self) -> None:
        check_matrix("backward-corrected", self.transition)
        if abs(float(torch.linalg.det(torch.tensor(self.transition, dtype=torch.float64)))) < 1e-3:
            raise UsageError(
                f"backward-corrected.matrix: expected one with an inverse, got {self.matrix}; use forward-corrected"
            )

    @cached_property
    def transition(self) -> Matrix:
        """The matrix as numbers."""
        return read_matrix(self.matrix)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        loss = partial(backward_corrected, matrix=self.transition)
        return training_logits(model, batch.image).loss(loss, batch.label, batch.valid)


def forward_corrected(logits: Tensor, label: Tensor, valid: Tensor, matrix: Matrix) -> Tensor:
    """Return the mean of -log sum_i p_i T_iy over valid pixels.

    Example:
        >>> half = forward_corrected(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1).long(), torch.ones(1, 1, 1).bool(), ((1, 0), (0, 1)))
        >>> round(half.item(), 4)  # the identity leaves cross-entropy
        0.6931
    """
    classes = _check_size(check_input(logits, label, valid), matrix)
    log = logits.float().log_softmax(1)
    odds = torch.tensor(matrix, dtype=log.dtype, device=log.device).log()
    # one column of the matrix per pixel, that of its label: (B, K, H, W)
    column = odds.T[label.clamp(0, classes - 1)].movedim(-1, 1)
    return masked_mean(-torch.logsumexp(log + column, 1), valid)


def backward_corrected(logits: Tensor, label: Tensor, valid: Tensor, matrix: Matrix) -> Tensor:
    """Return the mean of sum_j (T^-1)_yj (-log p_j) over valid pixels."""
    classes = _check_size(check_input(logits, label, valid), matrix)
    log = logits.float().log_softmax(1)
    inverse = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64)).to(log)
    row = inverse[label.clamp(0, classes - 1)].movedim(-1, 1)
    return masked_mean(-(row * log).sum(1), valid)


def read_matrix(matrix: Matrix | str) -> Matrix:
    """Return a matrix, from the file that `seawall audit-labels` wrote if it is a path.

    Raises:
        DataError: The file has no matrix.
    """
    if not isinstance(matrix, str):
        return matrix
    try:
        rows = json.loads(Path(matrix).read_text(encoding="utf-8"))["transition"]
        return tuple(tuple(float(value) for value in row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as bad:
        raise DataError(
            f"{matrix}: expected the confident.json of a label audit, got {type(bad).__name__}; run `seawall audit-labels`"
        ) from bad


def check_matrix(name: str, matrix: Matrix) -> None:
    """Check that a matrix is a transition matrix.

    Raises:
        UsageError: It is not square, a row does not sum to 1, or a column is all 0.
    """
    check_transition_matrix(name, matrix, tolerance=1e-3)
    size = len(matrix)
    empty = [j for j in range(size) if all(row[j] == 0 for row in matrix)]
    if empty:
        raise UsageError(
            f"{name}.matrix: expected every label to come from some class, got only 0 in column {empty[0]}; drop the class"
        )


def _check_size(classes: int, matrix: Matrix) -> int:
    if len(matrix) != classes:
        raise UsageError(f"matrix: expected {classes} rows, got {len(matrix)}; give one per class of the model")
    return classes
