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

from seawall.class_names import class_index
from seawall.errors import DataError, UsageError
from seawall.rng import Keys

if TYPE_CHECKING:
    from seawall.threat.model import ThreatModel

Unit = Literal["reflectance", "sigma0_db", "gamma0_db", "stretched"]
"""Physical unit of an image. `stretched` is an 8-bit picture of unknown stretch: not physical."""

Setting = None | bool | int | float | str | Sequence["Setting"] | Mapping[str, "Setting"]
"""What a recipe can say: plain TOML values."""

DECIBEL_UNITS: tuple[Unit, ...] = ("sigma0_db", "gamma0_db")
"""Units of backscatter in decibels: averages are taken in linear power."""

FILL: Mapping[str, float] = {"reflectance": 0.0, "sigma0_db": -30.0, "gamma0_db": -30.0, "stretched": 0.0}
"""What an unseen pixel holds, per unit: a finite, dark value, so that no NaN reaches a network."""


def seen_pixels(image: Tensor, unit: Unit) -> Tensor:
    """Return which pixels (B, H, W) of an image (B, C, H, W) are seen, for a model that gets nothing but the image.

    A pixel is unseen where all bands hold the fill. In 8-bit pictures the fill is black, which is a value too, so every
    pixel counts as seen.

    Example:
        >>> seen_pixels(torch.tensor([[[[0.0, 0.0]], [[0.0, 0.2]]]]), "reflectance")
        tensor([[[False,  True]]])
    """
    if unit == "stretched":
        return torch.ones_like(image[:, 0], dtype=torch.bool)
    return (image != FILL[unit]).any(1)


@dataclass(frozen=True)
class ModelSpec:
    """What a model needs to be used rightly; it travels inside the weights file.

    Args:
        bands: Band ids in the order of the input channels, such as ("B03", "B08") or ("VV", "VH").
        classes: Class names in the order of the logits, such as ("land", "water").
        unit: Physical unit of the input.
        gsd_m: Ground sampling distance of the training pixels, in meters.
        architecture: Registered name of the model, to build it again.
        settings: Settings of the architecture.
        note: Free text for people: training data, intended use.
    """

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    unit: Unit
    gsd_m: float
    architecture: str = "module"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    note: str = ""

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
        image: (B, C, H, W) float32 in data units. Unseen pixels hold `FILL[unit]`.
        label: (B, H, W) int64, meaningless where not valid.
        seen: (B, H, W) bool: the sensor has data there.
        valid: (B, H, W) bool: there is a label that counts; valid implies seen.
        chips: Stable ids: the seeds of all randomness and the record keys.
    """

    image: Tensor
    label: Tensor
    seen: Tensor
    valid: Tensor
    chips: tuple[str, ...]

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

    def select(self, indices: Sequence[int]) -> Batch:
        """Return the chosen images, in the order given."""
        at = torch.as_tensor(list(indices), dtype=torch.long, device=self.image.device)
        return Batch(
            self.image[at], self.label[at], self.seen[at], self.valid[at], tuple(self.chips[i] for i in indices)
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return replace(
            self,
            image=self.image.to(device),
            label=self.label.to(device),
            seen=self.seen.to(device),
            valid=self.valid.to(device),
        )

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
