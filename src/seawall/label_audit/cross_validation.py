"""Out-of-sample predictions: one model per fold of groups, trained on the other folds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from seawall import registry
from seawall.data.chip_format import IGNORE
from seawall.data.chips import Chip, ChipFolder, digest_chips
from seawall.data.loader import LabelPlanes, patches, whole_chips
from seawall.data.raw_chips import sha256_text
from seawall.data.splits import kfold_groups
from seawall.inference.predict import model_digest
from seawall.io import open_atomic
from seawall.label_audit.confident_learning import OutOfSample
from seawall.label_audit.training_dynamics import ChipDynamics, TrainingDynamics
from seawall.models.blocks import Standardize
from seawall.models.weights import load_model
from seawall.result import Progress
from seawall.rng import Keys
from seawall.training.loop import Training, fit
from seawall.training.objectives.supervised import Supervised
from seawall.types import Batch, ModelSpec, Setting

FOLD_MODEL_SETTINGS: Mapping[str, dict[str, Setting]] = {"unet": {"width": 12, "depth": 3}}
"""Settings of the folds' models: small ones memorize wrong labels last."""


@dataclass(frozen=True)
class FoldTraining:
    """How the models of the folds are trained.

    Args:
        model: Registered network.
        folds: Number of folds.
        epochs: Passes over the chips.
        seed: Seed of folds, weights and patches.
        device: auto, cpu, cuda or mps.
    """

    model: str
    folds: int
    epochs: int
    seed: int
    device: str

    def training(self, chips: ChipFolder, ids: Sequence[str]) -> Training:
        """Return the settings: an epoch has about as many pixels as the chips have."""
        side = max(32, min(128, *(min(chips.row(id_).height, chips.row(id_).width) for id_ in ids)) // 16 * 16)
        pixels = sum(chips.row(id_).height * chips.row(id_).width for id_ in ids)
        steps = max(4, min(200, math.ceil(pixels / (8 * side * side))))
        return Training(
            epochs=self.epochs, steps_per_epoch=steps, batch=8, patch=side, lr=2e-3, monitor="watched", tensorboard=False,
        )  # fmt: skip


def cross_validate(
    folder: ChipFolder,
    out: Path,
    settings: FoldTraining,
    progress: Progress,
    planes: Mapping[str, NDArray[np.uint8]] | None = None,
) -> tuple[dict[str, Path], dict[str, ChipDynamics]]:
    """Train one model per fold, and predict each chip with the model that was not trained on its group.

    Args:
        folder: The chips.
        out: Gets the folds' weights and the predictions; those that are there already are kept.
        settings: How the folds are trained.
        progress: Called as the work goes on.
        planes: Label plane (H, W) of each chip instead of the stored one, 255 where it does not count.

    Returns:
        The file with the probabilities of each chip, and how each chip was learned by the models trained on it.
    """
    predictions: dict[str, Path] = {}
    dynamics: dict[str, list[ChipDynamics]] = {}
    splits = kfold_groups(folder, settings.folds, settings.seed)
    for number, split in enumerate(splits):
        content = [digest_chips(folder, split.train), repr(settings), repr(folder.header)]
        if planes is not None:
            content += [hashlib.sha256(planes[id_].tobytes()).hexdigest() for id_ in split.train]
        home = out / "folds" / f"{number + 1}-of-{len(splits)}-{sha256_text(*content)[:12]}"

        def step(done: int, total: int, note: str, number: int = number) -> None:
            progress("train folds", number * total + done, len(splits) * total, note)

        net, found = _train_fold(folder, split.train, home, settings, step, planes)
        for chip, one in found.learned().items():
            dynamics.setdefault(chip, []).append(one)
        predictions |= write_predictions(net, folder, split.test, out, settings.device)
    return predictions, {chip: _mean_dynamics(several) for chip, several in dynamics.items()}


def write_predictions(
    net: nn.Module, folder: ChipFolder, ids: Sequence[str], out: Path, device: str
) -> dict[str, Path]:
    """Write the probabilities (K, H, W) of each chip; files of the same weights and image are kept.

    Returns:
        The file of each chip.
    """
    digest = model_digest(net)
    where = {id_: out / "predictions" / f"{sha256_text(digest, folder.row(id_).sha256)[:24]}.npy" for id_ in ids}
    missing = [id_ for id_, path in where.items() if not path.exists()]
    home = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    net.to(home).eval()
    with torch.no_grad():
        for batch in whole_chips(folder, missing, 4):
            probs = net(batch.image.to(home)).softmax(1).cpu().numpy().astype(np.float16)
            for id_, plane in zip(batch.chips, probs, strict=True):
                with open_atomic(where[id_]) as file:
                    np.save(file, plane)
    return where


def _train_fold(
    folder: ChipFolder,
    ids: Sequence[str],
    home: Path,
    settings: FoldTraining,
    step: Callable[[int, int, str], None],
    planes: Mapping[str, NDArray[np.uint8]] | None = None,
) -> tuple[nn.Module, TrainingDynamics]:
    spec = ModelSpec(folder.bands, folder.classes, folder.unit, folder.gsd_m, note="label audit")
    training = settings.training(folder, ids)
    make = cast(
        Callable[[ModelSpec], nn.Module],
        registry.build("model", settings.model, FOLD_MODEL_SETTINGS.get(settings.model, {})),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(settings.seed, (settings.model,)).number(0))
        net = make(spec)
    mean, std = folder.mean_std(ids)
    cast(Standardize, net.standardize).fit(mean.tolist(), std.clip(1e-6).tolist())
    labels: LabelPlanes | None = None if planes is None else planes.__getitem__

    def feed(epoch: int) -> Iterator[Batch]:
        return patches(
            folder, ids, patch=training.patch, batch=training.batch, count=training.patches_per_epoch, epoch=epoch,
            seed=settings.seed, augment="d4", labels=labels,
        )  # fmt: skip

    def with_plane(chip: Chip) -> Chip:
        if planes is None:
            return chip
        return replace(chip, label=np.where(chip.valid, planes[chip.id], 0).astype(np.int64))

    dynamics = TrainingDynamics(lambda: whole_chips(folder, ids, edit=with_plane), home / "dynamics.jsonl")
    # "watched" counts up, so that the last weights are kept: wrong labels must not choose the best ones
    fit(
        net, Supervised(), feed, dynamics.check, training, home, device=settings.device, seed=settings.seed, progress=step,
    )  # fmt: skip
    return load_model(home / "model.safetensors"), dynamics


def read_predictions(
    folder: ChipFolder, predictions: Mapping[str, Path], labels: Mapping[str, NDArray[np.int64]] | None = None
) -> Iterator[OutOfSample]:
    """Yield the prediction of each chip beside its label, or beside the one given instead; one chip at a time."""
    for id_ in folder.ids:
        chip = folder.read(id_)
        probs = np.load(predictions[id_]).astype(np.float32)
        yield OutOfSample(id_, probs, chip.label if labels is None else labels[id_], chip.valid)


def label_planes(folder: ChipFolder, labels: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.uint8]]:
    """Return labels (H, W) as planes for training and files: 255 where the chip's label does not count."""
    return {id_: np.where(folder.read(id_).valid, label, IGNORE).astype(np.uint8) for id_, label in labels.items()}


def _mean_dynamics(several: Sequence[ChipDynamics]) -> ChipDynamics:
    count = len(several)
    return ChipDynamics(
        sum(one.loss for one in several) / count,
        sum(one.aum for one in several) / count,
        sum(one.epochs for one in several),
    )
