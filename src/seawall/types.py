"""The values that flow through the package, and the protocols of methods.

Images are always in data units (reflectance, dB), never normalized; `seen` and `valid` are the only
truth about pixels. Shapes: B images, C bands, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from seawall.bands import channels_of_sources
from seawall.class_names import class_index
from seawall.errors import DataError, UsageError
from seawall.rng import Keys

if TYPE_CHECKING:
    from seawall.threat.model import ThreatModel

Unit = Literal["reflectance", "sigma0_db", "gamma0_db", "stretched"]
"""Physical unit of an image. `stretched` is an 8-bit picture of unknown stretch: not physical."""

Units = Unit | tuple[Unit, ...]
"""Unit of the bands of an image: one where all have it, else one per band, of which two differ."""

Setting = None | bool | int | float | str | Sequence["Setting"] | Mapping[str, "Setting"]
"""What a recipe can say: plain TOML values."""

DECIBEL_UNITS: tuple[Unit, ...] = ("sigma0_db", "gamma0_db")
"""Units of backscatter in decibels: averages are taken in linear power."""

FILL: Mapping[str, float] = {"reflectance": 0.0, "sigma0_db": -30.0, "gamma0_db": -30.0, "stretched": 0.0}
"""What an unseen pixel holds, per unit: a finite, dark value, so that no NaN reaches a network."""


def units_of(unit: Units, bands: int) -> tuple[Unit, ...]:
    """Return the unit of each of so many bands.

    Example:
        >>> units_of("reflectance", 2), units_of(("sigma0_db", "reflectance"), 2)
        (('reflectance', 'reflectance'), ('sigma0_db', 'reflectance'))
    """
    return unit if isinstance(unit, tuple) else (unit,) * bands


def joint_unit(units: Sequence[Unit]) -> Units:
    """Return the units of bands in their only form: one unit where all are equal, else the tuple.

    Example:
        >>> joint_unit(("stretched", "stretched")), joint_unit(("sigma0_db", "reflectance"))
        ('stretched', ('sigma0_db', 'reflectance'))
    """
    return units[0] if len(set(units)) == 1 else tuple(units)


def unit_of_channels(unit: Units, channels: Sequence[int]) -> Units:
    """Return the unit of some of the bands.

    Example:
        >>> unit_of_channels(("sigma0_db", "sigma0_db", "reflectance"), (0, 1)), unit_of_channels("reflectance", (1,))
        ('sigma0_db', 'reflectance')
    """
    return joint_unit([unit[channel] for channel in channels]) if isinstance(unit, tuple) else unit


def unit_text(unit: Units) -> str:
    """Return units for a message: each once.

    Example:
        >>> unit_text(("sigma0_db", "sigma0_db", "reflectance"))
        'sigma0_db + reflectance'
    """
    return " + ".join(dict.fromkeys(unit)) if isinstance(unit, tuple) else unit


def single_unit(unit: Units, where: str) -> Unit:
    """Return the unit that all bands share.

    Raises:
        UsageError: They have several.
    """
    if isinstance(unit, tuple):
        raise UsageError(
            f"{where}: expected bands of one unit, got {unit_text(unit)}; choose the bands of one source (inputs)"
        )
    return unit


def fill_of(unit: Units, bands: int) -> tuple[float, ...]:
    """Return what an unseen pixel holds in each of so many bands."""
    return tuple(FILL[one] for one in units_of(unit, bands))


def per_channel(values: Sequence[float], image: Tensor) -> Tensor:
    """Return one value per band as (1, C, 1, 1), of the type and on the device of an image."""
    return torch.tensor(values, dtype=image.dtype, device=image.device).view(1, -1, 1, 1)


def seen_pixels(image: Tensor, unit: Units) -> Tensor:
    """Return which pixels (B, H, W) of an image (B, C, H, W) are seen, for a model that gets nothing but the image.

    A pixel is unseen where all bands hold their fill. In 8-bit pictures the fill is black, which is a value too, so every
    pixel counts as seen where a band is one.

    Example:
        >>> seen_pixels(torch.tensor([[[[0.0, 0.0]], [[0.0, 0.2]]]]), "reflectance")
        tensor([[[False,  True]]])
    """
    if "stretched" in units_of(unit, 1):
        return torch.ones_like(image[:, 0], dtype=torch.bool)
    return (image != per_channel(fill_of(unit, image.shape[1]), image)).any(1)


@dataclass(frozen=True)
class ModelSpec:
    """What a model needs to be used rightly; it travels inside the weights file.

    Args:
        bands: Band ids in the order of the input channels, such as ("B03", "B08") or ("s1.VV", "s2.B03").
        classes: Class names in the order of the logits, such as ("land", "water").
        unit: Physical unit of the input, or one per band where they differ.
        gsd_m: Ground sampling distance of the training pixels, in meters.
        architecture: Registered name of the model, to build it again.
        settings: Settings of the architecture.
        note: Free text for people: training data, intended use.
    """

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    unit: Units
    gsd_m: float
    architecture: str = "module"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    note: str = ""

    def of_channels(self, channels: Sequence[int]) -> ModelSpec:
        """Return the specification with these of the bands."""
        bands = tuple(self.bands[channel] for channel in channels)
        return replace(self, bands=bands, unit=unit_of_channels(self.unit, channels))

    def klass(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            UsageError: The model has no class of that name.
        """
        return class_index(name, self.classes)

    def mapped_class(self, asked: str = "") -> str:
        """Return the class that maps and areas are of: the one asked for, else water, else the second of two.

        Raises:
            UsageError: The model has no class of that name, or none was asked for and there are several to choose from.
        """
        if asked:
            return self.classes[self.klass(asked)]
        if "water" in self.classes:
            return "water"
        if len(self.classes) == 2:
            return self.classes[1]
        raise UsageError(
            f"class: expected one of {', '.join(self.classes)}, got none; say which one to map, as --klass {self.classes[-1]}"
        )


@dataclass(frozen=True)
class Batch:
    """Images with their labels and the truth about their pixels.

    Args:
        image: (B, C, H, W) float32 in data units. An unseen pixel holds the fill of its band's unit (`FILL`).
        label: (B, H, W) int64, meaningless where not valid.
        seen: (B, H, W) bool: a sensor has data there; with several sources, at least one of them.
        valid: (B, H, W) bool: there is a label that counts; valid implies seen.
        chips: Stable ids: the seeds of all randomness and the record keys.
        seen_bands: (B, C, H, W) bool: where each band has data, for chips of several sources; None where all bands are
            seen together. What `seen` excludes is unseen whatever this says.
        bands: Names of the bands, where the chips may have more than a model takes; else empty.
    """

    image: Tensor
    label: Tensor
    seen: Tensor
    valid: Tensor
    chips: tuple[str, ...]
    seen_bands: Tensor | None = None
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image.ndim != 4:
            raise DataError(
                f"batch: expected an image of shape (B, C, H, W), got {tuple(self.image.shape)}; add the missing axis"
            )
        ground = (self.image.shape[0], *self.image.shape[2:])
        for name in ("label", "seen", "valid"):
            got = tuple(getattr(self, name).shape)
            if got != ground:
                raise DataError(f"batch: expected {name} of shape {ground}, got {got}; align it with the image")
        if self.seen_bands is not None and self.seen_bands.shape != self.image.shape:
            raise DataError(
                f"batch: expected seen_bands of shape {tuple(self.image.shape)}, got {tuple(self.seen_bands.shape)}; align it "
                "with the image"
            )
        if len(self.chips) != ground[0]:
            raise DataError(f"batch: expected {ground[0]} chip ids, got {len(self.chips)}; name every image")
        if len(set(self.chips)) < len(self.chips):
            twice = sorted({chip for chip in self.chips if self.chips.count(chip) > 1})
            raise DataError(
                f"batch: expected an id of its own for each chip, got {', '.join(twice[:3])} more than once; name them "
                "apart, for seeds and rows are looked up by id"
            )

    def __len__(self) -> int:
        return len(self.chips)

    @property
    def image_seen(self) -> Tensor:
        """Where the image has data: (B, C, H, W) bool, or (B, 1, H, W) where all bands are seen together."""
        together = self.seen[:, None]
        return together if self.seen_bands is None else self.seen_bands & together

    def bandwise(self) -> Batch:
        """Return the batch with `seen_bands`, which says of each band where it is seen."""
        return replace(self, seen_bands=self.image_seen.expand_as(self.image))

    @property
    def planes(self) -> dict[str, Tensor]:
        """The tensors by the name of their field, each with the images first."""
        held = {name: getattr(self, name) for name in ("image", "label", "seen", "valid", "seen_bands")}
        return {name: plane for name, plane in held.items() if plane is not None}

    def with_planes(self, planes: Mapping[str, Tensor], chips: Sequence[str] | None = None) -> Batch:
        """Return the batch with other tensors, and other chips if they are given."""
        return replace(self, **planes, chips=self.chips if chips is None else tuple(chips), bands=self.bands)

    def select(self, indices: Sequence[int]) -> Batch:
        """Return the chosen images, in the order given."""
        at = torch.as_tensor(list(indices), dtype=torch.long, device=self.image.device)
        planes = {name: plane[at] for name, plane in self.planes.items()}
        return self.with_planes(planes, [self.chips[i] for i in indices])

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return self.with_planes({name: plane.to(device) for name, plane in self.planes.items()})

    def copy(self) -> Batch:
        """Return a batch that shares no memory with this one."""
        return self.with_planes({name: plane.clone() for name, plane in self.planes.items()})

    def with_bands(self, bands: Sequence[str]) -> Batch:
        """Return the batch with these bands in this order, as a model of them gets it; seen is where any of them has data.

        Raises:
            DataError: The batch has other bands, or does not know which it has.
        """
        if tuple(bands) == self.bands:
            return self
        if missing := [band for band in bands if band not in self.bands]:
            raise DataError(
                f"batch: expected the bands {', '.join(bands)}, got {', '.join(self.bands) or 'none that are named'} without "
                f"{missing[0]}; take batches with all bands of the chips"
            )
        at = [self.bands.index(band) for band in bands]
        known = None if self.seen_bands is None else self.image_seen[:, at]
        seen = self.seen if known is None else known.any(1)
        together = known is None or len(channels_of_sources(bands)) == 1
        apart = None if together else known
        return Batch(self.image[:, at], self.label, seen, self.valid & seen, self.chips, apart, tuple(bands))

    @staticmethod
    def of(
        image: Tensor,
        label: Tensor,
        *,
        seen: Tensor | None = None,
        valid: Tensor | None = None,
        chips: Sequence[str] = (),
    ) -> Batch:
        """Make a batch from plain tensors: everything is seen and valid unless told otherwise."""
        everywhere = torch.ones_like(label, dtype=torch.bool)
        seen = everywhere if seen is None else seen
        valid = seen if valid is None else valid & seen
        names = tuple(chips) or tuple(f"chip{i}" for i in range(len(label)))
        return Batch(image, label, seen, valid, names)

    @staticmethod
    def concatenated(parts: Sequence[Batch]) -> Batch:
        """Return several batches of the same bands as one."""
        if any(part.seen_bands is not None for part in parts):
            parts = [part.bandwise() for part in parts]
        planes = {name: torch.cat([part.planes[name] for part in parts]) for name in parts[0].planes}
        return parts[0].with_planes(planes, [chip for part in parts for chip in part.chips])


@runtime_checkable
class SegmentationModel(Protocol):
    """Any nn.Module with a spec: data units in, logits (B, K, H, W) out."""

    spec: ModelSpec

    def __call__(self, image: Tensor, /) -> Tensor: ...


@runtime_checkable
class Attack(Protocol):
    """Adversarial images (B, C, H, W) of a batch, inside the threat set."""

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor: ...


@runtime_checkable
class LabelNoise(Protocol):
    """A fault in the labels of a batch; the image and the unseen pixels stay as they are."""

    def __call__(self, batch: Batch, keys: Keys) -> Batch: ...


Stage = Literal["scene", "light", "atmosphere", "optics", "detector", "product", "geometry"]
"""Where a corruption acts on the way from the ground to the chip, in physical order."""


@runtime_checkable
class Corruption(Protocol):
    """A natural perturbation of a batch; severity from 0 (the very input) to 1 (the worst that is still delivered).

    `level` is the physical quantity at a severity, which `quantity` names and which is given in `unit`.
    """

    quantity: ClassVar[str]
    unit: ClassVar[str]
    stage: ClassVar[Stage]

    def level(self, severity: float) -> float: ...
    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch: ...


@runtime_checkable
class Poison(Protocol):
    """A fault in training chips, put in on purpose: every chip of the batch is poisoned, each from its own key."""

    def __call__(self, batch: Batch, keys: Keys) -> Batch: ...


@runtime_checkable
class Supervision(Protocol):
    """Which part of the training labels is known: the batch with `valid` where it is, and label there what is known.

    Whole chips go in, with all labels that there are. Image and seen stay, and no pixel becomes valid.
    """

    def __call__(self, batch: Batch, keys: Keys) -> Batch: ...


@dataclass(frozen=True)
class LabelledChip:
    """A training chip, as a choice among all of them sees it.

    Args:
        id: Its id.
        group: Its event or place.
        class_counts: Valid pixels of each class.
    """

    id: str
    group: str
    class_counts: tuple[int, ...]


@runtime_checkable
class ChipSelection(Supervision, Protocol):
    """Supervision of some chips only: which ones can only be said with all training chips in view."""

    def chosen_from(self, chips: Sequence[LabelledChip], keys: Keys) -> Supervision:
        """Return the supervision that knows its chips.

        Args:
            chips: All training chips, with the labels that there are before this supervision.
            keys: One stream per chip, in the same order.

        Raises:
            UsageError: More chips are asked for than there are.
        """
        ...


@runtime_checkable
class Loss(Protocol):
    """A training loss over valid pixels: logits (B, K, H, W), label and valid (B, H, W) to a scalar."""

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor: ...


@runtime_checkable
class Objective(Protocol):
    """What training minimizes: a scalar with gradients to the model's parameters."""

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor: ...


def wants_all_bands(objective: Objective) -> bool:
    """Return whether an objective gets batches with all bands of the chips, of which its model may take some.

    It says so by an attribute `all_bands`, and gives each model `batch.with_bands(model.spec.bands)`.
    """
    return bool(getattr(objective, "all_bands", False))


@runtime_checkable
class ScheduledObjective(Objective, Protocol):
    """An objective with a schedule: a pure function of the progress, so that a resumed training goes on alike."""

    def at(self, progress: float) -> Objective:
        """Return the objective at a share of the training, from 0 at the first step to just below 1 at the last."""
        ...


ObjectiveState = Mapping[str, Setting]
"""What an adaptive objective has found out so far: plain values, which a checkpoint keeps exactly."""


@runtime_checkable
class AdaptiveObjective(Objective, Protocol):
    """An objective that measures the network while it is trained, on a clock of its own.

    Its state is kept in the checkpoint, so that a resumed training goes on alike.
    """

    def revise(
        self, model: nn.Module, draw: Callable[[], Iterable[Batch]], progress: float, seed: int, state: ObjectiveState
    ) -> ObjectiveState:
        """Return the state from this step on: `state` itself where nothing is due.

        Args:
            model: The network as it is; its weights and modes are left alone.
            draw: Batches of training chips, the same for the same step.
            progress: Share of the training that is done.
            seed: Seed of the experiment.
            state: The state so far; empty at the first step.
        """
        ...

    def given(self, state: ObjectiveState) -> Objective:
        """Return the objective under a state."""
        ...


@runtime_checkable
class TaughtObjective(Objective, Protocol):
    """An objective in which a teacher predicts pixels without a known label: the moving average of the network's weights.

    The average is part of the checkpoint (`training.ema`), so that a resumed training goes on alike.
    """

    needs_average: ClassVar[bool]
    """Whether a training without an average is refused; else the network is its own teacher there."""

    def taught_by(self, teacher: SegmentationModel) -> Objective:
        """Return the objective with a teacher, in eval mode and without gradients; it is not written to."""
        ...


@runtime_checkable
class Architecture(Protocol):
    """From a specification to a module with that `spec`: data units in, logits out."""

    def __call__(self, spec: ModelSpec) -> nn.Module: ...


@runtime_checkable
class FittedModel(Protocol):
    """A segmentation model that is fitted in one look at training chips instead of being trained by gradients.

    What the fit finds, such as a threshold or the centers of clusters, are buffers of the module, so that it is saved, loaded
    and moved as weights are. A model that needs no fit has `fitted` set from the start.
    """

    spec: ModelSpec
    fitted: Tensor

    def fit(self, batches: Iterable[Batch], seed: int = 0) -> None:
        """Fit the model; the order and the size of the batches mean nothing.

        Args:
            batches: Whole training chips, read once.
            seed: Seed of the experiment.
        """
        ...


@runtime_checkable
class Wrapper(Protocol):
    """From a model to a model: an estimator of uncertainty, or a defense at inference."""

    def __call__(self, model: SegmentationModel) -> nn.Module: ...
