"""Corruption errors: what natural perturbations cost a model, relative to a baseline on the same chips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seawall.arrays import DoubleArray
from seawall.errors import DataError
from seawall.metrics.aggregate import ChipTable, chip_tables
from seawall.metrics.bootstrap import Resamples, percentile_interval
from seawall.metrics.ratios import divide_or_nan, mean_defined
from seawall.records import CorruptionFacts, Record, finite_or_none

LEAST_BASELINE_DROP = 0.01
"""Mean loss of IoU of the baseline below which a relative corruption error is a quotient of noise, and undefined."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval over groups; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CorruptionError:
    """What one corruption costs a model.

    Args:
        corruption: Its name in the records; "" for the mean over corruptions.
        levels: Severity, level, quantity and unit of each severity above 0, the smallest first.
        clean: Pooled IoU of the clean images.
        iou: Pooled IoU at each severity.
        drop: Clean IoU minus the mean IoU over the severities.
        error: Sum of 1 - IoU over the severities, divided by that of the baseline; undefined without a baseline.
        relative_error: The same with each model's 1 - IoU of the clean images subtracted; undefined where the baseline
            loses less than `LEAST_BASELINE_DROP` on average.
        kept: Smallest share of valid pixels that a severity leaves.
        flags: Flags of the records.
    """

    corruption: str
    levels: tuple[CorruptionFacts, ...]
    clean: Interval
    iou: tuple[Interval, ...]
    drop: Interval
    error: Interval
    relative_error: Interval
    kept: float | None = None
    flags: tuple[str, ...] = ()


def corruption_errors(
    rows: Iterable[Record], model: str, baseline: str, klass: str, *, samples: int = 1000, seed: int = 0
) -> list[CorruptionError]:
    """Return one entry per corruption, in the order of the records, and the mean over corruptions as the last one.

    All figures are of pooled counts. Intervals redraw whole groups, the same ones for both models and all
    severities. An undefined error of one corruption takes no part in the mean. Severity 0 takes no part.

    Args:
        rows: Records with a chip of one recipe id: clean and corrupted ones, of both models.
        model: Name of the model.
        baseline: Name of the baseline; "" for none.
        klass: Class of the IoU.
        samples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        Empty where the model was not corrupted.

    Raises:
        DataError: The model has no clean records, or a corruption was measured on other chips than the clean images or
            the baseline.

    Paper: Hendrycks and Dietterich 2019, arXiv:1903.12261, section 4.3. Differs: the error is 1 - IoU, the reference a
    threshold model, and the undefined is left out of the mean.
    """
    tables = {(t.model, t.method, t.threat): t for t in chip_tables(rows) if t.places and t.model in (model, baseline)}
    names = dict.fromkeys(t.method for t in tables.values() if t.model == model and t.severity)
    found = [_Measured.of(tables, model, baseline, name) for name in names]
    made = [one.summary(klass, samples, seed) for one in found]
    return [*(entry for entry, _ in made), _mean_entry([draws for _, draws in made])] if made else []


@dataclass(frozen=True)
class _Draws:
    """Figures of one corruption per resample: a point estimate first, then the resamples, each (1 + R,)."""

    clean: DoubleArray
    iou: DoubleArray
    drop: DoubleArray
    error: DoubleArray
    relative_error: DoubleArray


@dataclass(frozen=True)
class _Measured:
    """The tables of one corruption: clean images first, then each severity, of the model and of the baseline."""

    name: str
    own: tuple[ChipTable, ...]
    reference: tuple[ChipTable, ...]

    @staticmethod
    def of(tables: Mapping[tuple[str, str, str], ChipTable], model: str, baseline: str, name: str) -> _Measured:
        own = [t for t in tables.values() if (t.model, t.method) == (model, name) and t.severity]
        own.sort(key=lambda table: table.severity or 0.0)
        wanted = [("clean", ""), *((name, table.threat) for table in own)]
        lost = [
            f"{who} {what} {threat}".rstrip()
            for who in (model, baseline)
            for what, threat in wanted
            if who and (who, what, threat) not in tables
        ]
        if lost:
            raise DataError(f"{name}: expected records of {lost[0]}, got none; run the same command again")
        reference = [tables[baseline, what, threat] for what, threat in wanted] if baseline else []
        every = [tables[model, "clean", ""], *own]
        if len({table.places for table in (*every, *reference)}) > 1:
            raise DataError(
                f"{name}: expected the same chips for every severity, got others; run the same command again"
            )
        return _Measured(name, tuple(every), tuple(reference))

    def summary(self, klass: str, samples: int, seed: int) -> tuple[CorruptionError, _Draws]:
        draws = Resamples.over(self.own[0].groups, samples, seed)
        own = np.stack([_resampled_iou(table, klass, draws) for table in self.own])
        none = np.full_like(own, np.nan)
        reference = np.stack([_resampled_iou(t, klass, draws) for t in self.reference]) if self.reference else none
        made = _Draws(own[0], own[1:], own[0] - own[1:].mean(0), *_error_quotients(own, reference))
        before = (table.values("pixels.clean")[1].sum() for table in self.own[1:])
        kept = divide_or_nan([table.counts.pixels.sum() for table in self.own[1:]], list(before))
        entry = CorruptionError(
            self.name, tuple(table.corruption for table in self.own[1:]), _interval(made.clean),
            tuple(map(_interval, made.iou)), _interval(made.drop), _interval(made.error),
            _interval(made.relative_error), finite_or_none(float(kept.min())),
            tuple(dict.fromkeys(flag for table in self.own for flag in table.flags)),
        )  # fmt: skip
        return entry, made


def _error_quotients(own: DoubleArray, reference: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Return the corruption error and the relative one, (1 + R,) each, from IoU (1 + S, 1 + R), clean first."""
    error = divide_or_nan((1 - own[1:]).sum(0), (1 - reference[1:]).sum(0))
    lost, baseline_lost = ((iou[0] - iou[1:]).sum(0) for iou in (own, reference))
    enough = baseline_lost >= LEAST_BASELINE_DROP * (len(own) - 1)
    return error, divide_or_nan(lost, np.where(enough, baseline_lost, 0.0))


def _resampled_iou(table: ChipTable, klass: str, draws: Resamples) -> DoubleArray:
    """Return the pooled IoU of a class, (1 + R,): of all groups, then of each resample."""
    if klass not in table.classes:
        return np.full(1 + len(draws.weights), np.nan)
    k, weights = table.classes.index(klass), np.concatenate([draws.once, draws.weights]) @ draws.member
    tp, fp, fn = (weights @ part[:, k] for part in (table.counts.tp, table.counts.fp, table.counts.fn))
    return divide_or_nan(tp, tp + fp + fn)


def _interval(drawn: DoubleArray) -> Interval:
    low, high = percentile_interval(drawn[1:, None] if np.isfinite(drawn[0]) else drawn[:0, None])
    return Interval(*(finite_or_none(float(value)) for value in (drawn[0], low[0], high[0])))


def _mean_entry(each: Sequence[_Draws]) -> CorruptionError:
    def mean(name: str) -> Interval:
        every = np.stack([getattr(draws, name) for draws in each])
        return _interval(mean_defined(every[np.isfinite(every[:, 0])].T))

    same = len({len(draws.iou) for draws in each}) == 1
    iou = np.stack([draws.iou for draws in each]).mean(0) if same else np.empty((0, 1))
    return CorruptionError(
        "",
        (),
        _interval(each[0].clean),
        tuple(map(_interval, iou)),
        mean("drop"),
        mean("error"),
        mean("relative_error"),
    )
