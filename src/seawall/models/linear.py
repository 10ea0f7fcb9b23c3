"""A linear classifier of each pixel's bands: the simplest network, whose worst case has a closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from seawall.models.blocks import Segmenter, check_bands_and_classes
from seawall.registry import register
from seawall.types import ModelSpec


@register("model", "linear")
@dataclass(frozen=True)
class PixelClassifier:
    """Logistic regression on the bands of each pixel.

    Under a linf threat the margin of a pixel falls by eps times the 1-norm of the difference of two rows of weights at
    most. With two classes one step of FGSM reaches that, so training with "fgsm" is training on the exact worst case.
    """

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes("linear", spec)
        layer = nn.Conv2d(len(spec.bands), len(spec.classes), 1)
        return Segmenter(replace(spec, architecture="linear", settings={}), layer, stride=1, reach=0)
