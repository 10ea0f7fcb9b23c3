"""Numbers and threats as text for readers: few digits, thin spaces, an en dash where there is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seawall.records import CorruptionFacts, ThreatFacts

DASH = "–"
MINUS = "−"
THIN_SPACE = "\u202f"


def ratio_text(value: float | None, digits: int = 2) -> str:
    """Format a ratio such as an IoU.

    Example:
        >>> ratio_text(0.7349), ratio_text(None), ratio_text(-0.0001)
        ('0.73', '–', '0.00')
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def percent_text(value: float | None, digits: int = 0) -> str:
    """Format a share as a percentage.

    Example:
        >>> percent_text(0.737), percent_text(0.004), percent_text(None)
        ('74\u202f%', '0.4\u202f%', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if digits == 0 and 0 < abs(value) < 0.0095:
        digits = 1 if abs(value) >= 0.00095 else 2
    return f"{100 * value:.{digits}f}{THIN_SPACE}%".replace("-", MINUS)


def count_text(value: float | None) -> str:
    """Format a whole number with thin spaces between thousands.

    Example:
        >>> count_text(1234567)
        '1\u202f234\u202f567'
    """
    return DASH if value is None else f"{value:,.0f}".replace(",", THIN_SPACE).replace("-", MINUS)


def number_text(value: float | None) -> str:
    """Format any number with up to three significant digits.

    Example:
        >>> number_text(0.01), number_text(12.345), number_text(1500.0)
        ('0.01', '12.3', '1\u202f500')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value and abs(value) >= 1000:
        return count_text(value)
    return f"{value:.3g}".replace("-", MINUS)


def area_text(km2: float | None) -> str:
    """Format an area in km² with its unit; areas under 0.1 km² are given in hectares.

    Example:
        >>> area_text(12.34), area_text(0.042), area_text(1234.0)
        ('12.3\u202fkm²', '4.2\u202fha', '1\u202f234\u202fkm²')
    """
    if km2 is None or not math.isfinite(km2):
        return DASH
    if 0 < abs(km2) < 0.1:
        return f"{number_text(float(f'{100 * km2:.2g}'))}{THIN_SPACE}ha"
    return f"{count_text(km2) if abs(km2) >= 1000 else number_text(km2)}{THIN_SPACE}km²"


def duration_text(value: float | None) -> str:
    """Format a duration in seconds.

    Example:
        >>> duration_text(0.25), duration_text(75), duration_text(3960)
        ('0.25\u202fs', '1\u202fmin 15\u202fs', '1\u202fh 6\u202fmin')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value < 60:
        return f"{value:.2g}{THIN_SPACE}s" if value < 10 else f"{value:.0f}{THIN_SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{THIN_SPACE}min" + (f" {rest}{THIN_SPACE}s" if rest else "")
    return f"{minutes // 60}{THIN_SPACE}h {minutes % 60}{THIN_SPACE}min"


def join_words(names: Sequence[str], most: int = 0) -> str:
    """Join names with commas and “and”; of more than `most` only the number of the rest is given.

    Example:
        >>> join_words(["a", "b", "c"]), join_words(["a", "b", "c"], most=2)
        ('a, b and c', 'a, b and 1 more')
    """
    shown = list(names)
    if most and len(shown) > most:
        shown = [*shown[:most], f"{len(names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def threat_sizes_text(texts: Sequence[str]) -> str:
    """Join the texts of threats; those that differ in the budget alone share their other words.

    Example:
        >>> threat_sizes_text(["linf 0.5% reflectance", "linf 1% reflectance"])
        'linf 0.5% and 1% reflectance'
        >>> threat_sizes_text(["linf 1% reflectance", "l2 0.5 reflectance"])
        'linf 1% reflectance and l2 0.5 reflectance'
    """
    parts = [text.split() for text in texts]
    if len(parts) > 1 and all(len(p) >= 3 and p[0] == parts[0][0] and p[2:] == parts[0][2:] for p in parts):
        return f"{parts[0][0]} {join_words([p[1] for p in parts])} {' '.join(parts[0][2:])}"
    return join_words(list(texts))


def plural(n: int, one: str, more: str = "") -> str:
    """Format a number with the singular or plural of what is counted.

    Example:
        >>> plural(1, "place"), plural(3, "place")
        ('1 place', '3 places')
    """
    return f"{count_text(n)} {one if n == 1 else more or one + 's'}"


def level_text(facts: CorruptionFacts) -> str:
    """Return the physical quantity at a severity, with its unit.

    Example:
        >>> level_text(CorruptionFacts(1.0, 12.0, "wind speed", "m/s"))
        'wind speed = 12 m/s'
    """
    return f"{facts.quantity} = {number_text(facts.level)} {facts.level_unit}".rstrip()


NO_THREAT = ThreatFacts()


@dataclass(frozen=True)
class ThreatLabel:
    """A threat as readers see it, made from the fields of its rows.

    Args:
        text: The threat as text; it is shown where there are no fields, and never parsed.
        facts: Norm, budget, unit, bands, region and limits.
    """

    text: str
    facts: ThreatFacts = NO_THREAT

    @property
    def largest_eps(self) -> float:
        """The largest eps of any band, in data units: the position on the axis of a chart."""
        return max(self.facts.eps, default=0.0)

    @property
    def per_band(self) -> bool:
        """Whether eps differs between bands."""
        return len(set(self.facts.eps)) > 1

    @property
    def family(self) -> tuple[str, ...]:
        """The key of the threats that make one curve over eps; budgets per band belong together if proportional."""
        facts = self.facts
        shape = tuple(f"{eps / (self.largest_eps or 1.0):.4g}" for eps in facts.eps) if self.per_band else ()
        return (facts.norm, facts.unit, *facts.bands, "|", facts.region, facts.limits, *shape)

    @property
    def family_name(self) -> str:
        """Everything but the size of the budget.

        Example:
            >>> ThreatLabel("", ThreatFacts("linf", (0.01,), "reflectance", ("B03",))).family_name
            'linf, reflectance, only B03'
        """
        facts = self.facts
        parts = [facts.norm, facts.unit + (" per band" if self.per_band else "")]
        parts += [f"only {join_words(facts.bands)}"] if facts.bands else []
        return ", ".join(part for part in (*parts, facts.region, facts.limits) if part)

    @property
    def amount(self) -> str:
        """The budget without the name of its unit; of budgets per band the smallest and the largest.

        Example:
            >>> ThreatLabel("", ThreatFacts("linf", (0.01,), "reflectance")).amount
            '1\u202f%'
            >>> ThreatLabel("", ThreatFacts("linf", (0.0013, 0.0018), "reflectance")).amount
            '0.13 to 0.18\u202f%'
        """
        if not self.facts.eps:
            return self.text
        ends = dict.fromkeys((min(self.facts.eps), max(self.facts.eps)))
        share = self.facts.unit == "reflectance"
        shown = " to ".join(number_text(100 * eps if share else eps) for eps in ends)
        return shown + (f"{THIN_SPACE}%" if share else "")

    @property
    def budget(self) -> str:
        """The budget with its unit.

        Example:
            >>> ThreatLabel("", ThreatFacts("linf", (0.01,), "reflectance")).budget
            '1\u202f% reflectance'
            >>> ThreatLabel("", ThreatFacts("linf", (0.0013, 0.0018), "reflectance")).budget
            '0.13 to 0.18\u202f% reflectance (per band)'
        """
        unit = self.facts.unit if self.facts.eps else ""
        return " ".join(part for part in (self.amount, unit, "(per band)" if self.per_band else "") if part)
