"""The text form of threats: "linf 1% reflectance", "l2 0.5 reflectance", "linf 2x noise bands=B03,B08"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, cast

from seawall.errors import UsageError, did_you_mean
from seawall.geo.sensors import band_noise
from seawall.threat.model import DEFAULT_HIGH, DEFAULT_LOW, UNIT_NAMES, PerBand, ThreatModel
from seawall.threat.region import Region, parse_region
from seawall.types import DECIBEL_UNITS, ModelSpec

UNITS_BY_NAME: dict[str, tuple[str, ...]] = {
    "reflectance": ("reflectance",),
    "db": DECIBEL_UNITS,
    "stretched": ("stretched",),
}
THREAT_OPTIONS = ("bands", "high", "low", "region", "sign", "spectrum")
THREAT_PATTERN = re.compile(
    r"(?P<norm>[a-z0-9]+)\s+(?P<eps>[-+0-9.,/%e\s]*[0-9.%])(?P<times>x)?\s*(?P<unit>[a-z]*)", re.IGNORECASE
)

LARGEST_EPS: Mapping[str, float] = {"reflectance": 1.0, "stretched": 1.0, "db": 60.0}
"""The largest linf budget that text may name: no two pixels differ by more, so a larger one has the wrong unit."""


def parse_threat(
    text: str,
    spec: ModelSpec,
    *,
    noise: Mapping[str, float] | None = None,
    ranges: Mapping[str, float] | None = None,
    haze: Mapping[str, float] | None = None,
) -> ThreatModel:
    """Return the threat of a text, checked against the model's unit and bands.

    The form is `<linf|l2|haze|speckle> <eps> <unit> [option=value ...]`. Units: `reflectance`, `dB`, `stretched`,
    `% reflectance`, `x noise` (multiples of each band's sensor noise), `% range` (share of each band's range).
    One eps, or one per band with commas. Options: `bands=B03,B08`, `region=patch:row,col,height,width`,
    `region=clouds:0.3`, `sign=up`, `spectrum=1,0.8,...`, `low=0`, `high=none`. Reflectance has `low=0`, a stretched
    picture also `high=1` by default.

    Args:
        text: The threat.
        spec: Whose bands and unit it must fit.
        noise: Noise of each band in data units, for `x noise`; None takes the published noise of optical bands.
        ranges: Dynamic range of each band in data units, for `% range`.
        haze: Relative strength of haze per band, for `haze` without `spectrum=`.

    Raises:
        UsageError: No unit, a unit that is not the model's, a negative eps, an unknown band or option.

    Example:
        >>> radar = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
        >>> parse_threat("linf 0.5 dB", radar).eps
        0.5
        >>> parse_threat("speckle 1x noise", radar, noise={"VV": 1.5, "VH": 2.0}).eps
        (1.5, 2.0)
    """
    words = text.split()
    options = _parse_options([word for word in words if "=" in word], text)
    plain = " ".join(word for word in words if "=" not in word)
    form = THREAT_PATTERN.fullmatch(plain)
    if not form:
        raise UsageError(f"threat: expected '<norm> <eps> <unit>', got {text!r}; write it like 'linf 1% reflectance'")
    kind = form["norm"].lower()
    if kind not in ("linf", "l2", "haze", "speckle"):
        raise UsageError(
            f"threat: unknown norm {form['norm']!r} in {text!r}; {did_you_mean(kind, ('haze', 'l2', 'linf', 'speckle'))}"
        )
    if kind == "speckle" and spec.unit not in UNITS_BY_NAME["db"]:
        raise UsageError(f"threat: expected a model in dB for speckle, got {spec.unit}; use linf or l2")
    eps = _parse_eps(form, spec, text, noise, ranges)
    spectrum = _parse_spectrum(kind, options, spec, haze)
    norm: Literal["linf", "l2"] = "l2" if kind == "l2" else "linf"
    return ThreatModel(
        norm,
        eps,
        spec.unit,
        low=_parse_bound(options.get("low"), DEFAULT_LOW[spec.unit], spec),
        high=_parse_bound(options.get("high"), DEFAULT_HIGH[spec.unit], spec),
        bands=_parse_bands(options.get("bands"), spec),
        region=_parse_region(options.get("region"), spec),
        sign=cast(Literal["both", "up", "down"], options.get("sign", "up" if kind == "haze" else "both")),
        spectrum=spectrum,
        names=spec.bands,
    )


def _parse_eps(
    form: re.Match[str],
    spec: ModelSpec,
    text: str,
    noise: Mapping[str, float] | None,
    ranges: Mapping[str, float] | None,
) -> PerBand:
    unit = form["unit"].lower()
    times = bool(form["times"])
    parts = [part.strip() for part in form["eps"].split(",")]
    percent = any(part.endswith("%") for part in parts)
    amounts = tuple(_parse_number(part.removesuffix("%"), text) / (100 if part.endswith("%") else 1) for part in parts)
    if min(amounts) < 0:
        raise UsageError(f"threat: expected eps >= 0, got {text!r}; 0 means no attack at all")
    if unit in ("noise", "range"):
        published = band_noise(spec.bands) if noise is None else noise
        table, prefix = (published, "x") if unit == "noise" else (ranges, "%")
        if times != (unit == "noise") or percent != (unit == "range") or len(amounts) != 1:
            raise UsageError(
                f"threat: expected one amount in '{prefix} {unit}', got {text!r}; write '2x noise' or '1% range'"
            )
        return tuple(amounts[0] * strength for strength in _table_per_band(table, unit, spec))
    if unit not in UNITS_BY_NAME or times:
        raise UsageError(
            f"threat: expected eps with a unit, got {text!r}; add one, such as 'linf 1% reflectance' or 'linf 0.5 dB'"
        )
    if spec.unit not in UNITS_BY_NAME[unit]:
        raise UsageError(
            f"threat: expected {UNIT_NAMES[spec.unit]}, the model's unit, got {text!r}; convert the budget"
        )
    if percent and unit == "db":
        raise UsageError(
            f"threat: expected data units, got a percentage of {unit} in {text!r}; write '% range' or a number"
        )
    if form["norm"].lower() == "linf" and LARGEST_EPS[unit] < max(amounts) < math.inf:
        raise UsageError(
            f"threat: expected at most {LARGEST_EPS[unit]:g} {form['unit']}, which is the whole range, got {text!r}; grey levels and percentages need their unit"
        )
    if len(amounts) not in (1, len(spec.bands)):
        raise UsageError(
            f"threat: expected 1 or {len(spec.bands)} values of eps, got {len(amounts)}; give one per band"
        )
    return amounts[0] if len(amounts) == 1 else amounts


def _parse_number(text: str, where: str) -> float:
    top, _, bottom = text.strip().partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError) as bad:
        raise UsageError(f"threat: expected a number, got {text!r} in {where!r}; write it like 0.01 or 1%") from bad


def _parse_per_band(text: str, what: str, spec: ModelSpec) -> tuple[float, ...]:
    values = tuple(_parse_number(part, f"{what}={text}") for part in text.split(","))
    if len(values) not in (1, len(spec.bands)):
        raise UsageError(
            f"threat: expected 1 or {len(spec.bands)} values of {what}, got {len(values)}; give one per band"
        )
    return values


def _table_per_band(table: Mapping[str, float] | None, what: str, spec: ModelSpec) -> tuple[float, ...]:
    lacking = [band for band in spec.bands if band not in (table or {})]
    if table is None or lacking:
        raise UsageError(
            f"threat: expected the {what} of every band, got none for {', '.join(lacking)}; give eps in data units"
        )
    return tuple(float(table[band]) for band in spec.bands)


def _parse_options(words: list[str], text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in THREAT_OPTIONS:
            raise UsageError(f"threat: unknown option {name!r} in {text!r}; {did_you_mean(name, THREAT_OPTIONS)}")
        if not value or name in options:
            raise UsageError(f"threat: expected {name}=value once, got {text!r}; say it once, without spaces")
        options[name] = value
    return options


def _parse_bands(text: str | None, spec: ModelSpec) -> tuple[int, ...] | None:
    if text is None:
        return None
    chosen = []
    for name in text.split(","):
        if re.fullmatch(r"#\d+", name) and int(name[1:]) < len(spec.bands):
            chosen.append(int(name[1:]))
        elif name in spec.bands:
            chosen.append(spec.bands.index(name))
        else:
            raise UsageError(f"threat: expected bands of the model, got {name!r}; {did_you_mean(name, spec.bands)}")
    return tuple(sorted(set(chosen)))


def _parse_region(text: str | None, spec: ModelSpec) -> Region | None:
    return None if text is None or text == "everywhere" else parse_region(text, spec)


def _parse_bound(text: str | None, usual: float | None, spec: ModelSpec) -> PerBand | None:
    if text is None:
        return usual
    if text == "none":
        return None
    values = _parse_per_band(text, "a bound", spec)
    return values[0] if len(values) == 1 else values


def _parse_spectrum(
    kind: str, options: Mapping[str, str], spec: ModelSpec, haze: Mapping[str, float] | None
) -> tuple[float, ...] | None:
    if "spectrum" in options:
        values = _parse_per_band(options["spectrum"], "spectrum", spec)
        return values if len(values) == len(spec.bands) else values * len(spec.bands)
    return _table_per_band(haze, "haze spectrum", spec) if kind == "haze" else None
