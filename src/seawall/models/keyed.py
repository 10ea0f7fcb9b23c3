"""Networks behind a keyed block transform: physical images in, logits out, the transform inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast, final

import torch
from torch import Tensor, nn

from seawall import registry
from seawall.errors import DataError, ModelError, UsageError
from seawall.keyed_transforms.blocks import BlockTransform
from seawall.keyed_transforms.keys import MAKE, SecretKey
from seawall.losses.auxiliary import TrainingLogits
from seawall.models.blocks import Segmenter, Standardize, crop_to, pad_to
from seawall.split_record import SPLIT_ATTRIBUTE
from seawall.types import Batch, ModelSpec, Setting, Unit, single_unit

KEYED = "keyed"
"""Architecture of weights behind a keyed transform; the network is in its settings."""

VALID_RANGES: Mapping[Unit, tuple[float, float]] = {
    "reflectance": (0.0, 1.0), "sigma0_db": (-30.0, 10.0), "gamma0_db": (-30.0, 10.0), "stretched": (0.0, 1.0),
}  # fmt: skip
"""What is scaled to [0, 1] before a transform, per unit; the fill value of unseen pixels is inside."""


@dataclass(frozen=True)
class KeyedFacts:
    """What weights record of a keyed transform; the key is not among it.

    Args:
        transform: Registered keyed transform.
        settings: Its settings.
        low: Data value that becomes 0.
        high: Data value that becomes 1.
        salt: Salt of the check value.
        check: Check value of the key; see `SecretKey.check_value`.
    """

    transform: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    low: float = 0.0
    high: float = 1.0
    salt: str = ""
    check: str = ""

    @property
    def as_settings(self) -> dict[str, Setting]:
        """The facts in the types of a specification."""
        return {
            "transform": self.transform, "settings": dict(self.settings), "range": [self.low, self.high],
            "salt": self.salt, "check": self.check,
        }  # fmt: skip

    def bound(self, key: SecretKey, bands: int) -> BlockTransform:
        """Return the transform under a key."""
        return registry.build("keyed-transform", self.transform, self.settings)(key, bands)


@final
class KeyedModel(nn.Module):
    """A network that gets its images through a keyed transform of their blocks.

    The image is padded by reflection to multiples of the block and of the network's stride, scaled to [0, 1], and
    transformed as a whole, unseen pixels with their fill value like any other. The logits are cropped, so label, seen and valid keep
    their geometry. The transform is no part of the state: weights files and checkpoints have nothing of it.

    Args:
        network: The network; its standardization is of transformed values.
        facts: The transform without the key.
        transform: The transform under a key; None leaves the scaled image as it is, which shows what the model is worth
            to whoever leaves the transform out.
    """

    def __init__(self, network: Segmenter, facts: KeyedFacts, transform: BlockTransform | None) -> None:
        super().__init__()
        inner = network.spec
        settings: dict[str, Setting] = {"network": inner.architecture, "network_settings": dict(inner.settings)}
        self.spec: ModelSpec = replace(inner, architecture=KEYED, settings=settings | facts.as_settings)
        self.network, self.facts, self.transform = network, facts, transform
        self.block = registry.build("keyed-transform", facts.transform, facts.settings).block
        self.stride = math.lcm(network.stride, self.block)
        # a pixel changes the whole block that it is in
        self.reach = None if network.reach is None else network.reach + self.block - 1

    @property
    def standardize(self) -> Standardize:
        """The standardization of transformed values."""
        return self.network.standardize

    def transformed(self, image: Tensor) -> Tensor:
        """Return what the network gets for an image (B, C, H, W) in data units; sides are multiples of `stride`.

        Raises:
            DataError: The image is smaller than a block.
        """
        if min(image.shape[-2:]) < self.block:
            raise DataError(
                f"keyed transform: expected an image of at least {self.block} x {self.block} pixels, its block, got "
                f"{image.shape[-2]} x {image.shape[-1]}; use larger images or train with a smaller block"
            )
        low, high = self.facts.low, self.facts.high
        scaled = (pad_to(image, self.stride) - low) / (high - low)
        return scaled if self.transform is None else cast(Tensor, self.transform(scaled))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of an image (B, C, H, W) in data units."""
        logits: Tensor = self.network(self.transformed(image))
        return crop_to(logits, image)

    def training_logits(self, image: Tensor) -> TrainingLogits:
        """Return the logits with those of the network's auxiliary heads."""
        return self.network.training_logits(self.transformed(image)).each(lambda logits: crop_to(logits, image))

    def fit_standardize(self, batches: Iterable[Batch]) -> None:
        """Set the standardization to mean and standard deviation of the transformed values of blocks without an unseen pixel.

        Raises:
            DataError: There is no such block.
        """
        bands = len(self.spec.bands)
        count, total, squares = 0, torch.zeros(bands).double(), torch.zeros(bands).double()
        for batch in batches:
            values = self.transformed(batch.image).double()
            unseen = pad_to((~batch.seen)[:, None].float(), self.stride)
            whole = nn.functional.max_pool2d(unseen, self.block) == 0
            whole = whole.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3)
            count += int(whole.sum())
            total += (values * whole).sum((0, 2, 3)).cpu()
            squares += (values.square() * whole).sum((0, 2, 3)).cpu()
        if not count:
            raise DataError(
                f"keyed transform: expected blocks of {self.block} seen pixels a side, got none; use a smaller block"
            )
        mean = total / count
        self.standardize.fit(mean, (squares / count - mean.square()).clamp_min(1e-12).sqrt())

    def with_key(self, key: SecretKey) -> KeyedModel:
        """Return the same network behind the transform of another key, whether it fits or not; weights are shared."""
        return self._behind(self.facts.bound(key, len(self.spec.bands)))

    def for_attacks(self) -> KeyedModel:
        """Return the same network whose transform has the most useful gradient for whoever has the key; weights are shared."""
        return self._behind(None if self.transform is None else self.transform.for_attacks())

    def without_transform(self) -> KeyedModel:
        """Return the same network without the transform; weights are shared."""
        return self._behind(None)

    def _behind(self, transform: BlockTransform | None) -> KeyedModel:
        other = KeyedModel(self.network, self.facts, transform).train(self.training)
        setattr(other, SPLIT_ATTRIBUTE, getattr(self, SPLIT_ATTRIBUTE, None))
        return other


@final
class KeyEnsemble(nn.Module):
    """The mean of the probabilities of a network under several keys, for attacks in expectation over keys.

    Args:
        members: The network behind the transform of each key.
    """

    def __init__(self, members: Sequence[KeyedModel]) -> None:
        super().__init__()
        self.spec = members[0].spec
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, (B, K, H, W)."""
        each = torch.stack([cast(Tensor, member(image)).log_softmax(1) for member in self.members])
        return torch.logsumexp(each, 0) - math.log(len(each))


def protect(
    network: nn.Module,
    transform: str,
    settings: Mapping[str, Setting],
    key: SecretKey,
    *,
    salt: str,
    valid_range: tuple[float, float] | None = None,
) -> KeyedModel:
    """Return a network behind a keyed transform, to be trained there.

    Args:
        network: A network without weights yet, such as a U-Net.
        transform: Registered keyed transform.
        settings: Its settings.
        key: The key.
        salt: Salt of the check value, one of its own for every training.
        valid_range: Data values that become 0 and 1; by default those of the unit.

    Raises:
        UsageError: The network has no standardization of its own to be fitted, as a threshold model, or a setting is wrong.
    """
    if not isinstance(network, Segmenter):
        raise UsageError(f"keyed: expected a network, got {type(network).__name__}; use unet or dense-unet")
    low, high = valid_range or VALID_RANGES[single_unit(network.spec.unit, "keyed")]
    if not low < high:
        raise UsageError(
            f"keyed.range: expected two rising numbers, got {low:g} and {high:g}; 0 and 1 are reflectance's"
        )
    facts = KeyedFacts(transform, settings, low, high, salt, key.check_value(salt))
    return KeyedModel(network, facts, facts.bound(key, len(network.spec.bands)))


def rebuild_keyed(where: str, spec: ModelSpec, key: SecretKey | None) -> KeyedModel:
    """Return the module of a specification with architecture "keyed", without its weights.

    Args:
        where: File of the weights, for messages.
        spec: The specification.
        key: The key.

    Raises:
        ModelError: There is no key, it is another one, or the specification is damaged.
    """
    facts, name, settings = read_facts(where, spec)
    if key is None:
        raise ModelError(
            f"{where}: expected a key, got none; its network was trained behind the keyed transform {facts.transform}: "
            "give the key's file or env:NAME as --key, where the command takes one"
        )
    if not key.fits(facts.salt, facts.check):
        raise ModelError(f"{where}: expected the key that it was trained with, got another one; give the right key")
    make = cast(Callable[[ModelSpec], nn.Module], registry.build("model", name, settings))
    network = make(replace(spec, architecture=name, settings=settings))
    return KeyedModel(cast(Segmenter, network), facts, facts.bound(key, len(spec.bands)))


def read_facts(where: str, spec: ModelSpec) -> tuple[KeyedFacts, str, Mapping[str, Setting]]:
    """Return what a specification says of the transform, and name and settings of the network behind it.

    Raises:
        ModelError: A part is missing or of another type.
    """
    try:
        held = cast(Mapping[str, object], spec.settings)
        low, high = cast(Sequence[float], held["range"])
        inner = cast(Mapping[str, Setting], held["settings"])
        facts = KeyedFacts(
            str(held["transform"]), dict(inner), float(low), float(high), str(held["salt"]), str(held["check"])
        )
        return facts, str(held["network"]), dict(cast(Mapping[str, Setting], held["network_settings"]))
    except (KeyError, TypeError, ValueError) as bad:
        raise ModelError(
            f"{where}: expected the record of a keyed transform, got one that lacks or garbles {bad}; update seawall, or {MAKE} and train again"
        ) from bad


def keyed_part(model: nn.Module) -> KeyedModel | None:
    """Return the keyed model that a module is or wraps; None where there is none."""
    return next((part for part in model.modules() if isinstance(part, KeyedModel)), None)
