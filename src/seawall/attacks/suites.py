"""Suites of attacks: named members with their cost, of which the worst case per chip counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from seawall import registry
from seawall.attacks.alma_prox import ALMAProx
from seawall.attacks.apgd import APGD
from seawall.attacks.ascent import check_steps
from seawall.attacks.iou import IoUAttack
from seawall.attacks.losses import (
    AttackLoss,
    BalancedCrossEntropy,
    CosineLoss,
    JensenShannon,
    MaskedCrossEntropy,
    SegPGDLoss,
    SphericalLoss,
)
from seawall.attacks.minimum_norm import DAG
from seawall.attacks.pdpgd import PDPGD
from seawall.attacks.pgd import PAdam
from seawall.errors import UsageError
from seawall.registry import register
from seawall.types import Attack


class Member(NamedTuple):
    """One attack of a suite.

    Args:
        name: Method name in the rows. It has the suite and the steps, so that two budgets never share a row.
        attack: The attack.
        passes: Forward and backward passes per chip that it takes at most.
    """

    name: str
    attack: Attack
    passes: int


@runtime_checkable
class Suite(Protocol):
    """A frozen value whose members are run one by one; the worst case over them is what counts."""

    def members(self) -> tuple[Member, ...]: ...


def parse_suite(text: str) -> Suite:
    """Return the suite of a text such as "seawall" or "seawall passes=30".

    Raises:
        UsageError: No suite of that name, or a setting is wrong.
    """
    return registry.build("suite", *registry.parse_settings("suite", text))


def named_attacks(suite: Suite) -> Iterator[tuple[str, Attack]]:
    """Yield the name and the attack of every member."""
    yield from ((member.name, member.attack) for member in suite.members())


TWO_MEMBERS_FROM = 60
"""Passes from which on two members are stronger than one with all of the passes."""


@register("suite", "seawall", smoke={"passes": 30})
@dataclass(frozen=True)
class Seawall:
    """The IoU attack twice: with one worth for the IoU of many chips together, and with every chip's own IoU.

    The measurements are in docs/adr/0003-the-seawall-suite.md.

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
        if self.passes < TWO_MEMBERS_FROM:
            quick = IoUAttack(self.klass, steps=self.passes, first=2.0, momentum=0.5)
            return (Member(f"seawall pooled {self.passes}", quick, self.passes),)
        second = self.passes // 2
        first = self.passes - second
        return (
            Member(f"seawall pooled {first}", IoUAttack(self.klass, steps=first), first),
            Member(f"seawall chip {second}", IoUAttack(self.klass, "chip", steps=second), second),
        )


@register("suite", "sea", paper="arXiv:2306.12941", smoke={"steps": 10})
@dataclass(frozen=True)
class SEA:
    """Masked, balanced masked and Jensen-Shannon losses, each APGD in balls of 2, 1.5 and 1 eps.

    Args:
        steps: Steps of each member; 300 as published.
        weights: Weight per class of the balanced loss; empty weighs by each image's own pixels.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: valid pixels only, from the first
    evaluation on.
    """

    steps: int = 300
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_steps("sea", self.steps)

    def members(self) -> tuple[Member, ...]:
        """Return the attacks in the published order."""
        attacks: dict[str, Attack] = {
            "masked-ce": APGD(loss=MaskedCrossEntropy(), steps=self.steps),
            "balanced-ce": APGD(loss=BalancedCrossEntropy(self.weights), steps=self.steps),
            "js": APGD(loss=JensenShannon(), steps=self.steps),
        }
        return tuple(Member(f"sea {name} {self.steps}", attack, self.steps) for name, attack in attacks.items())


HALMOSI_LOSSES: dict[str, AttackLoss] = {
    "masked-ce": MaskedCrossEntropy(),
    "seg": SegPGDLoss(),
    "js": JensenShannon(),
    "spherical": SphericalLoss(),
}
GREY_LEVEL_SHARE = 1 / 8  # one grey level of 255 as a share of the published eps of 8


@register("suite", "halmosi", paper="arXiv:2407.09150", smoke={"share": 0.04})
@dataclass(frozen=True)
class Halmosi:
    """Two PAdam, four APGD at constant eps and four minimum-norm runs; ten attacks, 3 000 passes.

    Args:
        share: Share of the published steps of every member, for a cheaper run.

    Paper: Halmosi, Mohos, Jelasity 2024, arXiv:2407.09150, section 4. Differs: published steps in [0, 1] are shares of
    eps here, with eps = 8/255; DAG keeps its best image; margins work for two classes; the composition takes each
    chip's worst case, which the released code does not.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        check_steps("halmosi", self._steps(200))

    def members(self) -> tuple[Member, ...]:
        """Return the attacks in the order of the released list."""
        short, middle, long = (self._steps(steps) for steps in (200, 300, 500))
        found: list[tuple[str, Attack, int]] = [
            ("padam-ce", PAdam(steps=short), short),
            ("padam-cos", PAdam(loss=CosineLoss(), steps=short), short),
        ]
        found += [
            (name, APGD(loss=loss, steps=middle, radii=(1.0,), shares=(1.0,)), middle)
            for name, loss in HALMOSI_LOSSES.items()
        ]
        found += [
            (f"dag-{step:g}", DAG(steps=short, step=255 * step * GREY_LEVEL_SHARE), short) for step in (0.001, 0.003)
        ]
        found += [
            ("pdpgd", PDPGD(steps=long), long),
            ("alma-prox", ALMAProx(steps=long, rate=255e-4 * GREY_LEVEL_SHARE), long),
        ]
        return tuple(Member(f"halmosi {name} {steps}", attack, steps) for name, attack, steps in found)

    def _steps(self, published: int) -> int:
        return round(self.share * published)
