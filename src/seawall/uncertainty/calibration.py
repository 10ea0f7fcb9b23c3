"""The calibration of a predictor on held-out chips: one file beside the weights, which refuses every other predictor.

It holds what was fitted (an estimator's state, the temperature) and what every guarantee is computed from (the scores of
the held-out scenes, the statistics of the scenes), not thresholds: so any risk can be asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from seawall import __version__
from seawall.errors import DataError, ModelError, RunError
from seawall.io import write_atomic
from seawall.models.weights import pack_safetensors, unpack_safetensors, weights_digest
from seawall.modules import to_device_of
from seawall.registry import entry_of
from seawall.types import SegmentationModel, Wrapper
from seawall.uncertainty.area import AreaCalibration
from seawall.uncertainty.build import FittedEstimator
from seawall.uncertainty.conformal import SceneWeights
from seawall.uncertainty.scene_scores import SceneScores
from seawall.uncertainty.scene_statistics import SceneStatistics
from seawall.uncertainty.temperature import TemperatureKind, TemperatureScaled, divisor_of

CURVES = ("missed", "alarmed", "missed_beyond", "alarmed_beyond")
"""Fields of `SceneScores` that are arrays, or None."""
ESTIMATOR_STATE, TEMPERATURE_STATE, STATISTICS_STATE = "estimator.", "divisor.", "statistics."
"""Prefixes of the tensors of each part in a file."""


@dataclass(frozen=True)
class CalibrationFacts:
    """What a calibration was made from, and how well it did, for people.

    Args:
        chips: Digest of the held-out chips.
        scenes: Names of the held-out scenes.
        count: Number of held-out chips.
        part: Which chips they are, in words.
        temperature: Kind of temperature.
        ece_before: Expected calibration error without a temperature; None without a valid pixel. So are all errors.
        ece_after: The same with a temperature that was fitted on other scenes.
        shore_before: Error within three pixels of a shore, without a temperature.
        shore_after: The same with it.
    """

    chips: str
    scenes: tuple[str, ...]
    count: int
    part: str
    temperature: TemperatureKind
    ece_before: float | None
    ece_after: float | None
    shore_before: float | None
    shore_after: float | None


@dataclass(frozen=True)
class Calibration:
    """The calibration of one predictor.

    Args:
        weights: Digest of all weights of the predictor.
        uncertainty: Its estimator, as `uncertainty_text` has it.
        klass: The class that the scores are of.
        gsd_m: Meters per pixel of the held-out chips.
        scores: Scores of the held-out scenes, each by a temperature that was fitted on other scenes.
        facts: What it was made from.
        estimator: What the estimator learned from the training chips.
        divisor: The fitted temperature.
        statistics: How scenes look that the network knows; None where there were too few.
        without_statistics: Why there are none.
    """

    weights: str
    uncertainty: str
    klass: str
    gsd_m: float
    scores: tuple[SceneScores, ...]
    facts: CalibrationFacts
    estimator: Mapping[str, Tensor]
    divisor: Mapping[str, Tensor]
    statistics: SceneStatistics | None = None
    without_statistics: str = ""

    def predictor(self, method: Wrapper, model: SegmentationModel) -> nn.Module:
        """Return the calibrated predictor.

        Args:
            method: The estimator; with its members, if it has some.
            model: The network.

        Raises:
            ModelError: The calibration is of another estimator, or of other weights.
        """
        if (asked := uncertainty_text(method)) != self.uncertainty:
            raise ModelError(
                f'calibration: expected one of {asked}, got one of {self.uncertainty}; run `seawall calibrate` with --uncertainty "{asked}"'
            )
        if isinstance(method, FittedEstimator):
            method = method.with_state(self.estimator)
        made = method(model)
        if (digest := weights_digest(made)) != self.weights:
            raise ModelError(
                f"calibration: expected the weights {self.weights[:12]} that it was fitted to, got {digest[:12]}; run `seawall calibrate` again"
            )
        scale = divisor_of(self.divisor, len(model.spec.bands), len(model.spec.classes))
        if scale is None:
            return made
        return to_device_of(model, TemperatureScaled(cast(SegmentationModel, made), scale).eval())

    def area(self, weights: SceneWeights | None = None) -> AreaCalibration | None:
        """Return the areas of the held-out scenes, weighted if they are; None where these lack the class or have nothing else."""
        try:
            return AreaCalibration.of_scores(self.scores, self.gsd_m, weights)
        except DataError:
            return None

    def save(self, path: Path) -> str:
        """Write the file; return the digest inside it.

        Raises:
            RunError: The folder cannot be written.
        """
        tensors = {f"{ESTIMATOR_STATE}{name}": tensor for name, tensor in self.estimator.items()}
        tensors |= {f"{TEMPERATURE_STATE}{name}": tensor for name, tensor in self.divisor.items()}
        for i, score in enumerate(self.scores):
            for name in CURVES:
                if (curve := getattr(score, name)) is not None:
                    tensors[f"scores.{i}.{name}"] = torch.from_numpy(np.ascontiguousarray(curve, np.float64))
        known = self.statistics
        if known is not None:
            tensors |= {f"{STATISTICS_STATE}{name}": tensor for name, tensor in known.tensors().items()}
        plain = {
            "weights": self.weights, "uncertainty": self.uncertainty, "klass": self.klass, "gsd_m": self.gsd_m,
            "scores": [{f.name: getattr(s, f.name) for f in fields(s) if f.name not in CURVES} for s in self.scores],
            "facts": asdict(self.facts), "without_statistics": self.without_statistics,
            "statistics": None if known is None else known.plain(),
        }  # fmt: skip
        meta = {"seawall": __version__, "calibration": json.dumps(plain, sort_keys=True)}
        data, digest = pack_safetensors({name: t.contiguous() for name, t in tensors.items()}, meta)
        try:
            write_atomic(path, data)
        except OSError as bad:
            raise RunError(
                f"{path}: expected to write the calibration, got {bad.strerror or bad}; free the disk"
            ) from bad
        return digest


def read_calibration(path: Path) -> Calibration:
    """Read a file of `Calibration.save`.

    Raises:
        ModelError: It is missing, damaged, or no calibration.
    """
    if not path.is_file():
        raise ModelError(
            f"{path}: expected a calibration, got no such file; check the path, or run `seawall calibrate`"
        )
    tensors, meta = unpack_safetensors(path)
    try:
        plain: dict[str, Any] = json.loads(meta["calibration"])
        scores = tuple(
            SceneScores(**{**row, **{name: _stored_curve(tensors, f"scores.{i}.{name}") for name in CURVES}})
            for i, row in enumerate(plain.pop("scores"))
        )
        facts = plain.pop("facts")
        known = plain.pop("statistics")
        statistics = None if known is None else SceneStatistics.of(known, _part(STATISTICS_STATE, tensors))
        return Calibration(
            **plain, scores=scores, facts=CalibrationFacts(**{**facts, "scenes": tuple(facts["scenes"])}),
            estimator=_part(ESTIMATOR_STATE, tensors), divisor=_part(TEMPERATURE_STATE, tensors), statistics=statistics,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, DataError) as bad:
        raise ModelError(f"{path}: expected a calibration, got {bad!r}; run `seawall calibrate` again") from bad


def open_predictor(
    method: Wrapper, model: SegmentationModel, weights: Path | None, given: str = "auto"
) -> tuple[nn.Module, Calibration | None, Path | None]:
    """Return a predictor with its calibration and the file of that; the last two are None without one.

    Args:
        method: The estimator.
        model: The network.
        weights: File of the network; None for a module, beside which nothing lies.
        given: "auto" takes the calibration beside the weights if there is one, "none" takes none; else a path.

    Raises:
        ModelError: The file is damaged, of another estimator or of other weights.
        UsageError: The estimator needs a calibration, and there is none.
    """
    if given == "auto":
        path = None if weights is None else calibration_path(weights, method)
    else:
        path = None if given == "none" else Path(given)
    if path is None or (given == "auto" and not path.exists()):
        return method(model), None, None
    found = read_calibration(path)
    return found.predictor(method, model), found, path


def calibration_path(weights: Path, method: Wrapper) -> Path:
    """Return where the calibration of some weights under an estimator lies: beside the weights, named by both."""
    name = uncertainty_text(method).split()[0]
    return weights.with_name(f"{weights.stem}.{name}.calibration.safetensors")


def uncertainty_text(method: object) -> str:
    """Return the name of an estimator and the settings that decide its result; an ensemble's members are known by their weights.

    Example:
        >>> from seawall.uncertainty.dropout import MonteCarloDropout
        >>> uncertainty_text(MonteCarloDropout(passes=10))
        'mc-dropout passes=10 seed=0'
    """
    entry = entry_of("uncertainty", method)
    name = type(method).__name__ if entry is None else entry.name
    settings = [
        f"{f.name}={getattr(method, f.name)}" for f in fields(cast(Any, method)) if f.name not in ("members", "of")
    ]
    return " ".join((name, *settings))


def _stored_curve(tensors: Mapping[str, Tensor], name: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    return tensors[name].numpy() if name in tensors else None


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fold_of_scenes(scenes: Sequence[str], most: int = 5) -> dict[str, int]:
    """Return scene to the number of its fold, for what must not be judged by what it was fitted on.

    Example:
        >>> fold_of_scenes(["b", "a", "c", "a"], most=2)
        {'a': 0, 'b': 1, 'c': 0}
    """
    names = sorted(set(scenes))
    return {name: i % min(most, len(names)) for i, name in enumerate(names)}
