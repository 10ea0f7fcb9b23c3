"""Adapter of any nn.Module to a segmentation model: data units in, logits (B, K, H, W) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import ModelError
from seawall.models.blocks import Standardize
from seawall.types import ModelSpec

PROBABILITIES = "already softmax"
"""Flag of a module whose outputs look like probabilities although none were declared."""


def adapt(
    module: nn.Module,
    spec: ModelSpec,
    *,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    sigmoid: bool = False,
    softmax: bool = False,
) -> Adapted:
    """Wrap a module so that it can be trained, attacked and deployed.

    The module may return a tensor, a mapping with "logits" or "out", an object with such an attribute, or a tuple whose
    first entry counts. One logit z becomes (0, z). Smaller logits are resized to the image, bilinearly.

    Args:
        module: Takes (B, C, H, W).
        spec: Bands, classes and unit of its data.
        mean: Mean per band that is subtracted first, in data units.
        std: Standard deviation per band that is divided by. Digital numbers of x10000 are `std=[1e-4] * bands`.
        sigmoid: The module ends in a sigmoid; the probability is converted to a logit.
        softmax: The module ends in a softmax; probabilities are converted to logits.

    Raises:
        ModelError: Only one of mean and std is given, or both sigmoid and softmax.
    """
    return Adapted(module, spec, mean=mean, std=std, sigmoid=sigmoid, softmax=softmax)


class Adapted(nn.Module):
    """The wrapper that `adapt` returns.

    Attributes:
        flags: Findings of the first forward pass, such as `PROBABILITIES`.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        *,
        mean: Sequence[float] | Tensor | None,
        std: Sequence[float] | Tensor | None,
        sigmoid: bool,
        softmax: bool,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ModelError("adapt: expected mean and std together, got one of them; give both or neither")
        if sigmoid and softmax:
            raise ModelError("adapt: expected one ending, got sigmoid and softmax; choose the module's last layer")
        self.spec = replace(spec, architecture="module", settings={})
        self.module = module
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.flags: tuple[str, ...] = ()
        self._checked = False
        self.standardize = Standardize(len(spec.bands))
        # Without mean and std the module standardizes itself: use the identity.
        bands = len(spec.bands)
        self.standardize.fit([0.0] * bands if mean is None else mean, [1.0] * bands if std is None else std)

    def identity(self) -> Mapping[str, object]:
        """Return the attributes that decide the logits; the others hold the findings of the first pass."""
        return {"spec": self.spec, "sigmoid": self.sigmoid, "softmax": self.softmax}

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of an image (B, C, H, W) in data units."""
        logits = self._logits(_unwrap(self.module(self.standardize(image))))
        if logits.shape[-2:] != image.shape[-2:]:
            logits = functional.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return logits

    def _logits(self, out: Tensor) -> Tensor:
        classes = len(self.spec.classes)
        if out.ndim == 3 and classes == 2:
            out = out[:, None]
        if out.ndim != 4 or out.shape[1] not in ({1, 2} if classes == 2 else {classes}):
            raise ModelError(
                f"{type(self.module).__name__}: expected (B, {classes}, H, W) for the classes {', '.join(self.spec.classes)}, got {tuple(out.shape)}; name its classes in the spec"
            )
        if not self._checked:
            self._check_ending(out.detach())
        if self.sigmoid:
            # clamp keeps the logit finite at 0 and 1; its gradient there is zero, which the sanity checks flag.
            out = torch.logit(out, eps=1e-6)
        elif self.softmax:
            out = out.clamp_min(1e-6).log()
        return torch.cat([torch.zeros_like(out), out], 1) if out.shape[1] == 1 else out

    def _check_ending(self, out: Tensor) -> None:
        self._checked = True
        inside = bool(((out >= 0) & (out <= 1)).all())
        sums = out.shape[1] > 1 and bool(((out.sum(1) - 1).abs() < 1e-3).all())
        if (self.softmax and not (inside and sums)) or (self.sigmoid and not inside):
            raise ModelError(
                f"{type(self.module).__name__}: expected probabilities, got values in [{float(out.min()):g}, {float(out.max()):g}]; leave out {'softmax' if self.softmax else 'sigmoid'}=True"
            )
        if inside and (sums or out.shape[1] == 1) and not (self.softmax or self.sigmoid):
            self.flags = (PROBABILITIES,)


def _unwrap(out: object) -> Tensor:
    for name in ("logits", "out"):
        if isinstance(out, Mapping) and name in out:
            return _unwrap(out[name])
        if not isinstance(out, Tensor) and hasattr(out, name):
            return _unwrap(getattr(out, name))
    if isinstance(out, tuple | list) and out:
        return _unwrap(out[0])
    if not isinstance(out, Tensor):
        raise ModelError(
            f"adapt: expected a tensor, or one under 'logits' or 'out', got {type(out).__name__}; wrap the module's forward"
        )
    return out
