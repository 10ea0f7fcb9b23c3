"""Adversarial training of an encoder on one label per patch, before the segmentation network is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.models.blocks import Segmenter, pad_to
from seawall.models.unet import UNetLayers
from seawall.models.weights import load_model, spec_of
from seawall.result import StageProgress
from seawall.training.checkpoint import History
from seawall.training.configuration import Training
from seawall.training.loop import Feed, fit
from seawall.types import Batch, ModelSpec, Objective

PRETRAINING = "pretraining"
"""Folder of it within that of a network's training."""


@dataclass(frozen=True)
class PatchLabels:
    """A feed whose label says of every pixel whether the patch has more than a share of a class.

    Args:
        feed: The patches with one label per pixel.
        klass: Index of the class.
        share: Share of the valid pixels above which a patch is of class 1; else it is of class 0.
    """

    feed: Feed
    klass: int = 1
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UsageError(f"pretraining.share: expected a share in [0, 1), got {self.share}; 0.1 is common")

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        for batch in self.feed(epoch):
            count = ((batch.label == self.klass) & batch.valid).flatten(1).sum(1)
            above = count > self.share * batch.valid.flatten(1).sum(1)
            yield replace(batch, label=above.long()[:, None, None].expand_as(batch.label))


class PatchClassifier(nn.Module):
    """The encoder of a U-Net with a linear layer on its mean features; every pixel has the logits of its patch.

    So the losses, attacks and objectives of segmentation train a classifier of patches. Modules are shared with the
    network, whose encoder is therefore trained in place.

    Args:
        network: A network whose layers are those of a U-Net.

    Raises:
        ModelError: It is another network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        layers = getattr(network, "network", None)
        if not (isinstance(network, Segmenter) and isinstance(layers, UNetLayers)):
            raise ModelError(
                f"pretraining: expected a U-Net, got {spec_of(network).architecture}; only its encoder can be trained alone"
            )
        spec = network.spec
        self.spec = ModelSpec(spec.bands, ("few", "many"), spec.unit, spec.gsd_m, "patch-classifier")
        self.stride, self.standardize, self.features = network.stride, network.standardize, network.features
        self.stem, self.down = layers.stem, layers.down
        self.head = nn.Linear(layers.down[-1][-1][0].out_channels, 2)  # type: ignore[index]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 2, H, W), equal over the pixels of an image."""
        x = self.standardize(image)
        if self.features is not None:
            x = torch.cat([x, self.features(image)], 1)
        x = self.stem(pad_to(x, self.stride))
        for down in self.down:
            x = down(nn.functional.max_pool2d(x, 2))
        logits = cast(Tensor, self.head(x.mean((2, 3))))
        return logits[..., None, None].expand(-1, -1, *image.shape[-2:])


def pretrain_encoder(
    network: nn.Module,
    objective: Objective,
    feed: PatchLabels,
    training: Training,
    folder: Path | str,
    *,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    progress: StageProgress | None = None,
) -> History:
    """Train the encoder of a network on the labels of patches; afterwards the network holds the trained encoder.

    With an adversarial objective this is what a robustly pre-trained backbone is to PIR-AT: the decoder then starts
    from random weights, and the whole network is trained adversarially.

    Args:
        network: A U-Net whose normalization is fitted.
        objective: What is minimized, such as "adversarial".
        feed: The patches with their labels.
        training: The settings.
        folder: Gets the checkpoints and the weights of the classifier.
        seed: Seed of the random numbers, and of the first weights of the linear layer.
        device: As of `fit`.
        resume: As of `fit`.
        progress: As of `fit`.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 4. Differs: patches of the same chips, labelled by their
    share of a class, take the place of ImageNet.

    Raises:
        ModelError: The network has no encoder of a U-Net.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = PatchClassifier(network)
    return fit_other_task(
        classifier, objective, feed, training, folder, device=device, seed=seed, resume=resume, progress=progress,
        context={"patches": f"class {feed.klass} above {feed.share:g}"},
    )  # fmt: skip


def fit_other_task(
    network: nn.Module,
    objective: Objective,
    feed: Feed,
    training: Training,
    folder: Path | str,
    *,
    seed: int,
    device: str,
    resume: bool,
    progress: StageProgress | None,
    context: Mapping[str, str],
) -> History:
    """Train a network without validation, by its loss if nothing else is monitored; afterwards it has the weights that are kept.

    All as of `fit`.
    """
    training = replace(training, monitor=training.monitor or "loss")
    history = fit(
        network, objective, feed, None, training, folder, device=device, seed=seed, resume=resume, progress=progress, context=context
    )  # fmt: skip
    load_model(history.weights, into=network)
    return history
