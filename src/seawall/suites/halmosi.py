"""The set of Halmosi, Mohos and Jelasity: SEA's losses at constant eps, projected Adam, minimum-norm attacks."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.attacks.alma_prox import ALMAProx
from seawall.attacks.apgd import APGD
from seawall.attacks.climb import check_steps
from seawall.attacks.dag import DAG
from seawall.attacks.padam_ce import PAdamCE
from seawall.attacks.padam_cos import PAdamCos
from seawall.attacks.pdpgd import PDPGD
from seawall.losses.attack import JensenShannon, Masked, PixelLoss, Seg, Spherical
from seawall.registry import register
from seawall.suites.member import Attack, Member

LOSSES: dict[str, PixelLoss] = {"masked-ce": Masked(), "seg": Seg(), "js": JensenShannon(), "spherical": Spherical()}
GREY = 1 / 8  # one grey level of 255 as a share of the published eps of 8


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
            ("padam-ce", PAdamCE(steps=short), short),
            ("padam-cos", PAdamCos(steps=short), short),
        ]
        found += [
            (name, APGD(loss=loss, steps=middle, radii=(1.0,), shares=(1.0,)), middle) for name, loss in LOSSES.items()
        ]
        found += [(f"dag-{step:g}", DAG(steps=short, step=255 * step * GREY), short) for step in (0.001, 0.003)]
        found += [("pdpgd", PDPGD(steps=long), long), ("alma-prox", ALMAProx(steps=long, rate=255e-4 * GREY), long)]
        return tuple(Member(f"halmosi {name} {steps}", attack, steps) for name, attack, steps in found)

    def _steps(self, published: int) -> int:
        return round(self.share * published)
