"""Ensembles: the mean over networks that were trained apart, or over snapshots of one training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from seawall.errors import ModelError
from seawall.models.weights import load_model, spec_of
from seawall.modules import to_device_of
from seawall.records import MEMBER_MARK
from seawall.registry import preset, register
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor

SNAPSHOTS = "snapshot-*.safetensors"
"""Snapshots of a training, beside its weights."""


@register("uncertainty", "ensemble", paper="arXiv:1612.01474")
@dataclass(frozen=True)
class Ensemble:
    """The mean over networks of one task, trained with other random numbers.

    Args:
        members: Weights files of the networks besides the one it is called with, or without them for snapshots. Without any
            file, commands take those beside the weights: trained with `training.members` or `training.settings.snapshots`.
        of: "members", which join the network, or "snapshots" of its training, the last of which is the network as it is.

    Paper: Lakshminarayanan et al. 2017, arXiv:1612.01474. Differs: no adversarial training.
    """

    members: tuple[str, ...] = ()
    of: Literal["members", "snapshots"] = "members"

    def beside(self, weights: Path) -> Ensemble:
        """Return the ensemble with the files that lie beside some weights, if it names none.

        Raises:
            ModelError: There are none.
        """
        if self.members:
            return self
        home = weights.absolute().parent
        name, key = f"{home.name}{MEMBER_MARK}1/{weights.name}", "training.members=2"
        found = sorted(home.parent.glob(f"{home.name}{MEMBER_MARK}*/{weights.name}"))
        if self.of == "snapshots":
            found, name, key = sorted(home.glob(SNAPSHOTS)), SNAPSHOTS, "training.settings.snapshots=5"
        if not found:
            raise ModelError(
                f"ensemble: expected {self.of} beside {weights}, such as {name}, got none; train them with --set {key}, or name "
                'weights: --uncertainty "ensemble members=a.safetensors,b.safetensors"'
            )
        return replace(self, members=tuple(map(str, found)))

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor of all networks together.

        Raises:
            ModelError: There is no member, bands, classes or units of the networks differ, or a file cannot be read.
        """
        if not self.members:
            raise ModelError(
                "ensemble: expected members, got none; name their weights: Ensemble(members=(...)), or call mean_of_networks"
            )
        return mean_of_networks(model, [to_device_of(model, load_model(path)) for path in self.members])


preset(
    "uncertainty", "snapshot-ensemble", Ensemble(of="snapshots"),
    summary="The mean over the weights at the ends of the cosine cycles of one training.", paper="arXiv:1704.00109",
    differs="the weights that are kept join the snapshots",
)  # fmt: skip


@dataclass(frozen=True)
class Members:
    """The passes of an ensemble, one per network.

    Args:
        others: The networks besides the one that it is called with.
    """

    others: tuple[SegmentationModel, ...]

    @property
    def count(self) -> int:
        """Number of networks."""
        return 1 + len(self.others)

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each network."""
        for member in (model, *self.others):
            yield member(image)


def mean_of_networks(model: SegmentationModel, others: Sequence[nn.Module]) -> Predictor:
    """Return the predictor of several networks.

    Raises:
        ModelError: Bands, classes or units of the networks differ.
    """
    wanted = model.spec
    for got in map(spec_of, others):
        if (wanted.bands, wanted.classes, wanted.unit) != (got.bands, got.classes, got.unit):
            raise ModelError(
                f"ensemble: expected {wanted.bands} {wanted.unit} to {wanted.classes}, got {got.bands} {got.unit} "
                f"to {got.classes}; use models of one task"
            )
    return Predictor(model, Members(tuple(others)), others)  # type: ignore[arg-type]
