"""Trains a network in rounds: labels from the predictions of the round before, kept in the folder, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from seawall.class_names import class_index, main_class
from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.label_planes import plane_class_counts
from seawall.data.loader import StoredLabels, whole_chips
from seawall.data.unlabelled import TrainingLabels
from seawall.errors import DataError, UsageError
from seawall.io import open_atomic, write_atomic
from seawall.modules import device_of
from seawall.recipe.sections import MethodSection
from seawall.supervision.build import KnownLabels
from seawall.supervision.image_labels import ImageLabels
from seawall.training.checkpoint import History
from seawall.training.round_settings import PaulGanju, RelabelLoop
from seawall.training.rounds import (
    AcceptedTile,
    LabelPlane,
    accepted_tiles,
    changed_share,
    class_share,
    relabel_within,
    share_of_class,
    thin_tiles,
)
from seawall.types import SegmentationModel
from seawall.uncertainty.tta import TTA

ROUNDS_FOLDER, ROUNDS_FILE = "rounds", "rounds.json"
"""Folder of the rounds within that of a network, and the file with their figures."""

Probabilities = Iterator[tuple[str, np.ndarray, np.ndarray]]
"""Id of a chip, probabilities (K, H, W), and seen pixels (H, W)."""

RoundFigures = dict[str, float | int | str | None]


@dataclass(frozen=True)
class RoundTraining:
    """One training of a round.

    Args:
        name: What it is called while it runs.
        folder: Folder of its checkpoints and weights.
        labels: What it is trained on.
        model: Its model; None for the recipe's.
        start: Weights that it starts from; None for random ones.
        settings: Training settings that differ from the recipe's.
    """

    name: str
    folder: Path
    labels: TrainingLabels
    model: MethodSection | None = None
    start: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundsContext:
    """What the rounds of one network share.

    Args:
        chips: The chips.
        labels: Its labels before the first round.
        known: How they came about; None where all labels are known.
        train: Trains a network; a training that is complete is loaded.
        folder: Folder of the network.
        seed: Seed of the experiment.
        better: Whether a higher or a lower monitored figure is better.
    """

    chips: ChipFolder
    labels: TrainingLabels
    known: KnownLabels | None
    train: Callable[[RoundTraining], tuple[nn.Module, History]]
    folder: Path
    seed: int
    better: str = "higher"

    @property
    def klass(self) -> int:
        """The class that figures are of."""
        return class_index(main_class(self.chips.classes), self.chips.classes)

    def home(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.folder / ROUNDS_FOLDER / str(number)

    def planes(self, labels: TrainingLabels, ids: Sequence[str]) -> list[LabelPlane]:
        """Return the label planes of some chips."""
        read = StoredLabels(self.chips) if labels.planes is None else labels.planes
        return [read(id_) for id_ in ids]

    def share(self, labels: TrainingLabels) -> float:
        """Return the share of the class among the known labels."""
        return class_share(self.planes(labels, labels.labelled), self.klass, len(self.chips.classes))


class SavedLabels:
    """Label planes of a round, one file per chip, and those before the round for every other chip.

    Args:
        folder: Holds <id>.npy.
        ids: Chips with a plane of the round.
        before: Labels before the round.
        chips: The chips.
    """

    def __init__(self, folder: Path, ids: Sequence[str], before: TrainingLabels, chips: ChipFolder) -> None:
        self.folder, self.ids, self.classes = folder, frozenset(ids), len(chips.classes)
        self.before = StoredLabels(chips) if before.planes is None else before.planes

    def __call__(self, id_: str) -> LabelPlane:
        """Return the plane (H, W) of a chip."""
        if id_ not in self.ids:
            return self.before(id_)
        plane: LabelPlane = np.load(self.folder / f"{id_}.npy", mmap_mode="r")
        return plane

    def class_counts(self, id_: str) -> np.ndarray:
        """Return the labelled pixels of each class in a chip."""
        return plane_class_counts(np.asarray(self(id_)), self.classes)


def run_rounds(method: PaulGanju | RelabelLoop, work: RoundsContext) -> None:
    """Train a network in rounds; the weights of the best round by its monitored figure are those of the network.

    Raises:
        UsageError: The method does not fit the labels.
        DataError: There is no chip without labels to give pseudo-labels to.
    """
    made: list[tuple[RoundFigures, History]] = []
    for figures, history in _paul_ganju(method, work) if isinstance(method, PaulGanju) else _relabel(method, work):
        made.append((figures, history))
        best = _best_round([one for _, one in made], work.better)
        rows = [{**own, "kept": number == best} for number, (own, _) in enumerate(made)]
        write_atomic(work.folder / ROUNDS_FILE, json.dumps(rows, indent=1))
        write_atomic(work.folder / "history.jsonl", "".join(_history_lines([one for _, one in made])))
        write_atomic(work.folder / "model.safetensors", made[best][1].weights.read_bytes())


def clear_rounds(folder: Path) -> None:
    """Remove the rounds of an earlier training."""
    shutil.rmtree(folder / ROUNDS_FOLDER, ignore_errors=True)
    (folder / ROUNDS_FILE).unlink(missing_ok=True)


def round_figures(folder: Path) -> list[RoundFigures]:
    """Return the figures of the rounds of a network; none where it was not trained in rounds."""
    path = folder / ROUNDS_FILE
    found: list[RoundFigures] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def _paul_ganju(method: PaulGanju, work: RoundsContext) -> Iterator[tuple[RoundFigures, History]]:
    labels = work.labels
    if not labels.unlabelled:
        raise DataError(
            f"training.rounds: expected training chips without labels for {method.name}, got none; let training.supervision know fewer, "
            "or curate images without labels into the folder"
        )
    beside = RoundTraining(
        f"round 0, {method.beside}", work.home(0).with_name("0-beside"), labels,
        MethodSection(name=method.beside, settings=dict(method.beside_settings)),
    )  # fmt: skip
    network, history = work.train(RoundTraining("round 0", work.home(0), labels))
    other, second = work.train(beside)
    ensemble = [network, other]
    known = work.share(labels)
    yield {**_figures(0, history, second), "known_share": known}, history
    for number in range(1, method.rounds + 1):
        home = work.home(number)
        found = _saved(home) or _save(home, *_pseudo_labels(method, work, ensemble, known))
        ids = cast(list[str], found["ids"])
        if not ids:
            yield {**_figures(number, history), **found["figures"], "known_share": known, "cpu_minutes": 0.0}, history
            return
        now = _with_planes(work, ids, home, found["digest"], number)
        training = RoundTraining(f"round {number}", home, now, start=history.weights, settings=method.settings)
        network, history = work.train(training)
        ensemble.append(network)
        yield {**_figures(number, history), **found["figures"], "known_share": known}, history


def _pseudo_labels(
    method: PaulGanju, work: RoundsContext, ensemble: Sequence[nn.Module], known: float
) -> tuple[dict[str, LabelPlane], RoundFigures]:
    """Return the planes of the chips with an accepted tile, and how many tiles of which classes were accepted."""
    accepted: list[AcceptedTile] = []
    ids = work.labels.unlabelled
    for chip, probability, seen in predicted_chips(ensemble, work.chips, ids):
        accepted += accepted_tiles(method, chip, probability, seen)
    kept = thin_tiles(accepted, work.klass, known, work.seed)
    planes: dict[str, LabelPlane] = {}
    for tile in kept:
        row = work.chips.row(tile.chip)
        plane = planes.setdefault(tile.chip, np.full((row.height, row.width), IGNORE, np.uint8))
        plane[tile.rows, tile.cols] = tile.label
    return planes, {
        "chips": len(planes), "of_chips": len(ids), "accepted": len(accepted), "kept_tiles": len(kept),
        "accepted_share": share_of_class(accepted, work.klass), "share": share_of_class(kept, work.klass),
    }  # fmt: skip


def _relabel(method: RelabelLoop, work: RoundsContext) -> Iterator[tuple[RoundFigures, History]]:
    image = _image_labels(method, work)
    labels, start = work.labels, None
    for number in range(method.rounds + 1):
        home, settings = work.home(number), method.settings if number else {}
        network, history = work.train(RoundTraining(f"round {number}", home, labels, start=start, settings=settings))
        found = _saved(home) or _save(home, *_new_labels(work, network, image, labels))
        yield {**_figures(number, history), "share": work.share(labels), **found["figures"]}, history
        if found["figures"]["changed"] < method.stop:
            return
        labels = _with_planes(work, work.labels.labelled, home, found["digest"], number)
        start = None if method.restart else history.weights


def _new_labels(
    work: RoundsContext, network: nn.Module, image: ImageLabels, labels: TrainingLabels
) -> tuple[dict[str, LabelPlane], RoundFigures]:
    """Return the planes that a network gives the chips that it was trained on, and the share of the pixels that they change."""
    ids = work.labels.labelled
    given = dict(zip(ids, work.planes(work.labels, ids), strict=True))
    planes = {
        chip: relabel_within(given[chip], probability, image)
        for chip, probability, _ in predicted_chips([network], work.chips, ids)
    }
    return planes, {"changed": changed_share(work.planes(labels, ids), [planes[id_] for id_ in ids])}


def _image_labels(method: RelabelLoop, work: RoundsContext) -> ImageLabels:
    kinds = () if work.known is None else work.known.supervisions
    found = [one for one in kinds if isinstance(one, ImageLabels)]
    if not found:
        raise UsageError(
            f'training.rounds: expected image-level labels for {method.name}, got none; add {{name = "image-labels"}} to training.supervision'
        )
    return found[0]


@torch.no_grad()
def predicted_chips(ensemble: Sequence[nn.Module], chips: ChipFolder, ids: Sequence[str]) -> Probabilities:
    """Yield the probabilities of chips by the mean of the logits of some networks, each over the eight symmetries of the square."""
    symmetries = TTA()
    for batch in whole_chips(chips, ids):
        total: torch.Tensor | None = None
        for network in ensemble:
            image = batch.image.to(device_of(network))
            for logits in symmetries.pass_logits(cast(SegmentationModel, network), image):
                total = logits.cpu() if total is None else total + logits.cpu()
        mean = cast(torch.Tensor, total) / (8 * len(ensemble))
        for i, chip in enumerate(batch.chips):
            yield chip, mean[i].softmax(0).numpy(), batch.seen[i].numpy()


def _with_planes(work: RoundsContext, ids: Sequence[str], home: Path, digest: str, number: int) -> TrainingLabels:
    """Return the labels with the planes of a round in place of those of some chips."""
    labels, planes = work.labels, SavedLabels(home / "labels", ids, work.labels, work.chips)
    new = [id_ for id_ in ids if id_ not in labels.labelled]
    return replace(
        labels,
        labelled=(*labels.labelled, *new),
        unlabelled=tuple(id_ for id_ in labels.unlabelled if id_ not in new),
        planes=planes,
        counted=planes,
        identity=f"{labels.identity}, round {number} {digest}",
    )


def _saved(home: Path) -> dict[str, Any]:
    """Return what is written of the labels of a round; empty where they are not complete."""
    path = home / "labels.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _save(home: Path, planes: Mapping[str, LabelPlane], figures: RoundFigures) -> dict[str, Any]:
    """Write the labels of a round; the file that says they are there comes last."""
    digest = hashlib.blake2b(digest_size=6)
    for id_, plane in planes.items():
        digest.update(id_.encode() + plane.tobytes())
        with open_atomic(home / "labels" / f"{id_}.npy") as file:
            np.save(file, plane)
    found = {"ids": list(planes), "digest": digest.hexdigest(), "figures": figures}
    write_atomic(home / "labels.json", json.dumps(found))
    return found


def _figures(number: int, history: History, *others: History) -> RoundFigures:
    """Return the figures of the trainings of a round: the monitored one, and their CPU-minutes."""
    seconds = sum(float(row["cpu_seconds"] or 0) for one in (history, *others) for row in one.rows)
    return {"round": number, "monitor": history.monitor, "val": history.best, "cpu_minutes": seconds / 60}


def _best_round(histories: Sequence[History], better: str) -> int:
    """Return the round with the best monitored figure, the first of equals; the last one where it is undefined."""
    defined = [(number, one.best) for number, one in enumerate(histories) if one.best is not None]
    if not defined:
        return len(histories) - 1
    sign = 1 if better == "higher" else -1
    return max(defined, key=lambda pair: (sign * pair[1], -pair[0]))[0]


def _history_lines(histories: Sequence[History]) -> Iterator[str]:
    """Yield the lines of the history of all rounds, with epochs and steps that go on."""
    epoch = step = 0
    for one in histories:
        for row in one.rows:
            yield json.dumps({**row, "epoch": epoch, "step": step + int(row["step"] or 0)}) + "\n"
            epoch += 1
        step += int(one.rows[-1]["step"] or 0)
