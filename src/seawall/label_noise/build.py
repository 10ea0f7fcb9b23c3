"""Label noise on the chips of a folder: build it with the properties of the chips, apply it, cache its labels.

`seawall corrupt` and recipes both build their noises here, so that the same settings give the same labels.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import cast

import torch

from seawall.chip_context import ChipContext, ContextField, build_with_context
from seawall.data.chips import Chip, ChipFolder
from seawall.data.label_planes import ComputedLabels
from seawall.errors import UsageError
from seawall.label_noise.erode_dilate import Thirds, assign_thirds
from seawall.label_noise.sources import check_source, source_files_digest
from seawall.registry import build, entry_of, find
from seawall.rng import Keys
from seawall.types import Batch, LabelNoise, Setting


def build_noise(name: str, settings: Mapping[str, Setting], context: ChipContext) -> LabelNoise:
    """Build a registered label noise with the properties of the chips.

    Args:
        name: Registered name.
        settings: Its settings; those of `chip_context.CONTEXT_FIELDS` that are left out come from the context.
        context: The chips.

    Raises:
        UsageError: There is no such noise, or a setting is wrong or contradicts the chips.
    """
    own: dict[str, ContextField] = {
        "parts": lambda context, given: dict(assign_thirds(context.chips)) if given is None else given
    }
    defaults = {f.name: f.default for f in fields(find("noise", name).make)}
    if defaults.get("gsd_m", MISSING) is not MISSING and settings.get("of") != "meters":
        # a share has no use for meters per pixel
        own["gsd_m"] = lambda context, given: defaults["gsd_m"] if given is None else given
    return cast(LabelNoise, build_with_context("noise", name, settings, context, own))


def build_noise_of_chips(
    name: str, settings: Mapping[str, Setting], folder: ChipFolder, chips: Sequence[str]
) -> LabelNoise:
    """Build a registered label noise for some chips of a folder, its source checked.

    Raises:
        UsageError: There is no such noise, or a setting is wrong or contradicts the chips.
        DataError: Its source is not there or has no label of any chip.
    """
    noise = build_noise(name, settings, ChipContext.of(folder, chips))
    return check_source(noise, {id_: folder.row(id_).grid for id_ in chips})


def noise_keys(seed: int, chip: str, number: int = 0) -> Keys:
    """Return the random stream of a chip for the first, second ... noise that is applied to it."""
    return Keys(seed, (chip,), ("noise",) if number == 0 else ("noise", str(number)))


def chip_batch(chip: Chip) -> Batch:
    """Return a chip as a batch of one."""
    return Batch(
        torch.from_numpy(chip.image)[None], torch.from_numpy(chip.label)[None],
        torch.from_numpy(chip.seen)[None], torch.from_numpy(chip.valid)[None], (chip.id,),
        None if chip.seen_bands is None else torch.from_numpy(chip.seen_bands)[None],
    )  # fmt: skip


def noise_of_chip(noise: LabelNoise, chip: str) -> LabelNoise:
    """Return a noise with the settings of one chip only, so that its label does not depend on the other chips."""
    if not isinstance(noise, Thirds):
        return noise
    return replace(noise, parts={chip: noise.parts[chip]} if chip in noise.parts else {})


@dataclass(frozen=True)
class ChipNoise:
    """Label noise on a whole chip: a pure function of the chip, with the chip's own random stream."""

    noise: LabelNoise
    seed: int

    def __call__(self, chip: Chip) -> Chip:
        """Return the chip with its new label; invalid pixels do not change."""
        return replace(chip, label=self.noise(chip_batch(chip), noise_keys(self.seed, chip.id)).label[0].numpy())


class CorruptedLabels(ComputedLabels):
    """Labels after a noise; 255 where invalid.

    Args:
        folder: The chips.
        noise: The noise.
        seed: Seed of its randomness.
        cache: Folder of the labels.
    """

    def __init__(self, folder: ChipFolder, noise: LabelNoise, seed: int, cache: Path) -> None:
        super().__init__(folder, cache)
        self.noise, self.seed = noise, seed

    @property
    def identity(self) -> str:
        """Name and digest of what decides the labels besides the chips, for messages."""
        sources = "".join(source_files_digest(self.noise, id_) for id_ in self.folder.ids)
        digest = hashlib.blake2b(f"{self.noise!r}{sources}{self.seed}".encode(), digest_size=4).hexdigest()
        return f"{type(self.noise).__name__} {digest}"

    def settings(self, id_: str) -> str:
        """Return the text of the noise of a chip, its source and the seed."""
        return "\0".join((repr(noise_of_chip(self.noise, id_)), source_files_digest(self.noise, id_), str(self.seed)))

    def label_of(self, chip: Chip) -> Chip:
        """Return a whole chip with its corrupted label."""
        return ChipNoise(self.noise, self.seed)(chip)


_BUDGET = re.compile(r"^(\d+\.?\d*|\.\d+)\s*(%|m|px)?$")


def parse_noise(text: str, settings: Mapping[str, Setting] | None = None) -> LabelNoise:
    """Read a label noise from text: its name, its budget, and any settings as key=value.

    A budget ends in "%" (a share), "m" (shoreline meters) or "px" (the same in pixels); a bare number is a share from
    0 to 1. A shift has a length, so it needs "m" or "px". The budget can be left out where the noise has a default:
    a whole matrix, or the whole label of another source.

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
    name, given = parse_noise_settings(text)
    return build("noise", name, {**(settings or {}), **given})


def parse_noise_settings(text: str) -> tuple[str, dict[str, Setting]]:
    """Read the name and the settings of a label noise from text, without building it.

    Raises:
        UsageError: The text names no noise, or a word is neither a budget nor key=value.

    Example:
        >>> parse_noise_settings("dilate 30 m exact=true")
        ('dilate', {'budget': 30.0, 'of': 'meters', 'exact': True})
    """
    words = re.sub(r"(?<=\d)\s+(?=(%|m|px)(\s|$))", "", text.strip()).split()
    if not words:
        raise UsageError("noise: expected a name and a budget, got nothing; such as 'dilate 10%'")
    given: dict[str, Setting] = {}
    for word in words[1:]:
        amount = _BUDGET.match(word)
        key, equals, value = word.partition("=")
        if amount:
            given |= _budget_settings(words[0], amount[1], amount[2] or "")
        elif equals:
            given[key] = _toml_value(value)
        else:
            raise UsageError(f"noise {words[0]}: expected a budget or key=value, got {word!r}; such as 'dilate 10%'")
    return words[0], given


def noise_text(noise: LabelNoise) -> str:
    """Return a noise as text for records: its name and every setting that is not the default.

    Raises:
        UsageError: The noise is not registered.

    Example:
        >>> noise_text(parse_noise("erode 20% kernel=5"))
        'erode budget=0.2 kernel=5'
    """
    name = _registered_name(noise)
    if not name:
        raise UsageError(f"noise: expected a registered one, got {type(noise).__name__}; add @register above it")
    words = [name]
    for f in fields(find("noise", name).make):
        value = getattr(noise, f.name)
        if isinstance(value, Mapping):
            value = f"{len(value)} chips"
        if callable(value):
            value = getattr(value, "__qualname__", type(value).__name__)
        if value != f.default and value != "0 chips":
            words.append(f"{f.name}={value}")
    return " ".join(words)


def budget_text(noise: LabelNoise) -> str:
    """Return the budget of a noise in words; how much really changes depends on the labels.

    Example:
        >>> budget_text(parse_noise("dilate 10%"))
        'at most 10 % of the valid pixels of each chip'
    """
    budget, of = float(getattr(noise, "budget", 0.0)), getattr(noise, "of", "valid")
    name = _registered_name(noise)
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


def _registered_name(noise: LabelNoise) -> str:
    entry = entry_of("noise", noise)
    return "" if entry is None else entry.name


def _budget_settings(name: str, number: str, unit: str) -> dict[str, Setting]:
    if name == "shift" and unit not in ("m", "px"):
        raise UsageError(
            f"noise shift: expected a length in meters or pixels, got {number}{unit}; such as 'shift 50 m' or 'shift 5 px'"
        )
    if unit == "%":
        return {"budget": float(f"{number}e-2")}
    length: dict[str, Setting] = {"budget": float(number)}
    if unit == "px":
        length["gsd_m"] = 1.0
    # a shift is always a length; the other noises need of='meters'
    return length if name == "shift" or not unit else {**length, "of": "meters"}


def _toml_value(text: str) -> Setting:
    try:
        return cast(Setting, tomllib.loads(f"v = {text}")["v"])
    except tomllib.TOMLDecodeError:
        return text
