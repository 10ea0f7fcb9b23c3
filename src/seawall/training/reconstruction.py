"""Pre-training without labels: a network reconstructs hidden blocks and bands of images, before it is trained to segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from seawall import registry
from seawall.errors import ModelError
from seawall.losses.segmentation import masked_mean
from seawall.models.blocks import Standardize
from seawall.models.weights import spec_of
from seawall.result import StageProgress
from seawall.rng import Keys
from seawall.training.checkpoint import History
from seawall.training.configuration import Masking, Training
from seawall.training.loop import Feed
from seawall.training.pretrain import fit_other_task
from seawall.types import Batch, SegmentationModel

UNUSED_OUTPUT = "unused"
"""A further output of the reconstructing network, so that its last layer never has the shape of the segmenting one's."""


@dataclass(frozen=True)
class MaskedReconstruction:
    """The mean squared error of hidden pixels, in standard deviations of their bands; labels are not read.

    Blocks are hidden in all bands, as many of each image as `share` says, and further bands as a whole. What is hidden has the mean of
    its band. One band at least keeps the pixels between the blocks. Unseen pixels neither count nor are hidden.

    Args:
        masking: What is hidden.

    Paper: Cong et al. 2022, arXiv:2207.08051 (SatMAE), blocks of 8 pixels; after He et al. 2021, arXiv:2111.06377. Differs: a
    convolutional network gets the mean where tokens are left out, 0.6 instead of 0.75 of the blocks are hidden, and bands are hidden one by one.
    """

    masking: Masking = field(default_factory=Masking)

    def hidden(self, batch: Batch, keys: Keys) -> Tensor:
        """Return the values (B, C, H, W) that are hidden."""
        height, width = batch.seen.shape[1:]
        rows, cols = (-(-side // self.masking.block) for side in (height, width))
        draws = keys.fold("blocks").uniform((rows * cols,))
        ranks = draws.argsort(dim=1, stable=True).argsort(dim=1)
        blocks = (ranks < round(self.masking.share * rows * cols)).view(-1, rows, cols)
        pixels = blocks.repeat_interleave(self.masking.block, 1).repeat_interleave(self.masking.block, 2)[
            :, :height, :width
        ]
        chance = keys.fold("bands").uniform((batch.image.shape[1],))
        whole = (chance < self.masking.bands) & (chance < chance.amax(1, keepdim=True))
        hidden = pixels[:, None] | whole[..., None, None]
        seen: Tensor = batch.seen[:, None]
        return hidden.to(seen.device) & seen

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        standardize = cast(Standardize, cast(nn.Module, model).standardize)
        hidden = self.hidden(batch, keys.fold("reconstruction"))
        shown = torch.where(hidden, standardize.mean[:, None, None], batch.image)
        found = model(shown)[:, : batch.image.shape[1]]
        return masked_mean((found.float() - standardize(batch.image)).square(), hidden)


def pretrain_network(
    network: nn.Module,
    masking: Masking,
    feed: Feed,
    training: Training,
    folder: Path | str,
    *,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    progress: StageProgress | None = None,
    context: Mapping[str, str] | None = None,
) -> History:
    """Train a network to reconstruct hidden pixels; afterwards all but its last layer has the weights of that.

    Any registered network of gradients can be trained so, encoder and decoder: the same architecture is built with an output per
    band, and the tensors whose shape does not go by the outputs are shared.

    Args:
        network: Its normalization is fitted.
        masking: What is hidden.
        feed: Patches of training chips, with labels or without.
        training: The settings.
        folder: Gets the checkpoints and the weights of the reconstructing network.
        seed: Seed of the random numbers, and of the first weights of the last layer.
        device: As of `fit`.
        resume: As of `fit`.
        progress: As of `fit`.
        context: As of `fit`.

    Raises:
        ModelError: The network is not registered, or shares no weight with one of other outputs.
    """
    twin = reconstructing_network(network, seed)
    share_weights(network, twin)
    history = fit_other_task(
        twin, MaskedReconstruction(masking), feed, training, folder, device=device, seed=seed, resume=resume, progress=progress,
        context={"task": "reconstruction", **(context or {})},
    )  # fmt: skip
    share_weights(twin, network)
    return history


def reconstructing_network(network: nn.Module, seed: int) -> nn.Module:
    """Return a network of the same architecture with an output per band, and one or two that are not used."""
    spec = spec_of(network)
    outputs = (*spec.bands, UNUSED_OUTPUT)
    outputs = (*outputs, f"{UNUSED_OUTPUT} too") if len(outputs) == len(spec.classes) else outputs
    make = registry.build("model", spec.architecture, spec.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(replace(spec, classes=outputs))


def share_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the tensors of one network that fit another one of the same architecture; those of the last layer do not.

    Raises:
        ModelError: No parameter fits.
    """
    own, other = dict(source.state_dict()), target.state_dict()
    fitting = {name: own[name] for name in own.keys() & other.keys() if own[name].shape == other[name].shape}
    if not any(name in fitting for name, _ in target.named_parameters()):
        raise ModelError(
            f"pretraining: expected a network with weights before its last layer, got {spec_of(target).architecture}; leave pretraining out"
        )
    target.load_state_dict(fitting, strict=False)
