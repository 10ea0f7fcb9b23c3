"""What the adversary wants, as values: away from the truth, towards a class, hide a class, the least likely one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator
from scipy import ndimage
from torch import Tensor

from seawall.errors import UsageError, did_you_mean
from seawall.types import Batch, ModelSpec


@dataclass(frozen=True)
class Untargeted:
    """As many valid pixels as possible wrong.

    Args:
        truth: Wrong against the "label", or against the model's own "prediction" on the clean image, which leaks
            nothing of the label to the adversary.
    """

    truth: Literal["label", "prediction"] = "label"
    targeted: ClassVar[bool] = False
    moving: ClassVar[bool] = False

    @property
    def reads(self) -> bool:
        """Whether the goal needs the model's logits on the clean image, one more forward pass."""
        return self.truth == "prediction"

    def pixels(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed away from."""
        return batch.label if logits is None else logits.argmax(1)

    def __str__(self) -> str:
        return "untargeted" if self.truth == "label" else "untargeted prediction"


AWAY = Untargeted()


@dataclass(frozen=True)
class Towards:
    """Every valid pixel predicted as one class.

    Args:
        klass: Name of the class.
    """

    klass: str
    targeted: ClassVar[bool] = True
    moving: ClassVar[bool] = False
    reads: ClassVar[bool] = False

    def pixels(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed to."""
        return torch.full_like(batch.label, spec.klass(self.klass))

    def __str__(self) -> str:
        return f"towards {self.klass}"


@dataclass(frozen=True)
class Hide:
    """One class gone, everything else as it was predicted.

    A pixel predicted as the class is pushed to the prediction of the nearest seen pixel of another class. Where the
    class fills a chip, to its own runner-up.

    Args:
        klass: Name of the class.

    Paper: Fischer et al. 2017, arXiv:1703.01101, section 3.
    """

    klass: str
    targeted: ClassVar[bool] = True
    moving: ClassVar[bool] = False
    reads: ClassVar[bool] = True

    def pixels(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed to."""
        if logits is None:
            raise UsageError(f"goal {self}: expected logits of the clean image, got none; pass the model's output")
        klass = spec.klass(self.klass)
        prediction = logits.argmax(1)
        other = logits.index_fill(1, torch.tensor([klass], device=logits.device), -torch.inf).argmax(1)
        filled = nearest_other(prediction, batch.seen, klass)
        target = torch.where(filled >= 0, filled, other)
        return torch.where(prediction == klass, target, prediction)

    def __str__(self) -> str:
        return f"hide {self.klass}"


@dataclass(frozen=True)
class LeastLikely:
    """Every valid pixel predicted as the class that the model likes least there.

    Args:
        moving: Whether the target follows the model at every step (Arnab et al.) or stays as on the clean image.
            A moving target is never reached, so the best image is then the most wrong one.
    """

    moving: bool = False
    targeted: ClassVar[bool] = True

    @property
    def reads(self) -> bool:
        """Whether the goal needs the model's logits on the clean image, one more forward pass."""
        return not self.moving

    def pixels(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed to; the truth stands in for a moving target."""
        return batch.label if logits is None else logits.argmin(1)

    def __str__(self) -> str:
        return "least-likely moving" if self.moving else "least-likely"


def nearest_other(prediction: Tensor, seen: Tensor, klass: int) -> Tensor:
    """Return for every pixel the class of the nearest seen pixel that is not `klass`; -1 where an image has none.

    Example:
        >>> row = torch.tensor([[[0, 2, 2, 1]]])
        >>> nearest_other(row, torch.ones_like(row, dtype=torch.bool), 2)
        tensor([[[0, 0, 1, 1]]])
    """
    maps = prediction.cpu().numpy()
    sources = (prediction.ne(klass) & seen).cpu().numpy()
    filled = np.full_like(maps, -1)
    for image, source, out in zip(maps, sources, filled, strict=True):
        if source.any():
            rows, cols = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
            out[...] = image[rows, cols]
    return torch.from_numpy(filled).to(prediction.device)


def parse_goal(text: object) -> object:
    """Return the goal of a text such as "hide water"; anything but text passes through.

    Raises:
        UsageError: The text is no goal.

    Example:
        >>> parse_goal("towards land"), parse_goal("least-likely moving")
        (Towards(klass='land'), LeastLikely(moving=True))
    """
    if not isinstance(text, str):
        return text
    word, _, rest = text.strip().partition(" ")
    fixed = {str(goal): goal for goal in (Untargeted(), Untargeted("prediction"), LeastLikely(), LeastLikely(True))}
    if text.strip() in fixed:
        return fixed[text.strip()]
    if word in ("towards", "hide") and rest.strip():
        return Towards(rest.strip()) if word == "towards" else Hide(rest.strip())
    known = (*fixed, "towards <class>", "hide <class>")
    raise UsageError(f"goal: expected a goal, got {text!r}; {did_you_mean(text, known)}")


Goal = Annotated[Untargeted | Towards | Hide | LeastLikely, BeforeValidator(parse_goal)]
"""A goal, in Python as a value and in recipes as text: `goal = "hide water"`."""
