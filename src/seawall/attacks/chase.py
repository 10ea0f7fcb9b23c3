"""One forward and one backward pass per step; images that are fully broken leave the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seawall.attacks.aim import Aim, check_logits
from seawall.errors import ModelError
from seawall.losses.attack import CrossEntropy, PixelLoss, cross_entropy
from seawall.threat.model import Ball
from seawall.types import SegmentationModel


class Look(NamedTuple):
    """What one forward and backward pass tells about each image still standing."""

    grad: Tensor  # (b, C, H, W) of the loss summed over valid pixels
    tracked: Tensor  # (b,) mean cross-entropy over valid pixels, larger is more adversarial; zeros unless asked for


class Chase:
    """A running attack: the images still standing, and the best adversarial of every image so far.

    Attributes:
        best: (B, C, H, W) the most adversarial image looked at; the clean one where there was nothing to attack.
        standing: Indices of the images that are not fully broken yet.
        ball: The threat set around the standing images.

    Args:
        model: The model, in eval mode with frozen parameters.
        aim: What to push at.
        ball: The threat set around the whole batch.
        keep: "best" keeps the most adversarial look and lets broken images leave; "last" keeps the last image.
    """

    def __init__(self, model: SegmentationModel, aim: Aim, ball: Ball, keep: str = "best") -> None:
        self.model, self.keep = model, keep
        self.best = ball.x.clone()
        count = aim.valid.flatten(1).sum(1)
        self.standing = count.nonzero()[:, 0]
        whole = len(self.standing) == len(count)
        self.aim = aim if whole else aim.select(self.standing)
        self.ball = ball if whole else ball.select(self.standing)
        self._count = count[self.standing]
        self._hits = torch.full_like(self._count, -1)
        self._kept = self.ball.x

    @property
    def over(self) -> bool:
        """Whether no image is left to attack."""
        return len(self.standing) == 0

    def look(self, adv: Tensor, loss: PixelLoss, progress: float = 0.0, track: bool = False) -> Look:
        """Return the gradient at `adv`; it is judged on the way.

        Raises:
            ModelError: The model has no gradient with respect to its input.
        """
        adv = adv.detach().requires_grad_()
        logits = self._logits(adv)
        if not logits.requires_grad:
            raise ModelError(
                "model: expected logits with a gradient to the image, got none; use a black-box attack such as random"
            )
        aim = self.aim.seen_with(logits, progress)
        climbed = torch.where(aim.valid, loss(logits, aim), 0.0)
        (grad,) = torch.autograd.grad(climbed.sum(), adv)
        logits, adv = logits.detach(), adv.detach()
        self._judge(adv, logits)
        tracked = torch.zeros_like(self._count, dtype=logits.dtype)
        if track and isinstance(loss, CrossEntropy):
            tracked = climbed.detach().flatten(1).sum(1) / self._count
        elif track:
            tracked = torch.where(aim.valid, cross_entropy(logits, aim), 0.0).flatten(1).sum(1) / self._count
        return Look(grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0), tracked)

    def glance(self, adv: Tensor) -> None:
        """Judge `adv` with a forward pass alone."""
        with torch.no_grad():
            self._judge(adv, self._logits(adv))

    def shed(self) -> Tensor | None:
        """Let fully broken images leave; return the positions of those that stay, or None if all do."""
        if self.keep == "last":
            return None
        left = (self._hits < self._count).nonzero()[:, 0]
        if len(left) == len(self.standing):
            return None
        self.best[self.standing] = self._kept
        self.aim, self.ball = self.aim.select(left), self.ball.select(left)
        self.standing, self._count, self._hits = self.standing[left], self._count[left], self._hits[left]
        self._kept = self._kept[left]
        return left

    def end(self, adv: Tensor | None = None) -> Tensor:
        """Return the best images; `adv` is the last of those still standing, and what "last" keeps."""
        self.best[self.standing] = self._kept if adv is None or self.keep == "best" else adv
        return self.best

    def _logits(self, adv: Tensor) -> Tensor:
        return check_logits(self.model(adv), adv, len(self.model.spec.classes))

    def _judge(self, adv: Tensor, logits: Tensor) -> None:
        if self.keep == "last":
            return
        hits = self.aim.hits(logits)
        # at a tie the later image stays: it was pushed further
        better = hits >= self._hits
        # most steps improve every image: then nothing is copied
        self._kept = adv if bool(better.all()) else torch.where(better[:, None, None, None], adv, self._kept)
        self._hits = torch.maximum(hits, self._hits)
