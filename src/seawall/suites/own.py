"""seawall's own suite: the most harm to a class's IoU for the passes given."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.attacks.iou import IoUAttack
from seawall.errors import UsageError
from seawall.registry import register
from seawall.suites.member import Member

ALONE = 60
"""Below so many passes one long climb beats two short ones."""


@register("suite", "seawall", smoke={"passes": 30})
@dataclass(frozen=True)
class Seawall:
    """The IoU attack twice: with one worth for the IoU of many chips together, and with every chip's own IoU.

    What was tried and measured is in docs/adr/0003-the-seawall-suite.md.

    Args:
        passes: Forward and backward passes per chip of all members together; below 60 only the first member runs.
        klass: Class whose IoU is attacked; "" for water, or the last class where there is none.
    """

    passes: int = 300
    klass: str = ""

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"seawall: expected passes >= 1, got {self.passes}; 300 is usual, 30 is quick")

    def members(self) -> tuple[Member, ...]:
        """Return the attacks: first the one for the IoU of many chips together, then the one for each chip's own."""
        if self.passes < ALONE:
            quick = IoUAttack(self.klass, steps=self.passes, first=2.0, momentum=0.5)
            return (Member(f"seawall pooled {self.passes}", quick, self.passes),)
        second = self.passes // 2
        first = self.passes - second
        return (
            Member(f"seawall pooled {first}", IoUAttack(self.klass, steps=first), first),
            Member(f"seawall chip {second}", IoUAttack(self.klass, "chip", steps=second), second),
        )
