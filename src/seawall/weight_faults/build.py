"""Faults and defenses by the texts of a command or a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.errors import UsageError
from seawall.registry import build, parse_settings
from seawall.weight_faults.defense import WeightDefense, parse_defense
from seawall.weight_faults.search import RandomFlips, WeightFault

CONTROL_FACTOR = 10
"""Random flips for each flip that a search may take."""
NO_DEFENSE = "none"


@dataclass(frozen=True)
class NamedFault:
    """A fault and a defense by the names of their rows.

    Args:
        name: Name of the fault.
        fault: The fault.
        defense_name: Name of the defense, "none" without one.
        defense: The defense.
        most: Flips after which to stop.
    """

    name: str
    fault: WeightFault
    defense_name: str
    defense: WeightDefense | None
    most: int

    @property
    def label(self) -> str:
        """Fault and defense in words."""
        return self.name if self.defense is None else f"{self.name}, {self.defense_name}"


def named_faults(faults: Sequence[str], defenses: Sequence[str], most: int) -> list[NamedFault]:
    """Return every fault of texts without a defense and with each; random flips may be ten times as many.

    Raises:
        UsageError: A fault or a defense is unknown or named twice, or `most` is below 1.
    """
    if most < 1:
        raise UsageError(f"most: expected at least 1 flip, got {most}; 100 is common")
    _check_once("fault", faults)
    made = [(text, build("fault", *parse_settings("fault", text))) for text in faults]
    return [
        NamedFault(name, fault, guard, defense, most * CONTROL_FACTOR if isinstance(fault, RandomFlips) else most)
        for name, fault in made
        for guard, defense in named_defenses(defenses)
    ]


def named_defenses(texts: Sequence[str]) -> list[tuple[str, WeightDefense | None]]:
    """Return no defense, and the defenses of texts by these.

    Raises:
        UsageError: One is unknown or named twice.
    """
    _check_once("defense", texts)
    return [(NO_DEFENSE, None), *((text, parse_defense(text)) for text in texts)]


def _check_once(kind: str, texts: Sequence[str]) -> None:
    if twice := [text for text in texts if list(texts).count(text) > 1]:
        raise UsageError(f"{kind}: expected each once, got {twice[0]!r} twice; leave one out")
