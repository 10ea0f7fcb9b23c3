"""Which checks a kind of method must pass."""

from __future__ import annotations

from collections.abc import Callable

from seawall.registry import Entry, entries
from seawall.testing import (
    attack_losses,
    attacks,
    corruptions,
    detectors,
    faults,
    goals,
    keyed_transforms,
    label_rules,
    losses,
    models,
    noises,
    objectives,
    poisons,
    sources,
    suites,
    supervisions,
    uncertainty,
    water_indices,
    weight_defenses,
)

Check = Callable[[Entry], None]

CHECKS: dict[str, list[Check]] = {
    "attack": attacks.CHECKS,
    "attack-loss": attack_losses.CHECKS,
    "corruption": corruptions.CHECKS,
    "detector": detectors.CHECKS,
    "fault": faults.CHECKS,
    "weight-defense": weight_defenses.CHECKS,
    "goal": goals.CHECKS,
    "keyed-transform": keyed_transforms.CHECKS,
    "water-index": water_indices.CHECKS,
    "label-rule": label_rules.CHECKS,
    "loss": losses.CHECKS,
    "model": models.CHECKS,
    "noise": noises.CHECKS,
    "objective": objectives.CHECKS,
    "poison": poisons.CHECKS,
    "source": sources.CHECKS,
    "suite": suites.CHECKS,
    "supervision": supervisions.CHECKS,
    "uncertainty": uncertainty.CHECKS,
}


def checks(kind: str) -> list[Check]:
    """Return the contract checks of a kind; each takes a registry entry and raises AssertionError.

    Example:
        >>> [check.__name__ for check in checks("attack")][0]
        'check_stays_in_the_threat_set'
    """
    return list(CHECKS.get(kind, ()))


def contract_cases(kind: str) -> list[tuple[Entry, Check]]:
    """Return every registered method of a kind with every check that it must pass."""
    return [(entry, check) for entry in entries(kind) for check in checks(kind)]


def case_id(value: object) -> str:
    """Return a readable test id for an entry or a check."""
    return value.name if isinstance(value, Entry) else getattr(value, "__name__", str(value)).removeprefix("check_")
