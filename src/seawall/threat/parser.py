"""The text form of threats: "linf 1% reflectance", "l2 0.5 reflectance", "linf 2x noise bands=B03,B08"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

from seawall.bands import channels_of
from seawall.errors import UsageError, did_you_mean
from seawall.geo.sensors import band_noise
from seawall.threat.model import DEFAULT_HIGH, DEFAULT_LOW, UNIT_NAMES, PerBand, ThreatModel, default_bounds
from seawall.threat.region import Region, parse_region
from seawall.types import DECIBEL_UNITS, ModelSpec, Unit, single_unit

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

    Of a model whose bands have several units, a threat touches the bands in its own unit: `linf 0.5 dB` those of the radar. Bands of both are touched
    within `linf 0.5 dB + linf 1% reflectance`. `bands=s2` names all bands of a source.

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
    tables = {"noise": noise, "range": ranges, "haze": haze}
    if " + " in text:
        return _joint_threat([_parse_part(part, spec, tables) for part in text.split(" + ")], text, spec)
    return _parse_part(text, spec, tables)


BandTables = Mapping[str, Mapping[str, float] | None]
"""Values of bands by name, for budgets in "noise" and in "range", and for "haze"."""


def _parse_part(text: str, spec: ModelSpec, tables: BandTables) -> ThreatModel:
    """Return the threat of a text that names one unit, parsed for the bands in that unit alone."""
    if not isinstance(spec.unit, tuple):
        return _parse_single(text, spec, tables)
    channels = _channels_in_unit(text, spec, spec.unit, tables)
    return _for_all_bands(_parse_single(text, spec.of_channels(channels), tables), channels, text, spec)


def _channels_in_unit(text: str, spec: ModelSpec, units: tuple[Unit, ...], tables: BandTables) -> tuple[int, ...]:
    """Return the bands that a threat without `bands=` touches: those in its unit, or those that its table has."""
    word = next((word.lower() for word in text.split()[::-1] if "=" not in word), "")
    if word in ("noise", "range"):
        table = band_noise(spec.bands) if word == "noise" and tables[word] is None else tables[word] or {}
        channels = tuple(at for at, band in enumerate(spec.bands) if band in table)
    else:
        channels = tuple(at for at, unit in enumerate(units) if unit in UNITS_BY_NAME.get(word, ()))
    if len({units[at] for at in channels}) != 1:
        known = ", ".join(dict.fromkeys(UNIT_NAMES[unit] for unit in units))
        raise UsageError(
            f"threat: expected eps in one unit of the model's bands ({known}), got {text!r}; write one threat per unit, or "
            "'linf 0.5 dB + linf 1% reflectance' for both at once"
        )
    return channels


def _for_all_bands(threat: ThreatModel, channels: Sequence[int], text: str, spec: ModelSpec) -> ThreatModel:
    """Return a threat of some bands as one of an image with all bands, of which it touches no others."""

    def widened(values: PerBand | None, rest: float) -> PerBand | None:
        if not isinstance(values, tuple):
            return values
        own = dict(zip(channels, values, strict=True))
        return tuple(own.get(at, rest) for at in range(len(spec.bands)))

    eps, spectrum = widened(threat.eps, 0.0), widened(threat.spectrum, 0.0)
    touched = range(len(channels)) if threat.bands is None else threat.bands
    return replace(
        threat,
        eps=0.0 if eps is None else eps,
        low=widened(threat.low, -math.inf),
        high=widened(threat.high, math.inf),
        bands=tuple(channels[at] for at in touched),
        region=_parse_region(_parse_options([word for word in text.split() if "=" in word], text).get("region"), spec),
        spectrum=spectrum if isinstance(spectrum, tuple) else None,
        names=spec.bands,
    )


def _joint_threat(parts: Sequence[ThreatModel], text: str, spec: ModelSpec) -> ThreatModel:
    """Return the threat that allows each part in its bands, at the same time.

    Raises:
        UsageError: The bands have one unit, or a part has another norm than linf, an option, or a unit that another has.
    """
    units = [part.unit for part in parts if not isinstance(part.unit, tuple)]
    plain = all(
        part == ThreatModel("linf", part.eps, part.unit, *default_bounds(part.unit), part.bands) for part in parts
    )
    if not isinstance(spec.unit, tuple) or not plain or len(set(units)) < len(parts):
        raise UsageError(
            f"threat: expected one linf budget per unit and no options, joined by ' + ', got {text!r}; for chips of one unit "
            "write one budget"
        )
    eps = [0.0] * len(spec.bands)
    for part in parts:
        for band in part.bands or ():
            eps[band] = part.eps[band] if isinstance(part.eps, tuple) else part.eps
    touched = sorted({band for part in parts for band in part.bands or ()})
    bands = None if len(touched) == len(eps) else tuple(touched)
    return ThreatModel("linf", tuple(eps), spec.unit, *default_bounds(spec.unit), bands, names=spec.bands)


def _parse_single(text: str, spec: ModelSpec, tables: BandTables) -> ThreatModel:
    """Return the threat of a text for bands that share one unit."""
    unit = single_unit(spec.unit, "threat")
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
    if kind == "speckle" and unit not in UNITS_BY_NAME["db"]:
        raise UsageError(f"threat: expected a model in dB for speckle, got {unit}; use linf or l2")
    bands = _parse_bands(options.get("bands"), spec)
    eps = _parse_eps(form, spec, text, tables, bands)
    spectrum = _parse_spectrum(kind, options, spec, tables["haze"])
    norm: Literal["linf", "l2"] = "l2" if kind == "l2" else "linf"
    return ThreatModel(
        norm,
        eps,
        unit,
        low=_parse_bound(options.get("low"), DEFAULT_LOW[unit], spec),
        high=_parse_bound(options.get("high"), DEFAULT_HIGH[unit], spec),
        bands=bands,
        region=_parse_region(options.get("region"), spec),
        sign=cast(Literal["both", "up", "down"], options.get("sign", "up" if kind == "haze" else "both")),
        spectrum=spectrum,
        names=spec.bands,
    )


def _parse_eps(
    form: re.Match[str],
    spec: ModelSpec,
    text: str,
    tables: BandTables,
    bands: tuple[int, ...] | None,
) -> PerBand:
    own = single_unit(spec.unit, "threat")
    unit = form["unit"].lower()
    times = bool(form["times"])
    parts = [part.strip() for part in form["eps"].split(",")]
    percent = any(part.endswith("%") for part in parts)
    amounts = tuple(_parse_number(part.removesuffix("%"), text) / (100 if part.endswith("%") else 1) for part in parts)
    if min(amounts) < 0:
        raise UsageError(f"threat: expected eps >= 0, got {text!r}; 0 means no attack at all")
    if unit in ("noise", "range"):
        published = band_noise(spec.bands) if tables["noise"] is None else tables["noise"]
        table, prefix = (published, "x") if unit == "noise" else (tables["range"], "%")
        if times != (unit == "noise") or percent != (unit == "range") or len(amounts) != 1:
            raise UsageError(
                f"threat: expected one amount in '{prefix} {unit}', got {text!r}; write '2x noise' or '1% range'"
            )
        return tuple(amounts[0] * strength for strength in _table_per_band(table, unit, spec))
    if unit not in UNITS_BY_NAME or times:
        raise UsageError(
            f"threat: expected eps with a unit, got {text!r}; add one, such as 'linf 1% reflectance' or 'linf 0.5 dB'"
        )
    if own not in UNITS_BY_NAME[unit]:
        raise UsageError(f"threat: expected {UNIT_NAMES[own]}, the model's unit, got {text!r}; convert the budget")
    if percent and unit == "db":
        raise UsageError(
            f"threat: expected data units, got a percentage of {unit} in {text!r}; write '% range' or a number"
        )
    if form["norm"].lower() == "linf" and LARGEST_EPS[unit] < max(amounts) < math.inf:
        raise UsageError(
            f"threat: expected at most {LARGEST_EPS[unit]:g} {form['unit']}, which is the whole range, got {text!r}; grey levels and percentages need their unit"
        )
    if bands is not None and len(amounts) == len(bands) > 1:
        touched = dict(zip(bands, amounts, strict=True))
        return tuple(touched.get(band, 0.0) for band in range(len(spec.bands)))
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
    chosen: list[int] = []
    for name in text.split(","):
        if re.fullmatch(r"#\d+", name) and int(name[1:]) < len(spec.bands):
            chosen.append(int(name[1:]))
        else:
            chosen += channels_of([name], spec.bands, "threat")
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
