"""How numbers are said: few digits, thin spaces, an en dash where there is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DASH = "–"
MINUS = "−"
THIN = "\u202f"


def ratio(value: float | None, digits: int = 2) -> str:
    """Say a ratio such as an IoU.

    Example:
        >>> ratio(0.7349), ratio(None), ratio(-0.0001)
        ('0.73', '–', '0.00')
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def percent(value: float | None, digits: int = 0) -> str:
    """Say a share as a percentage.

    Example:
        >>> percent(0.737), percent(0.004), percent(None)
        ('74\u202f%', '0.4\u202f%', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if digits == 0 and 0 < abs(value) < 0.0095:
        digits = 1 if abs(value) >= 0.00095 else 2
    return f"{100 * value:.{digits}f}{THIN}%".replace("-", MINUS)


def count(value: float | None) -> str:
    """Say a whole number with thin spaces between thousands.

    Example:
        >>> count(1234567)
        '1\u202f234\u202f567'
    """
    return DASH if value is None else f"{value:,.0f}".replace(",", THIN).replace("-", MINUS)


def plain(value: float | None) -> str:
    """Say any number with up to three significant digits.

    Example:
        >>> plain(0.01), plain(12.345), plain(1500.0)
        ('0.01', '12.3', '1\u202f500')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value and abs(value) >= 1000:
        return count(value)
    return f"{value:.3g}".replace("-", MINUS)


def area(km2: float | None) -> str:
    """Say an area with its unit; small ones in hectares.

    Example:
        >>> area(12.34), area(0.042), area(1234.0)
        ('12.3\u202fkm²', '4.2\u202fha', '1\u202f234\u202fkm²')
    """
    if km2 is None or not math.isfinite(km2):
        return DASH
    if 0 < abs(km2) < 0.1:
        return f"{plain(float(f'{100 * km2:.2g}'))}{THIN}ha"
    return f"{count(km2) if abs(km2) >= 1000 else plain(km2)}{THIN}km²"


def seconds(value: float | None) -> str:
    """Say a duration.

    Example:
        >>> seconds(0.25), seconds(75), seconds(3960)
        ('0.25\u202fs', '1\u202fmin 15\u202fs', '1\u202fh 6\u202fmin')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value < 60:
        return f"{value:.2g}{THIN}s" if value < 10 else f"{value:.0f}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min" + (f" {rest}{THIN}s" if rest else "")
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def listed(names: Sequence[str], most: int = 0) -> str:
    """Join names as a sentence does.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2)
        ('a, b and c', 'a, b and 1 more')
    """
    shown = list(names)
    if most and len(shown) > most:
        shown = [*shown[:most], f"{len(names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def sizes(texts: Sequence[str]) -> str:
    """Say several threats of one family without repeating its words.

    Example:
        >>> sizes(["linf 0.5% reflectance", "linf 1% reflectance"])
        'linf 0.5% and 1% reflectance'
        >>> sizes(["linf 1% reflectance", "l2 0.5 reflectance"])
        'linf 1% reflectance and l2 0.5 reflectance'
    """
    parts = [text.split() for text in texts]
    if len(parts) > 1 and all(len(p) >= 3 and p[0] == parts[0][0] and p[2:] == parts[0][2:] for p in parts):
        return f"{parts[0][0]} {listed([p[1] for p in parts])} {' '.join(parts[0][2:])}"
    return listed(list(texts))


def many(n: int, one: str, more: str = "") -> str:
    """Say how many, with the right plural.

    Example:
        >>> many(1, "place"), many(3, "place")
        ('1 place', '3 places')
    """
    return f"{count(n)} {one if n == 1 else more or one + 's'}"


@dataclass(frozen=True)
class Budget:
    """What an adversary may do, as the rows say it.

    Args:
        text: The threat as text; it only names the threat and is never read.
        norm: "linf", "l2" or another norm; "" where there is no threat.
        eps: Budget in data units: one number, or one per band.
        unit: Unit of eps, as rows say it: "reflectance", "dB" or "stretched".
        bands: Bands that may be touched; empty means all.
        region: Pixels that may be touched, as text; empty means every seen one.
        limits: What else bounds the adversary, as text.
    """

    text: str
    norm: str = ""
    eps: tuple[float, ...] = ()
    unit: str = ""
    bands: tuple[str, ...] = ()
    region: str = ""
    limits: str = ""

    @property
    def size(self) -> float:
        """The place on an axis: the largest band's eps, in data units."""
        return max(self.eps, default=0.0)

    @property
    def family(self) -> tuple[str, ...]:
        """Threats of one family make one curve over eps; of per-band budgets those with the same proportions."""
        shape = tuple(f"{eps / (self.size or 1.0):.4g}" for eps in self.eps) if len(set(self.eps)) > 1 else ()
        return (self.norm, self.unit, *self.bands, "|", self.region, self.limits, *shape)

    @property
    def name(self) -> str:
        """The family as a reader says it.

        Example:
            >>> Budget("", "linf", (0.01,), "reflectance", ("B03",)).name
            'linf, reflectance, only B03'
        """
        parts = [self.norm, self.unit + (" per band" if len(set(self.eps)) > 1 else "")]
        parts += [f"only {listed(self.bands)}"] if self.bands else []
        return ", ".join(part for part in (*parts, self.region, self.limits) if part)

    @property
    def amount(self) -> str:
        """The size without its unit's name; of per-band budgets the smallest and the largest.

        Example:
            >>> Budget("", "linf", (0.01,), "reflectance").amount
            '1\u202f%'
            >>> Budget("", "linf", (0.0013, 0.0018), "reflectance").amount
            '0.13 to 0.18\u202f%'
        """
        if not self.eps:
            return self.text
        ends = dict.fromkeys((min(self.eps), max(self.eps)))
        share = self.unit == "reflectance"
        return " to ".join(plain(100 * eps if share else eps) for eps in ends) + (f"{THIN}%" if share else "")

    @property
    def spoken(self) -> str:
        """The size as a reader says it.

        Example:
            >>> Budget("", "linf", (0.01,), "reflectance").spoken, Budget("", "linf", (0.5,), "dB").spoken
            ('1\u202f% reflectance', '0.5 dB')
            >>> Budget("", "linf", (0.0013, 0.0018), "reflectance").spoken
            '0.13 to 0.18\u202f% reflectance (per band)'
        """
        per_band = "(per band)" if len(set(self.eps)) > 1 else ""
        return " ".join(part for part in (self.amount, self.unit if self.eps else "", per_band) if part)
