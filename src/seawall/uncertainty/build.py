"""Estimators of uncertainty by name: with the members of an ensemble that lie beside the weights, and with what is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from seawall import registry
from seawall.types import Batch, SegmentationModel, Setting, Wrapper
from seawall.uncertainty.ensemble import Ensemble


@runtime_checkable
class FittedEstimator(Protocol):
    """An estimator that learns something from the training chips once the network is trained."""

    def fit(self, model: SegmentationModel, batches: Iterable[Batch]) -> Mapping[str, Tensor]: ...
    def with_state(self, state: Mapping[str, Tensor]) -> Wrapper: ...


def build_uncertainty(name: str, settings: Mapping[str, Setting], weights: Path | None) -> Wrapper:
    """Return an estimator; an ensemble without members gets those beside the weights.

    Raises:
        UsageError: There is no such estimator, or a setting is wrong.
        ModelError: There are no members beside the weights.
    """
    made = registry.build("uncertainty", name, settings)
    return made.beside(weights) if isinstance(made, Ensemble) and weights is not None else made


def parse_uncertainty(text: str, weights: Path | None) -> Wrapper:
    """Return the estimator of a text such as "mc-dropout passes=10"; "" is softmax.

    Raises:
        UsageError: There is no such estimator, or a setting is wrong.
        ModelError: There are no members beside the weights.
    """
    name, settings = registry.parse_settings("uncertainty", text or "softmax")
    members = settings.get("members")
    given: dict[str, Setting] = {**settings} | ({"members": members.split(",")} if members else {})
    return build_uncertainty(name, given, weights)


def fitted_estimator(method: Wrapper, model: nn.Module, training_chips: Callable[[], Iterable[Batch]]) -> Wrapper:
    """Return an estimator that has learned from the training chips what it learns from them; others as they are."""
    if not isinstance(method, FittedEstimator) or not isinstance(model, SegmentationModel):
        return method
    return method.with_state(method.fit(model, training_chips()))
