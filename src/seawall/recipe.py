"""Recipes: an experiment as TOML and as a frozen `Recipe`, with an id by its content."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from seawall.errors import RecipeError, first_error
from seawall.records import SEVERITIES
from seawall.split_record import SplitSettings
from seawall.training.configuration import NOT_DECIDING, Training


class RecipeSection(BaseModel):
    """A section of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodSection(RecipeSection):
    """A registered method and its settings, as `{name = "pgd", settings = {steps = 20}}`."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class DataSection(RecipeSection):
    """Where the chips come from.

    Args:
        source: "simulated", a chip folder, or anything that `seawall curate` reads. `$NAME` is taken
            from the environment.
        kind: A registered source, with settings of its own after its name; "auto" detects it, and "chips" is a chip folder.
        select: Keep source ids that start with this.
        sensor: "s1" or "s2".
        bands: Band ids to keep, in this order; empty keeps all.
        labels: "truth" takes the source's labels, "cover" the full land cover of simulated scenes, and a rule
            such as "ndwi >= -0.25" labels every image by an index.
        names: Band names in file order, where files name none.
        group: Regular expression on file names; its first bracket is the event or place.
        gsd_m: Meters per pixel, where files have no georeference.
        gain: Reflectance or dB per stored number, where files do not say it.
        offset: What is added after the gain, in physical units.
        label_map: What raw label values mean, as {"-1" = 255}; 255 does not count.
        count: Simulated scenes.
        size: Side of a simulated scene in pixels.
        frame: Side of the larger simulated scene that each is cut out of, at a random place; 0 simulates each alone,
            which gives more water than a part of a large scene.
        clouds: Simulated scenes have clouds and their shadows.
    """

    source: str = "simulated"
    kind: str = "auto"
    select: str = ""
    sensor: Literal["s1", "s2"] = "s2"
    bands: tuple[str, ...] = ()
    labels: str = "truth"
    names: tuple[str, ...] = ()
    group: str = ""
    gsd_m: float | None = Field(None, gt=0)
    gain: float | None = None
    offset: float | None = None
    label_map: dict[int, int] = Field(default_factory=dict)
    count: int = Field(24, ge=3, le=100_000)
    size: int = Field(256, ge=64, le=8192)
    frame: int = Field(0, ge=0, le=16384)
    clouds: bool = True


class SplitSection(RecipeSection):
    """How the chips are split; groups never cross."""

    by: Literal["group", "block"] = SplitSettings.by
    block_m: float = SplitSettings.block_m
    val: float = Field(SplitSettings.val, gt=0)
    test: float = Field(SplitSettings.test, gt=0)

    @model_validator(mode="after")
    def _check_settings(self) -> SplitSection:
        TypeAdapter(SplitSettings).validate_python(self.model_dump())
        return self


class RobustnessSection(RecipeSection):
    """A threat that the validation chips are attacked within after every epoch.

    Args:
        threat: Threat model, as text with its unit.
        steps: Steps of PGD.
    """

    threat: str
    steps: int = Field(10, ge=2, le=1000)


class TrainingSection(RecipeSection):
    """How the network is trained.

    Args:
        objective: What is minimized; its loss is one of its settings, as `{loss = "ce + dice"}`.
        settings: Fields of `seawall.training.configuration.Training`: epochs, patch, batch, lr and so on.
        augment: "d4" shows every patch in one of its eight orientations.
        balance: "classes" centers the patches on every class alike, "area" draws them evenly.
        devices: Processes that share every batch, one per device; batch norms see each process's share only.
        start: Weights file to start from, of the same model, bands and classes; its normalization is kept. "" starts
            from random weights.
        robustness: Attack the validation chips too; the default monitor is then the IoU after PGD.
    """

    objective: MethodSection = MethodSection(name="supervised")
    settings: dict[str, Any] = Field(default_factory=dict)
    augment: Literal["none", "d4"] = "d4"
    balance: Literal["area", "classes"] = "area"
    devices: int = Field(1, ge=1, le=1024)
    start: str = ""
    robustness: RobustnessSection | None = None

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        # They stay as they are written: the id is a hash of that, and a new default must not change it.
        TypeAdapter(Training).validate_python(settings)
        return settings


REFERENCE = "plain"
"""Name of the reference network in rows and folders."""


class ReferenceSection(RecipeSection):
    """A second network, which the recipe's is compared with: the same model and split, trained by another objective.

    It is attacked as the recipe's network is, the attacks on it are given to the recipe's network as well, and threshold
    models among the baselines are measured by their exact worst case.

    Args:
        objective: What is minimized.
        settings: Fields of `seawall.training.configuration.Training` that differ from the recipe's.
        weights: Weights file of a network that is there already, trained on the same split; it is taken instead.
    """

    objective: MethodSection = MethodSection(name="supervised")
    settings: dict[str, Any] = Field(default_factory=dict)
    weights: str = ""


class AttackSection(RecipeSection):
    """An attack or a suite against one or more threats, each with its unit: "linf 1% reflectance".

    Args:
        name: Registered name.
        called: Name of an attack in the rows, needed where one attack is run with two settings; its own if empty.
            The members of a suite are named by the suite.
    """

    name: str
    called: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    threats: tuple[str, ...] = Field(min_length=1)


class CorruptionSection(RecipeSection):
    """A natural perturbation of the test images, measured at each severity.

    Args:
        name: Registered corruption.
        called: Name in the rows, needed where one corruption is measured with two settings; its own if empty.
        settings: Its settings; bands, unit, pixel size and classes come from the chips.
        severities: Above 0 and at most 1.
    """

    name: str
    called: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    severities: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(SEVERITIES, min_length=1)

    @field_validator("severities")
    @classmethod
    def _check_distinct(cls, severities: tuple[float, ...]) -> tuple[float, ...]:
        if twice := [one for one in severities if severities.count(one) > 1]:
            raise ValueError(f"each severity once, but {twice[0]:g} twice; leave one out")
        return severities


class FaultSection(RecipeSection):
    """Flipped bits in the 8-bit weights of the network, until the IoU on the test chips is halved.

    Args:
        name: Registered fault.
        called: Name in the report, needed where one fault is there with two settings; its own if empty.
        most: Flips after which it stops.
        images: Patches of the training part that the bits are chosen on.
        defenses: Such as "clipping group=64"; the fault is measured without one and with each.
    """

    name: str
    called: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    most: int = Field(100, ge=1, le=100_000)
    images: int = Field(8, ge=1, le=1024)
    defenses: tuple[str, ...] = ()


class NoiseSection(RecipeSection):
    """Label noise put on the training part; one more model is trained per rate.

    Args:
        name: Registered noise.
        called: Name of the noise in the networks' names, needed where one noise is run with two settings; its own if empty.
        settings: Its settings without the rate.
        rates: Values of `vary`, one model each; 0 trains a control on labels that the noise leaves as they are.
        vary: The setting that takes the rates.
        objective: Train through the noise with this objective instead of the recipe's.
    """

    name: str
    called: str = Field("", pattern=r"^([a-z0-9][a-z0-9._-]*)?$")
    settings: dict[str, Any] = Field(default_factory=dict)
    rates: tuple[float, ...] = Field(min_length=1)
    vary: str = "budget"
    objective: MethodSection | None = None

    @model_validator(mode="after")
    def _check_rate(self) -> NoiseSection:
        if self.vary in self.settings:
            raise ValueError(f"{self.vary} in `rates` alone; a setting of that name would undo them")
        return self

    def at(self, rate: float) -> dict[str, Any]:
        """Return the noise's settings at one rate."""
        return {**self.settings, self.vary: rate}

    @property
    def way(self) -> str:
        """Suffix of the networks' names: the loss if that alone differs from the recipe's objective, else the objective."""
        if self.objective is None:
            return ""
        loss = self.objective.settings.get("loss")
        if self.objective.name == "supervised" and isinstance(loss, str):
            return loss.replace(" ", "")
        return self.objective.name


class Network(NamedTuple):
    """One network that a recipe trains.

    Args:
        name: Its name in rows and folders, such as "unet" or "unet@dilate-0.1+gce".
        objective: What is minimized.
        noise: Its label noise; None for the labels as they are.
        rate: Value of the setting that the noise varies.
    """

    name: str
    objective: MethodSection
    noise: NoiseSection | None = None
    rate: float = 0.0


class SceneSection(RecipeSection):
    """A whole scene to map: a raster, or a simulated one of `size` pixels."""

    source: str = "simulated"
    size: int = Field(1024, ge=128, le=20_000)


RENAMED_KEYS = {"interrogation": "sanity_checks"}
"""Keys of recipes by an earlier version, and what they are called now."""

DISPLAY_KEYS = ("title", "note", "published", "examples", "scene")
"""Keys of a recipe that change the report and no trained or measured number."""


class Recipe(RecipeSection):
    """An experiment: what decides its numbers, and what the report shows beside them.

    Example:
        >>> Recipe(name="mine").id == Recipe(name="mine", title="Lakes").id
        True
        >>> Recipe(name="mine").id == Recipe(name="mine", seed=1).id
        False
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str = ""
    note: str = ""
    seed: int = 0
    published: str = ""
    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    model: MethodSection = MethodSection(name="unet")
    training: TrainingSection = TrainingSection()
    reference: ReferenceSection | None = None
    baselines: tuple[MethodSection, ...] = ()
    estimators: tuple[MethodSection, ...] = ()
    attacks: tuple[AttackSection, ...] = ()
    suites: tuple[AttackSection, ...] = ()
    corruptions: tuple[CorruptionSection, ...] = ()
    noises: tuple[NoiseSection, ...] = ()
    faults: tuple[FaultSection, ...] = ()
    scene: SceneSection | None = None
    examples: int = Field(4, ge=0, le=24)
    sanity_checks: bool = True

    @model_validator(mode="after")
    def _check_attack_names(self) -> Recipe:
        pairs = [(section.called or section.name, threat) for section in self.attacks for threat in section.threats]
        if twice := [name for name, threat in pairs if pairs.count((name, threat)) > 1]:
            raise ValueError(f"attack {twice[0]} once per threat; give one of the two another `called`")
        return self

    @model_validator(mode="after")
    def _check_section_names(self) -> Recipe:
        for kind, sections in (("corruption", self.corruptions), ("fault", self.faults)):
            names = [section.called or section.name for section in sections]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{kind} {twice[0]} once; give one of the two another `called`")
        return self

    @model_validator(mode="after")
    def _check_suite_names(self) -> Recipe:
        pairs = [(section.name, threat) for section in self.suites for threat in section.threats]
        if twice := [name for name, threat in pairs if pairs.count((name, threat)) > 1]:
            raise ValueError(f"suite {twice[0]} once per threat; put the other settings into another recipe")
        if named := [section.called for section in self.suites if section.called]:
            raise ValueError(f"no `called` for a suite, whose members are named by it, but {named[0]!r}; leave it out")
        return self

    @model_validator(mode="after")
    def _check_network_names(self) -> Recipe:
        names = [network.name for network in self.networks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"each network once, but {twice[0]} twice; give one of the noises another `called`")
        return self

    @property
    def split_settings(self) -> SplitSettings:
        """How the chips are split."""
        return SplitSettings(**self.split.model_dump(), seed=self.seed)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks to train: one on the labels as they are, the reference, then one per label noise and rate."""
        own, base = self.training.objective, self.model.name
        noisy = (
            Network(
                f"{base}@{noise.called or noise.name}-{rate:g}" + (f"+{noise.way}" if noise.way else ""),
                noise.objective or own,
                noise,
                rate,
            )
            for noise in self.noises
            for rate in noise.rates
        )
        beside = self.reference
        plain = (Network(REFERENCE, beside.objective),) if beside is not None and not beside.weights else ()
        return (Network(base, own), *plain, *noisy)

    def training_of(self, network: Network) -> TrainingSection:
        """Return how a network is trained; the reference has no attacked validation and starts from random weights."""
        if self.reference is None or network.name != REFERENCE:
            return self.training
        settings = {**self.training.settings, **self.reference.settings}
        changes = {"objective": network.objective, "settings": settings, "start": "", "robustness": None}
        return self.training.model_copy(update=changes)

    @property
    def deciding(self) -> dict[str, Any]:
        """Everything that decides a trained or measured number, as plain values."""
        tree = self.model_dump(mode="json", exclude=set(DISPLAY_KEYS))
        for section in (
            "corruptions",
            "faults",
        ):  # recipes without them keep the id that they had before there were any
            if not tree[section]:
                del tree[section]
        tree["training"]["settings"] = {k: v for k, v in self.training.settings.items() if k not in NOT_DECIDING}
        for key in ("start", "robustness"):  # ids of recipes without them stay what they were
            if not tree["training"][key]:
                del tree["training"][key]
        if self.reference is None:
            del tree["reference"]
        return tree

    @property
    def id(self) -> str:
        """Name and hash of what decides the numbers; equal ids mean the same experiment."""
        text = json.dumps(self.deciding, sort_keys=True)
        return f"{self.name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def to_toml(self) -> str:
        """Return the canonical text; reading it gives the same recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, with `key=value` changes on top.

    Args:
        path: A TOML file.
        overrides: Such as "training.settings.epochs=3"; values are TOML, plain words are strings.

    Raises:
        RecipeError: The file is missing or not TOML, or a key, type or value is wrong; the message names the key and suggests a known one.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as gone:
        raise RecipeError(f"{path}: expected a recipe, got no file; give a path such as recipes/demo.toml") from gone
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        raise RecipeError(f"{path}: expected TOML, got {bad}; mend that line") from bad
    return change_recipe(tree, overrides, str(path))


def change_recipe(tree: Mapping[str, Any], overrides: Iterable[str], where: str = "recipe") -> Recipe:
    """Validate plain values with `key=value` changes on top.

    Raises:
        RecipeError: A key, type or value is wrong.
    """
    changed = copy.deepcopy(dict(tree))
    for change in overrides:
        _apply_change(changed, change)
    return make_recipe(changed, where)


def make_recipe(tree: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain values into a Recipe.

    Raises:
        RecipeError: A key, type or value is wrong.
    """
    for old in RENAMED_KEYS.keys() & tree.keys():
        raise RecipeError(f"{where}: unknown key {old!r}; rename it to {RENAMED_KEYS[old]!r}")
    try:
        return Recipe.model_validate(dict(tree))
    except ValidationError as bad:
        known = _keys_at(bad.errors()[0]["loc"][:-1])
        raise RecipeError(f"{where}: {first_error(bad, known=known, advice='see docs/recipes.md')}") from bad


def _keys_at(path: tuple[int | str, ...]) -> Iterable[str]:
    section: type[BaseModel] = Recipe
    sections: Mapping[int | str, type[BaseModel]] = {
        "data": DataSection, "split": SplitSection, "model": MethodSection, "training": TrainingSection, "reference": ReferenceSection, "objective": MethodSection,
        "baselines": MethodSection, "estimators": MethodSection, "attacks": AttackSection, "suites": AttackSection, "corruptions": CorruptionSection, "noises": NoiseSection, "faults": FaultSection, "scene": SceneSection,
    }  # fmt: skip
    for step in path:
        section = sections.get(step, section)
    return [field.name for field in fields(Training)] if path[-1:] == ("settings",) else section.model_fields


def _apply_change(tree: dict[str, Any], change: str) -> None:
    key, found, text = change.partition("=")
    if not found or not key.strip():
        raise RecipeError(f"--set: expected key=value, got {change!r}; for example --set training.settings.epochs=3")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    node: Any = tree
    *folders, last = key.strip().split(".")
    for step in folders:
        node = _child_section(node, step, change)
    if isinstance(node, list):
        node[_list_index(node, last, change)] = value
    else:
        node[last] = value


def _child_section(node: Any, step: str, change: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, step, change)]
    child = node.setdefault(step, {})
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {change}: expected a section at {step!r}, got {child!r}; set the key itself")
    return child


def _list_index(node: list[Any], step: str, change: str) -> int:
    if not step.isdigit() or int(step) >= len(node):
        raise RecipeError(f"--set {change}: expected a place below {len(node)}, got {step!r}; lists count from 0")
    return int(step)


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _without_none(v) for k, v in tree.items() if v is not None}
    if isinstance(tree, list | tuple):
        return [_without_none(v) for v in tree]
    return tree
