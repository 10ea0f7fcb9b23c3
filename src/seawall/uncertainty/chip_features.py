"""Features of a chip that an attack may move: means of the uncertainty of its map, and the fine texture of its image.

They are computed from the image and the answer of the model alone, over seen pixels, with gradients to the image, so that what a
detector reads and what an adversary keeps is one function. A feature of pixels that a chip has none of, such as the border of
a map of one class, is undefined (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Prediction, UncertainModel, aggregate_passes

SMOOTHEST = 0.1
"""Share of the pixels whose fine texture is the noise floor: the smoothest tenth of a chip cannot hide noise."""


def predict_with_gradients(model: SegmentationModel, image: Tensor) -> Prediction:
    """Return the mean of the passes of a predictor, or the one pass of any other model, with gradients to the image."""
    return model.predict(image) if isinstance(model, UncertainModel) else aggregate_passes([model(image)])


def feature_names(classes: Sequence[str], several_passes: bool) -> tuple[str, ...]:
    """Return the names of the features, in the order of `chip_features`.

    Example:
        >>> feature_names(("land", "water"), False)[:5]
        ('entropy', 'entropy at borders', 'entropy inside', 'variation', 'margin')
    """
    disagreement = ("mutual information",) if several_passes else ()
    confidence = (f"confidence in {klass}" for klass in classes)
    return (
        "entropy", "entropy at borders", "entropy inside", "variation", "margin", *confidence, *disagreement, "fine texture", "noise floor",
    )  # fmt: skip


def chip_features(prediction: Prediction, image: Tensor, image_seen: Tensor) -> Tensor:
    """Return the features (B, F) of chips.

    Args:
        prediction: What the model says of the images.
        image: (B, C, H, W) in data units.
        image_seen: (B, 1 or C, H, W) bool.
    """
    seen = image_seen.any(1)
    guess = prediction.probability.argmax(1)
    border = predicted_borders(guess, seen)
    entropy, best = prediction.entropy, prediction.probability.amax(1)
    confidence = (masked_chip_mean(best, seen & (guess == klass)) for klass in range(prediction.probability.shape[1]))
    disagreement = [masked_chip_mean(prediction.mutual_information, seen)] if prediction.passes > 1 else []
    features = [
        masked_chip_mean(entropy, seen), masked_chip_mean(entropy, seen & border), masked_chip_mean(entropy, seen & ~border),
        masked_chip_mean(prediction.variation, seen), masked_chip_mean(prediction.margin, seen),
        *confidence, *disagreement, *fine_texture(image, image_seen),
    ]  # fmt: skip
    return torch.stack([feature.double() for feature in features], 1)


def masked_chip_mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean (B,) of values (B, H, W) where a mask says, NaN where it says nowhere."""
    count = where.flatten(1).sum(1)
    total = torch.where(where, values, 0.0).flatten(1).sum(1)
    return torch.where(count > 0, total / count.clamp_min(1), torch.nan)


def predicted_borders(guess: Tensor, seen: Tensor) -> Tensor:
    """Return where one of the eight neighbors of a seen pixel is seen and has another class: (B, H, W) bool.

    Example:
        >>> predicted_borders(torch.tensor([[[0, 0, 0, 1, 0]]]), torch.tensor([[[True, True, True, True, False]]])).tolist()
        [[[False, False, True, True, False]]]
    """
    plane = guess[:, None].float()
    highest, lowest = (
        functional.max_pool2d(torch.where(seen[:, None], sign * plane, -torch.inf), 3, 1, 1) for sign in (1, -1)
    )
    return (highest != -lowest)[:, 0] & seen


def fine_texture(image: Tensor, image_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the fine texture, and of its tenth where the image is smoothest: (B,) each, the mean over bands.

    The fine texture is the difference of a pixel from the mean of its 3 x 3 neighborhood, where all of that is seen: its root mean
    square, and the mean of its absolute value over the smoothest tenth of the pixels.
    """
    if min(image.shape[2:]) < 3:
        nothing = torch.full((len(image),), torch.nan, device=image.device)
        return nothing, nothing
    rest = image[:, :, 1:-1, 1:-1] - functional.avg_pool2d(image, 3, 1)
    known = functional.avg_pool2d(image_seen.float(), 3, 1) > 1 - 1e-3
    rows = [
        _texture_of_band(band[where])
        for chip, mask in zip(rest, known.expand_as(rest), strict=True)
        for band, where in zip(chip, mask, strict=True)
    ]
    both = torch.stack(rows).view(len(image), image.shape[1], 2).mean(1)
    return both[:, 0], both[:, 1]


def _texture_of_band(rest: Tensor) -> Tensor:
    """Return both figures of one band of a chip, (2,)."""
    if not len(rest):
        return torch.full((2,), torch.nan, dtype=torch.float64, device=rest.device)
    size = rest.double().abs()
    smooth = size <= size.detach().kthvalue(math.ceil(SMOOTHEST * len(size))).values
    power, floor = size.square().mean(), size[smooth].mean()  # the mean of many has a gradient to all of them
    return torch.stack([(power + 1e-16).log() / 2, (floor + 1e-8).log()])
