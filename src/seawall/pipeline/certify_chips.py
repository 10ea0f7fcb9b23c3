"""Certificates on the chips of a folder: what is certified, what of it is right, and an attack that looks for a false one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from seawall.arrays import BoolArray, ByteArray
from seawall.attacks.pgd import PGD
from seawall.evaluation.case import Case
from seawall.evaluation.measurement import ChipSource, recipe_ids
from seawall.inference.backends import open_runtime
from seawall.inference.tiling import Predict
from seawall.io import RunLock
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.bootstrap import Resamples, estimate_quotient
from seawall.models.receptive_field import receptive_field
from seawall.models.weights import spec_of
from seawall.modules import device_of, eval_mode, to_device_of
from seawall.pipeline.trained_model import MeasuredModel, flag_facts, flags_of, open_target
from seawall.records import Record, RecordLog, ThreatFacts, finite_or_none
from seawall.result import Failed, MutableRow, Progress
from seawall.rng import Keys
from seawall.threat.model import UNIT_NAMES, ThreatModel
from seawall.types import Batch, SegmentationModel, single_unit, units_of
from seawall.uncertainty.certification import (
    ABSTAIN,
    Certification,
    LookResult,
    VoteHistogram,
    certified_classes,
    run_looks,
    top_votes,
)
from seawall.uncertainty.gaussian_smoothing import GaussianSmoothing
from seawall.uncertainty.smoothed_votes import PositionNoise, count_votes

FAMILIES = ("chip", "group")
"""What the pixels of one joint statement are of."""
CERTIFIED_METHOD = "certified"
"""Method of the rows."""
DRAWS_PER_CALL = 8
"""Draws in one call of the network."""
SMOOTHED_PASSES = 16
"""Passes of the smoothed network in each step of the attack, every one under new noise."""


@dataclass(frozen=True)
class CertifiedChip:
    """The certified classes of a chip.

    Args:
        batch: The chip.
        classes: (H, W) class index, `ABSTAIN` without a certificate; meaningless where not seen.
        votes: (H, W) votes of the most frequent class.
        look: What the draws gave over all pixels of the family.
    """

    batch: Batch
    classes: ByteArray
    votes: NDArray[np.uint16]
    look: LookResult

    @property
    def seen(self) -> BoolArray:
        """Where the sensor has data, (H, W)."""
        return cast(BoolArray, self.batch.seen[0].cpu().numpy())

    @property
    def certified(self) -> BoolArray:
        """Where a class is certified, (H, W)."""
        return cast(BoolArray, self.seen & (self.classes != ABSTAIN))


@dataclass(frozen=True)
class AttackOutcome:
    """What an attack within the radius did to the certified pixels of a chip.

    Args:
        flipped: Certified pixels whose class lost the majority of the votes, beyond the chance of the draws.
        least_share: Smallest share of the votes that a certified class had; None without a certified pixel.
        pixels: Certified pixels.
    """

    flipped: int
    least_share: float | None
    pixels: int


def certify_chips(
    weights: Path | SegmentationModel, chips: Path, out: Path, certification: Certification, *, part: str, family: str,
    attack_steps: int, key: str, device: str, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Certify chips; rows go to `out/records.jsonl`, and families that are there are not drawn again.

    Args:
        weights: A .safetensors file, or a module with a spec.
        chips: A chip folder.
        out: Folder of the rows.
        certification: What is certified.
        part: Which chips, as for `evaluate`.
        family: "chip" or "group": the pixels that alpha is shared among.
        attack_steps: Steps of the attack on certified pixels; 0 for none.
        key: Source of the key of weights behind a keyed transform.
        device: auto, cpu, cuda or mps.
        progress: Called after each family.
    """
    target = open_target(weights, chips, part, device, key)
    settings = ChipCertifier(target.net, certification, attack_steps)
    if attack_steps:
        settings.threat  # noqa: B018  refuses bands in several units before the work
    recipe = recipe_ids(target.net, target.chips, certification.seed, None)(
        Case(CERTIFIED_METHOD, text=f"{certification} by {family}, {attack_steps} steps")
    )
    families: dict[str, list[str]] = {}
    for chip in target.chips.ids:
        families.setdefault(target.chips.groups[chip] if family == "group" else chip, []).append(chip)
    with RunLock(out):
        log = RecordLog(out / "records.jsonl")
        for done, ids in enumerate(families.values(), 1):
            base = [settings.row(recipe, chip, target.chips) for chip in ids]
            if not all(replace(row, metric="draws").key in log for row in base):
                log.append(settings.records(ids, base, target.chips))
            progress("chips", done, len(families), ids[0])
        rows = [row for row in log if row.recipe == recipe]
    return summarize_certificates(rows, target, certification, out)


@dataclass(frozen=True)
class ChipCertifier:
    """Certifies chips with a network.

    Args:
        net: The network, on the device to compute on.
        certification: What is certified.
        attack_steps: Steps of the attack on certified pixels; 0 for none.
    """

    net: nn.Module
    certification: Certification
    attack_steps: int = 0

    @property
    def threat(self) -> ThreatModel:
        """The perturbations within the radius.

        Raises:
            UsageError: The bands have several units, over which a length has no meaning.
        """
        spec = spec_of(self.net)
        eps = tuple(self.certification.radius * sigma for sigma in self.certification.sigma_of(spec))
        same = len(set(eps)) == 1
        return ThreatModel("l2", eps[0] if same else eps, single_unit(spec.unit, "certify: attack"), names=spec.bands)

    def row(self, recipe: str, chip: str, chips: ChipSource) -> Record:
        """Return the row of a chip without metric and value."""
        spec = spec_of(self.net)
        eps = tuple(self.certification.radius * sigma for sigma in self.certification.sigma_of(spec))
        unit = " + ".join(UNIT_NAMES[one] for one in dict.fromkeys(units_of(spec.unit, 1)))
        text = f"l2 {','.join(f'{e:.4g}' for e in dict.fromkeys(eps))} {unit}"
        return Record(
            recipe, type(self.net).__name__, CERTIFIED_METHOD, text, chip, chips.groups.get(chip, chip), "", "", None, 0,
            chips.flags(chip), 0.0, *ThreatFacts("l2", eps, unit),
        )  # fmt: skip

    def records(self, ids: Sequence[str], base: Sequence[Record], chips: ChipSource) -> list[Record]:
        """Return the rows of the chips of a family."""
        began = time.monotonic()
        found = self.certify([batch.select([i]) for batch in chips.read(ids) for i in range(len(batch))])
        seconds = (time.monotonic() - began) / len(found)
        rows: list[Record] = []
        own = {row.chip: row for row in base}
        for chip in found:
            row = own[chip.batch.chips[0]]
            rows += _chip_records(row, chip, spec_of(self.net).classes)
            if self.attack_steps:
                outcome = self.attack(chip)
                rows.append(row.measured("flipped", float(outcome.flipped), outcome.pixels))
                rows.append(row.measured("votes.attacked", outcome.least_share, outcome.pixels))
            rows.append(row.measured("draws", float(chip.look.draws), chip.look.pixels, seconds=seconds))
        return rows

    def certify(self, chips: Sequence[Batch]) -> list[CertifiedChip]:
        """Certify the pixels of chips jointly.

        Args:
            chips: Batches of one chip.
        """
        spec, total = spec_of(self.net), sum(int(chip.seen.sum()) for chip in chips)
        counts: list[NDArray[np.uint16]] = [
            np.zeros((len(spec.classes), *chip.label.shape[1:]), np.uint16) for chip in chips
        ]
        held = 0
        with self._predictor() as predict:

            def draw(until: int) -> VoteHistogram:
                nonlocal held
                votes = np.zeros(until + 1, np.int64)
                for chip, count in zip(chips, counts, strict=True):
                    count += self._votes(predict, chip, range(held, until))
                    votes += top_votes(count, chip.seen[0].cpu().numpy(), until)
                held = until
                return votes

            look = run_looks(self.certification, total, draw)
        return [
            CertifiedChip(chip, certified_classes(count, look.needed), count.max(0), look)
            for chip, count in zip(chips, counts, strict=True)
        ]

    def attack(self, chip: CertifiedChip) -> AttackOutcome:
        """Attack the certified pixel with the fewest votes within the radius, and count anew what holds of all of them.

        A perturbation may spend its whole length on one pixel, so this is the hardest test; the attack ascends the mean over noise.
        """
        certified = chip.certified
        pixels = int(certified.sum())
        if not pixels:
            return AttackOutcome(0, None, 0)
        weakest = np.where(certified, chip.votes, np.iinfo(np.uint16).max)
        aim = np.zeros_like(certified)
        aim[np.unravel_index(int(weakest.argmin()), aim.shape)] = True
        label = torch.from_numpy(np.where(certified, chip.classes, 0).astype(np.int64))[None]
        batch = to_device_of(self.net, replace(chip.batch, label=label, valid=torch.from_numpy(aim)[None]))
        smoothed = GaussianSmoothing(self.certification.sigma, SMOOTHED_PASSES, self.certification.seed)
        attack = PGD(steps=self.attack_steps, step=0.25, random_start=False, keep="last")
        with eval_mode(self.net):
            adversarial = attack(
                smoothed(cast(SegmentationModel, self.net)),
                batch,
                self.threat,
                Keys(self.certification.seed, batch.chips),
            )
        first, draws = self.certification.samples, chip.look.draws
        with self._predictor() as predict:
            votes = self._votes(predict, replace(chip.batch, image=adversarial.cpu()), range(first, first + draws))
        own = np.take_along_axis(votes, np.where(certified, chip.classes, 0)[None].astype(np.intp), 0)[0][certified]
        lost = stats.binom.cdf(own, draws, 0.5) <= self.certification.alpha / pixels
        return AttackOutcome(int(lost.sum()), float(own.min() / draws), pixels)

    def _votes(self, predict: Predict, chip: Batch, draws: range) -> NDArray[np.uint16]:
        image, seen = (plane[0].cpu().numpy() for plane in (chip.image, chip.image_seen))
        sigma = np.array(self.certification.sigma_of(spec_of(self.net)), np.float32)[:, None, None]
        noise = PositionNoise(Keys(self.certification.seed, chip.chips, ("certify",)).number(0), len(sigma))
        rows, cols = (np.arange(side) for side in image.shape[1:])
        return count_votes(
            predict, image, seen * sigma, lambda number: noise.draw(number, rows, cols), draws, DRAWS_PER_CALL
        )

    def _predictor(self) -> AbstractContextManager[Predict]:
        return open_runtime(self.net, device=str(device_of(self.net) or "cpu"))


def _chip_records(row: Record, chip: CertifiedChip, classes: Sequence[str]) -> Iterator[Record]:
    """Yield the counts of a chip; a labelled pixel without a certificate counts as missed."""
    label, valid = (plane[0].cpu().numpy() for plane in (chip.batch.label, chip.batch.valid))
    seen, pixels = int(chip.seen.sum()), int(valid.sum())
    for k, klass in enumerate(classes):
        own, true = chip.certified & (chip.classes == k), (label == k) & valid
        for name, where in (("tp", own & true), ("fp", own & valid & ~true), ("fn", true & ~own)):
            yield row.measured(name, float(where.sum()), pixels, klass)
        yield row.measured("certified", float(own.sum()), seen, klass)
    yield row.measured("pixels", float(pixels), pixels)


def summarize_certificates(
    rows: Sequence[Record], target: MeasuredModel, certification: Certification, out: Path
) -> tuple[MutableRow, list[MutableRow], Failed]:
    """Return facts and a row per class of what is certified on chips, from their rows."""
    spec = spec_of(target.net)
    found = {(r.metric, r.klass): r.value for r in aggregate_records(rows) if not r.group}
    held = {(r.metric, r.klass, r.chip): r for r in rows}
    chips = sorted({(r.group, r.chip) for r in rows})

    def values(metric: str, klass: str = "") -> list[float]:
        return [held[metric, klass, chip].value or 0.0 for _, chip in chips if (metric, klass, chip) in held]

    seen = [float(held["certified", spec.classes[0], chip].n) for _, chip in chips]
    each = {klass: values("certified", klass) for klass in spec.classes}
    share = estimate_quotient(
        np.sum(list(each.values()), 0), np.array(seen), len(chips), Resamples.over([group for group, _ in chips])
    )
    km2, total = target.gsd_m**2 / 1e6, sum(map(sum, each.values()))
    table: list[MutableRow] = [
        {
            "class": klass, "certified iou": found.get(("iou.pooled", klass)), "low": found.get(("iou.pooled.low", klass)),
            "high": found.get(("iou.pooled.high", klass)), "certified recall": found.get(("recall.pooled", klass)),
            "certified_km2": sum(own) * km2, "may_be_km2": (sum(own) + sum(seen) - total) * km2,
        }
        for klass, own in each.items()
    ]  # fmt: skip
    whole, low, high = (finite_or_none(float(v[0])) for v in (share.value, share.low, share.high))
    facts: MutableRow = {
        "radius": certification.radius_text(spec, receptive_field(target.net).reach),
        "certified_share": whole, "certified_share.low": low, "certified_share.high": high,
        "abstained_share": None if whole is None else 1 - whole,
        "certified_accuracy": found.get(("accuracy.pooled", "")), "certified_miou": found.get(("miou.pooled", "")),
        "mean_draws": float(np.mean(values("draws"))),
    }  # fmt: skip
    if flipped := values("flipped"):
        least = [held[key].value for key in held if key[0] == "votes.attacked"]
        facts |= {
            "flipped_by_attack": int(sum(flipped)),
            "least_votes_under_attack": min((one for one in least if one is not None), default=None),
        }
    return {**facts, **target.facts, "rows": str(out / "records.jsonl"), **flag_facts(flags_of(rows))}, table, ()
