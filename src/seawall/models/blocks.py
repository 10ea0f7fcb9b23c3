"""Building blocks of the networks: norms, convolutions, padding to a multiple of the stride, standardization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import ModelError, UsageError
from seawall.losses.auxiliary import AuxiliaryModel, TrainingLogits
from seawall.types import ModelSpec, Setting

Norm = Literal["pixel", "batch", "group", "none"]
SIZE_LIMITS: Mapping[str, int] = {"depth": 8, "fc": 4096}
"""The largest size that a network may have, by the name of the setting; of other names 1024."""


class PixelNorm(nn.Module):
    """Normalize the channels of each pixel, with a learned scale and shift per channel.

    Pixels and images do not depend on each other, and train and eval mode do not differ: a tile gives the logits of the
    whole scene, a batch of one those of a large batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized features, same shape; a view of channels-last memory, so nothing is copied."""
        rows = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return rows.permute(0, 3, 1, 2)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a single value per channel in training too, and normalizes it by the running statistics.

    A batch of one has that where an image is pooled or halved down to one cell. Such a value has no variance, and it does
    not enter the running statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized features, same shape."""
        if self.training and x.numel() == self.num_features:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return a norm over features of that many channels."""
    if norm == "pixel":
        return PixelNorm(channels)
    if norm == "batch":
        return BatchNorm(channels)
    if norm == "none":
        return nn.Identity()
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


def conv_norm(
    inside: int, outside: int, norm: Norm, kernel: int = 3, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution that keeps the size but for its stride, and its norm; without a norm it has a bias."""
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inside, outside, kernel, stride, padding, dilation, groups, bias=norm == "none")
    return nn.Sequential(layer, make_norm(norm, outside))


def conv_norm_relu(
    inside: int, outside: int, norm: Norm, kernel: int = 3, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return convolution, norm, ReLU; 3x3 unless told otherwise."""
    return nn.Sequential(
        *conv_norm(inside, outside, norm, kernel, stride=stride, dilation=dilation), nn.ReLU(inplace=True)
    )


def double_conv(inside: int, outside: int, norm: Norm, dropout: float = 0.0, dilation: int = 1) -> nn.Sequential:
    """Return two convolutions, each with its norm and ReLU, and a dropout of whole feature maps above 0."""
    drop = [nn.Dropout2d(dropout)] if dropout else []
    first = conv_norm_relu(inside, outside, norm, dilation=dilation)
    return nn.Sequential(first, conv_norm_relu(outside, outside, norm, dilation=dilation), *drop)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Return features or logits at a larger size, by bilinear interpolation."""
    return functional.interpolate(x, scale_factor=factor, mode="bilinear")


class FurtherBands(nn.Module, ABC):
    """Bands that are computed from an image in data units; a network sees them beside the standardized ones."""

    @abstractmethod
    def count(self, bands: int) -> int:
        """Return how many there are of an image with that many bands."""


def bands_seen(spec: ModelSpec, features: FurtherBands | None) -> int:
    """Return how many bands the layers of a network see: those of the image and further ones."""
    bands = len(spec.bands)
    return bands if features is None else bands + features.count(bands)


class Segmenter(nn.Module):
    """A network from data units to logits: standardize, pad to a multiple of the stride, run the network, crop.

    Args:
        spec: Data of the model, and its architecture, from which it is built again when its weights are loaded.
        network: Standardized image (B, C, H, W) to logits (B, K, H, W), for sides that are multiples of `stride`.
        stride: The sides are padded to a multiple of it, by reflection.
        reach: Radius of the receptive field in pixels: the largest distance at which an input pixel changes a logit;
            None without a bound, as where a norm averages over the image. Logits of a tile at least this far from its
            edges are those of the whole scene.
        features: From the image in data units to further channels (B, F, H, W), which follow the standardized bands.
    """

    def __init__(
        self, spec: ModelSpec, network: nn.Module, stride: int, reach: int | None, features: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.stride = stride
        self.reach = reach
        self.standardize = Standardize(len(spec.bands))
        self.network = network
        self.features = features
        # Channels-last costs nothing on a CPU and gains up to a half; on tensor cores it always gains.
        self.lay_out(torch.channels_last)

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Keep weights and activations in this layout from now on; it changes speed, and no logit beyond rounding."""
        self.memory_format = memory_format
        self.to(memory_format=memory_format)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of an image (B, C, H, W) in data units."""
        return crop_to(self.network(self._prepared(image)), image)

    def training_logits(self, image: Tensor) -> TrainingLogits:
        """Return the logits of an image (B, C, H, W) in data units with those of the auxiliary heads, in any mode.

        `forward` passes the auxiliary heads by, in training and in evaluation, so that attacks, validation and exported
        networks do not pay for them; their weights are in the weights file.
        """
        if not isinstance(self.network, AuxiliaryModel):
            return TrainingLogits(self(image))
        return self.network.training_logits(self._prepared(image)).each(lambda logits: crop_to(logits, image))

    def _prepared(self, image: Tensor) -> Tensor:
        """Return what the network gets: standardized, with further channels, of sides that are multiples of the stride."""
        x = self.standardize(image)
        if self.features is not None:
            x = torch.cat([x, self.features(image)], 1)
        return pad_to(x.contiguous(memory_format=self.memory_format), self.stride)


def crop_to(logits: Tensor, image: Tensor) -> Tensor:
    """Return logits without what `pad_to` has added to the image."""
    return logits[..., : image.shape[-2], : image.shape[-1]].contiguous()


def pad_to(x: Tensor, stride: int) -> Tensor:
    """Return x padded below and at the right to the next multiple of the stride, by reflection."""
    return pad_by_reflection(x, 0, (-x.shape[-1]) % stride, 0, (-x.shape[-2]) % stride)


def pad_by_reflection(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Return x with more rows and columns, each a reflection in the first or last one.

    A side too short for reflection repeats its first and last row or column.
    """
    if left or right:
        x = functional.pad(x, (left, right, 0, 0), "reflect" if max(left, right) < x.shape[-1] else "replicate")
    if top or bottom:
        x = functional.pad(x, (0, 0, top, bottom), "reflect" if max(top, bottom) < x.shape[-2] else "replicate")
    return x


def check_sizes(name: str, sizes: Mapping[str, int], dropout: float) -> None:
    """Check the sizes of a network.

    Raises:
        UsageError: A size is below 1 or above its limit, or the dropout is no share.
    """
    for key, size in sizes.items():
        limit = SIZE_LIMITS.get(key, 1024)
        if not 1 <= size <= limit:
            raise UsageError(
                f"{name}.{key}: expected a whole number in 1..{limit}, got {size}; see `seawall methods {name}`"
            )
    if not 0 <= dropout < 1:
        raise UsageError(f"{name}.dropout: expected a share in [0, 1), got {dropout}; 0.1 is common")


def check_auxiliary(name: str, weight: float) -> None:
    """Check the weight of auxiliary losses.

    Raises:
        UsageError: It is negative or not a number.
    """
    if not 0 <= weight <= 100:
        raise UsageError(f"{name}.auxiliary: expected a weight in [0, 100], got {weight}; 0 has no auxiliary head")


def check_bands_and_classes(name: str, spec: ModelSpec) -> None:
    """Check that a specification has a band and two classes.

    Raises:
        ModelError: It has not.
    """
    if not spec.bands or len(spec.classes) < 2:
        raise ModelError(
            f"{name}: expected at least 1 band and 2 classes, got {spec.bands} and {spec.classes}; name them in ModelSpec"
        )


def check_image_bands(name: str, image: Tensor, bands: int) -> None:
    """Check that an image (B, C, H, W) has the bands of a model.

    Raises:
        ModelError: It has not.
    """
    if image.shape[1] != bands:
        raise ModelError(
            f"{name}: expected {bands} bands, got an image of shape {tuple(image.shape)}; choose the bands of model.spec"
        )


def check_fitted(name: str, fitted: Tensor) -> None:
    """Check that a model that is fitted to chips was.

    Raises:
        ModelError: It was not.
    """
    if not torch.compiler.is_compiling() and not fitted:  # an export follows no value of a tensor
        raise ModelError(
            f"{name}: expected a fitted model, got one without a fit; call model.fit(batches) on training chips"
        )


def settings_of(values: Mapping[str, object]) -> Mapping[str, Setting]:
    """Return the settings of an architecture in the types of a recipe."""
    return {key: cast(Setting, list(value) if isinstance(value, tuple) else value) for key, value in values.items()}


class Standardize(nn.Module):
    """The first layer of every network: (image - mean) / std per band; the identity until it is fitted.

    Args:
        bands: Number of input bands.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.ones(bands))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Standardize:
        """Set mean and standard deviation per band, in data units, over the seen training pixels.

        Raises:
            ModelError: There is not one finite number per band, or a standard deviation is not above zero.
        """
        given = {"mean": torch.as_tensor(mean).float().flatten(), "std": torch.as_tensor(std).float().flatten()}
        for name, numbers in given.items():
            if len(numbers) != len(self.mean):
                raise ModelError(
                    f"standardize.{name}: expected {len(self.mean)} numbers, got {len(numbers)}; give one per band"
                )
        _check_statistics(given["mean"], given["std"])
        self.mean.copy_(given["mean"])
        self.std.copy_(given["std"])
        self.fitted.fill_(True)
        return self

    def check(self) -> None:
        """Check the statistics, which damaged weights can make invalid.

        Raises:
            ModelError: A mean or standard deviation is not finite, or a standard deviation is not above zero.
        """
        _check_statistics(self.mean, self.std)

    def forward(self, image: Tensor) -> Tensor:
        """Return the standardized image, same shape."""
        check_image_bands("model", image, len(self.mean))
        return (image - self.mean[:, None, None]) / self.std[:, None, None]


def _check_statistics(mean: Tensor, std: Tensor) -> None:
    if not bool(torch.isfinite(mean).all()):
        raise ModelError(f"standardize.mean: expected finite numbers, got {mean.tolist()}; leave unseen pixels out")
    if not bool((torch.isfinite(std) & (std > 0)).all()):
        raise ModelError(
            f"standardize.std: expected numbers above 0, got {std.tolist()}; drop constant bands and leave unseen pixels out"
        )
