"""Noise as one line of text: `dilate 10%`, `erode 30 m gsd_m=10`, `symmetric 20% classes=3`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import cast

from seawall.errors import UsageError
from seawall.registry import build, entries, find
from seawall.types import LabelNoise, Setting

_AMOUNT = re.compile(r"^(\d+\.?\d*|\.\d+)\s*(%|m|px)?$")


def parse_noise(text: str, settings: Mapping[str, Setting] | None = None) -> LabelNoise:
    """Read a label noise from text: its name, its budget, and any settings as key=value.

    A budget ends in "%" (a share), "m" (shoreline meters) or "px" (the same in pixels); a bare number is a share from
    0 to 1. A shift has a length, so it needs "m" or "px". Without a budget only noises are read that have a natural
    one: a whole matrix, or the whole label of another source.

    Args:
        text: Such as "dilate 10%" or "erode 30 m gsd_m=10 exact=true".
        settings: More settings, such as `gsd_m` of the data; the text wins.

    Raises:
        UsageError: The text names no noise, or a setting is unknown or of the wrong type.

    Example:
        >>> noise = parse_noise("dilate 10% exact=true")
        >>> noise.budget, noise.exact
        (0.1, True)
    """
    name, given = read_noise(text)
    return cast(LabelNoise, build("noise", name, {**(settings or {}), **given}))


def read_noise(text: str) -> tuple[str, dict[str, Setting]]:
    """Read the name and the settings of a label noise from text, without building it.

    Raises:
        UsageError: The text names no noise, or a word is neither a budget nor key=value.

    Example:
        >>> read_noise("dilate 30 m exact=true")
        ('dilate', {'budget': 30.0, 'of': 'meters', 'exact': True})
    """
    words = re.sub(r"(?<=\d)\s+(?=(%|m|px)(\s|$))", "", text.strip()).split()
    if not words:
        raise UsageError("noise: expected a name and a budget, got nothing; such as 'dilate 10%'")
    given: dict[str, Setting] = {}
    for word in words[1:]:
        amount = _AMOUNT.match(word)
        key, equals, value = word.partition("=")
        if amount:
            given |= _budget(words[0], amount[1], amount[2] or "")
        elif equals:
            given[key] = _value(value)
        else:
            raise UsageError(f"noise {words[0]}: expected a budget or key=value, got {word!r}; such as 'dilate 10%'")
    return words[0], given


def noise_names() -> tuple[str, ...]:
    """Return the names that `parse_noise` knows."""
    return tuple(entry.name for entry in entries("noise"))


def noise_text(noise: LabelNoise) -> str:
    """Return a noise as text for records: its name and every setting that is not the default.

    Raises:
        UsageError: The noise is not registered.

    Example:
        >>> noise_text(parse_noise("erode 20% kernel=5"))
        'erode budget=0.2 kernel=5'
    """
    name = next((entry.name for entry in entries("noise") if entry.make is type(noise)), "")
    if not name:
        raise UsageError(f"noise: expected a registered one, got {type(noise).__name__}; add @register above it")
    told = []
    for f in fields(find("noise", name).make):
        value = getattr(noise, f.name)
        if isinstance(value, Mapping):
            value = f"{len(value)} chips"
        if callable(value):
            value = getattr(value, "__qualname__", type(value).__name__)
        if value != f.default and value != "0 chips":
            told.append(f"{f.name}={value}")
    return " ".join([name, *told])


def spoken_budget(noise: LabelNoise) -> str:
    """Say what a noise was asked to change, in words; how much it did change is up to the labels.

    Example:
        >>> spoken_budget(parse_noise("dilate 10%"))
        'at most 10 % of the valid pixels of each chip'
    """
    budget, of = float(getattr(noise, "budget", 0.0)), getattr(noise, "of", "valid")
    name = next((entry.name for entry in entries("noise") if entry.make is type(noise)), "")
    if name == "shift" or of == "meters":
        gsd_m = float(getattr(noise, "gsd_m", None) or 1.0)
        length = f"{budget:g} px" if gsd_m == 1.0 else f"{budget:g} m ({budget / gsd_m:.3g} px)"
        return f"a shift by {length}" if name == "shift" else f"shorelines moved by at most {length}"
    if name == "class-dependent":
        return "the whole matrix" if budget == 1 else f"{100 * budget:g} % of the matrix"
    if name in ("stale", "wrong-source", "index-threshold"):
        return (
            "the whole other label"
            if budget == 1
            else f"the other label on at most {100 * budget:g} % of the valid pixels"
        )
    share = {"class": "pixels of the class in", "objects": "objects of the class in"}.get(of, "valid pixels of")
    chips = "each chip of two thirds of the chips" if name == "thirds" else "each chip"
    return f"at most {100 * budget:g} % of the {share} {chips}"


def _budget(name: str, number: str, unit: str) -> dict[str, Setting]:
    if name == "shift" and unit not in ("m", "px"):
        raise UsageError(
            f"noise shift: expected a length in meters or pixels, got {number}{unit}; such as 'shift 50 m' or 'shift 5 px'"
        )
    if unit == "%":
        return {"budget": float(f"{number}e-2")}
    length: dict[str, Setting] = {"budget": float(number)}
    if unit == "px":
        length["gsd_m"] = 1.0
    # a shift is always a length; the other noises have to be told
    return length if name == "shift" or not unit else {**length, "of": "meters"}


def _value(text: str) -> Setting:
    try:
        return cast(Setting, tomllib.loads(f"v = {text}")["v"])
    except tomllib.TOMLDecodeError:
        return text
