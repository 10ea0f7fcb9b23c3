"""What a suite is: named attacks, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from seawall import registry
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel, Setting


class Attack(Protocol):
    """Adversarial images of a batch, inside the threat."""

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor: ...


class Member(NamedTuple):
    """One attack of a suite.

    Args:
        name: Method name in the rows. It says the suite and the steps, so that two budgets never share a row.
        attack: The attack.
        passes: Forward and backward passes per chip that it takes at most.
    """

    name: str
    attack: Attack
    passes: int


class Suite(Protocol):
    """A frozen value whose members are run one by one; the worst case over them is what counts."""

    def members(self) -> tuple[Member, ...]: ...


def parse_suite(text: str) -> Suite:
    """Return the suite of a text such as "seawall" or "seawall passes=30".

    Raises:
        UsageError: No suite of that name, or a setting is wrong.
    """
    name, *words = text.split()
    settings: dict[str, Setting] = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found or not value:
            raise UsageError(f"suite: expected 'name setting=value', got {text!r}; write it like 'seawall passes=30'")
        settings[key] = value
    return cast(Suite, registry.build("suite", name, settings))


def cases(suite: Suite) -> Iterator[tuple[str, Attack]]:
    """Yield the name and the attack of every member."""
    yield from ((member.name, member.attack) for member in suite.members())
