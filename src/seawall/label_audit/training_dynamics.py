"""How a network learns each chip: wrong labels are learned late, and never with conviction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from seawall.io import write_atomic
from seawall.losses.segmentation import masked_mean_per_image, pixel_cross_entropy
from seawall.types import Batch

PAPER = "arXiv:2001.10528"
Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Learned:
    """How one chip was learned.

    Args:
        loss: Mean over the epochs of the mean cross-entropy of its valid pixels.
        aum: Area under the margin: mean over the epochs of the mean margin between the logit of the label and the
            highest other one. Low or negative for labels that the rest of the data contradicts.
        epochs: How many epochs were watched.
    """

    loss: float
    aum: float
    epochs: int


@dataclass(frozen=True)
class Dynamics:
    """Watches a training: after each epoch, the loss and margin of every chip go into a JSON lines file.

    `check` fits `seawall.training.loop.fit(check=...)`. A resumed training does not count an epoch twice: a row's key is the
    content of the weights.

    Args:
        batches: Gives the chips with the labels that the network is trained on.
        path: The file.

    Paper: Pleiss et al. 2020, arXiv:2001.10528, eq. 1, averaged over the valid pixels of a chip.
    """

    batches: Callable[[], Iterable[Batch]]
    path: Path

    def check(self, model: nn.Module) -> dict[str, float | None]:
        """Add the rows of these weights; return the mean loss and how many epochs were watched."""
        key = _digest(model)
        rows = [row for row in self.rows() if row["weights"] != key]
        rows += [{"weights": key, **row} for row in watch(model, self.batches())]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        mine = [float(row["loss"]) for row in rows if row["weights"] == key]
        return {
            "train.loss": sum(mine) / len(mine) if mine else None,
            "watched": float(len({row["weights"] for row in rows})),
        }

    def rows(self) -> list[Row]:
        """Return the rows so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def learned(self) -> dict[str, Learned]:
        """Return how each chip was learned over the epochs watched."""
        found: dict[str, list[Row]] = {}
        for row in self.rows():
            found.setdefault(str(row["chip"]), []).append(row)
        return {
            chip: Learned(_mean(rows, "loss"), _mean(rows, "margin"), len(rows)) for chip, rows in sorted(found.items())
        }


def watch(model: nn.Module, batches: Iterable[Batch]) -> list[Row]:
    """Return loss and margin of every chip with a valid pixel, under the model in eval mode; its mode is put back."""
    was = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    rows: list[Row] = []
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                there = batch.to(device)
                logits = model(there.image)
                loss = masked_mean_per_image(pixel_cross_entropy(logits, there.label), there.valid)
                gap = masked_mean_per_image(margin(logits, there.label), there.valid)
                for i, chip in enumerate(batch.chips):
                    if bool(batch.valid[i].any()):
                        rows.append({"chip": chip, "loss": float(loss[i]), "margin": float(gap[i])})
    finally:
        for module, mode in was.items():
            module.training = mode
    return rows


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return the logit of the label minus the highest other one, (B, H, W).

    Example:
        >>> margin(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)).item()
        -2.0
    """
    at = label.clamp(0, logits.shape[1] - 1)[:, None]
    own = logits.gather(1, at)
    rest = logits.scatter(1, at, float("-inf"))
    return (own - rest.amax(1, keepdim=True)).squeeze(1)


def _mean(rows: Iterable[Mapping[str, str | int | float]], name: str) -> float:
    values = [float(row[name]) for row in rows]
    return sum(values) / len(values)


def _digest(model: nn.Module) -> str:
    found = hashlib.blake2b(digest_size=8)
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
