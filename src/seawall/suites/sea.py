"""SEA: three losses, APGD with shrinking balls."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.attacks.balanced_ce import BalancedCE
from seawall.attacks.climb import check_steps
from seawall.attacks.jensen_shannon import JensenShannonAttack
from seawall.attacks.masked_ce import MaskedCE
from seawall.registry import register
from seawall.suites.member import Attack, Member


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
            "masked-ce": MaskedCE(steps=self.steps),
            "balanced-ce": BalancedCE(steps=self.steps, weights=self.weights),
            "js": JensenShannonAttack(steps=self.steps),
        }
        return tuple(Member(f"sea {name} {self.steps}", attack, self.steps) for name, attack in attacks.items())
