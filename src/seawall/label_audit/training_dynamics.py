"""Training dynamics: loss and margin of every chip after each epoch; wrong labels have a high loss and a low margin."""

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
from seawall.modules import eval_mode
from seawall.types import Batch

DynamicsRow = dict[str, str | int | float]


@dataclass(frozen=True)
class ChipDynamics:
    """Training dynamics of one chip.

    Args:
        loss: Mean over the epochs of the mean cross-entropy of its valid pixels.
        aum: Area under the margin: mean over the epochs of the mean margin between the logit of the label and the
            highest other one. Low or negative for labels that the rest of the data contradicts.
        epochs: Number of epochs.
    """

    loss: float
    aum: float
    epochs: int


@dataclass(frozen=True)
class TrainingDynamics:
    """Writes the loss and margin of every chip into a JSON lines file after each epoch of a training.

    `check` fits `seawall.training.loop.fit(check=...)`. A resumed training does not count an epoch twice: a row's key is the
    content of the weights.

    Args:
        batches: Yields the chips with the labels that the network is trained on.
        path: The file.

    Paper: Pleiss et al. 2020, arXiv:2001.10528, eq. 1, averaged over the valid pixels of a chip.
    """

    batches: Callable[[], Iterable[Batch]]
    path: Path

    def check(self, model: nn.Module) -> dict[str, float | None]:
        """Add the rows of these weights; return the mean loss and the number of epochs as "watched"."""
        key = _weights_digest(model)
        rows = [row for row in self.rows() if row["weights"] != key]
        rows += [{"weights": key, **row} for row in chip_losses(model, self.batches())]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        mine = [float(row["loss"]) for row in rows if row["weights"] == key]
        return {
            "train.loss": sum(mine) / len(mine) if mine else None,
            "watched": float(len({row["weights"] for row in rows})),
        }

    def rows(self) -> list[DynamicsRow]:
        """Return the rows so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def learned(self) -> dict[str, ChipDynamics]:
        """Return the mean loss and margin of each chip over the epochs."""
        found: dict[str, list[DynamicsRow]] = {}
        for row in self.rows():
            found.setdefault(str(row["chip"]), []).append(row)
        return {
            chip: ChipDynamics(_column_mean(rows, "loss"), _column_mean(rows, "margin"), len(rows))
            for chip, rows in sorted(found.items())
        }


def chip_losses(model: nn.Module, batches: Iterable[Batch]) -> list[DynamicsRow]:
    """Return loss and margin of every chip with a valid pixel, under the model in eval mode."""
    device = next(model.parameters()).device
    rows: list[DynamicsRow] = []
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            moved = batch.to(device)
            logits = model(moved.image)
            loss = masked_mean_per_image(pixel_cross_entropy(logits, moved.label), moved.valid)
            margin = masked_mean_per_image(label_margin(logits, moved.label), moved.valid)
            for i, chip in enumerate(batch.chips):
                if bool(batch.valid[i].any()):
                    rows.append({"chip": chip, "loss": float(loss[i]), "margin": float(margin[i])})
    return rows


def label_margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return the logit of the label minus the highest other one, (B, H, W).

    Example:
        >>> label_margin(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)).item()
        -2.0
    """
    at = label.clamp(0, logits.shape[1] - 1)[:, None]
    own = logits.gather(1, at)
    rest = logits.scatter(1, at, float("-inf"))
    return (own - rest.amax(1, keepdim=True)).squeeze(1)


def _column_mean(rows: Iterable[Mapping[str, str | int | float]], name: str) -> float:
    values = [float(row[name]) for row in rows]
    return sum(values) / len(values)


def _weights_digest(model: nn.Module) -> str:
    found = hashlib.blake2b(digest_size=8)
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
