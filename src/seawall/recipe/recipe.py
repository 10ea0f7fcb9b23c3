"""Recipes: an experiment as TOML and as a frozen `Recipe`, with an id by its content."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from seawall.errors import RecipeError, first_error
from seawall.recipe.sections import (
    OTHER_KEY,
    REFERENCE,
    AttackSection,
    BaselineSection,
    CorruptionSection,
    CostSection,
    DataSection,
    FaultSection,
    KeyedSection,
    MethodSection,
    ModelSection,
    NoiseSection,
    PretrainingSection,
    RecipeSection,
    ReferenceSection,
    RoundsSection,
    SceneSection,
    SensitivitySection,
    SplitSection,
    TrainingSection,
    UncertaintySection,
)
from seawall.records import KEYED_ATTACKS, MEMBER_MARK
from seawall.split_record import SplitSettings
from seawall.training.configuration import NOT_DECIDING, Training


class Network(NamedTuple):
    """One network that a recipe trains.

    Args:
        name: Its name in rows and folders, such as "unet" or "unet@dilate-0.1+gce".
        model: Its architecture.
        objective: What is minimized.
        noise: Its label noise; None for the labels as they are.
        rate: Value of the setting that the noise varies.
        training: Settings of the training that differ from the recipe's.
        member: Number of a further member of an ensemble; 0 for the network itself.
    """

    name: str
    model: MethodSection
    objective: MethodSection
    noise: NoiseSection | None = None
    rate: float = 0.0
    training: Mapping[str, Any] = {}
    member: int = 0

    def seed(self, seed: int) -> int:
        """Return the seed of its weights and patches, by that of the recipe."""
        if not self.member:
            return seed
        return int.from_bytes(hashlib.blake2b(f"{seed} member {self.member}".encode(), digest_size=4).digest(), "big")


RENAMED_KEYS = {"interrogation": "sanity_checks", "estimators": "uncertainty"}
"""Keys of recipes by an earlier version, and what they are called now."""

RUN_KEYS = (
    "models",
    "cost",
    "attacks",
    "suites",
    "corruptions",
    "noises",
    "faults",
    "baselines",
    "reference",
    "keyed",
    "scene",
    "sensitivity",
)
"""Keys that `seawall run` measures or maps by, and that have no meaning for a training alone."""

ADDED_TRAINING_KEYS = (
    "start",
    "adapt_bands",
    "pretraining",
    "robustness",
    "supervision",
    "unlabelled",
    "members",
    "rounds",
)
"""Keys of the training that came after the first recipes; what is empty is left out of the id."""

DISPLAY_KEYS = ("title", "note", "published", "examples", "scene", "sensitivity", "cost")
"""Keys of a recipe that change the report and no network and no row of the records."""


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
    inputs: tuple[str, ...] = ()
    model: MethodSection = MethodSection(name="unet")
    training: TrainingSection = TrainingSection()
    reference: ReferenceSection | None = None
    keyed: KeyedSection | None = None
    models: tuple[ModelSection, ...] = ()
    cost: CostSection | None = None
    baselines: tuple[BaselineSection, ...] = ()
    uncertainty: tuple[UncertaintySection, ...] = ()
    attacks: tuple[AttackSection, ...] = ()
    suites: tuple[AttackSection, ...] = ()
    corruptions: tuple[CorruptionSection, ...] = ()
    noises: tuple[NoiseSection, ...] = ()
    faults: tuple[FaultSection, ...] = ()
    scene: SceneSection | None = None
    sensitivity: SensitivitySection | None = None
    examples: int = Field(4, ge=0, le=24)
    sanity_checks: bool = True

    @model_validator(mode="after")
    def _check_keyed(self) -> Recipe:
        if self.keyed is None:
            return self
        beside = {
            "reference": self.reference,
            "noises": self.noises,
            "models": self.models,
            "training.start": self.training.start,
            "training.pretraining": self.training.pretraining,
            "training.rounds": self.training.rounds,
            "training.members": self.training.members,
        }
        if given := [key for key, section in beside.items() if section]:
            raise ValueError(f"no {given[0]} beside keyed, which trains its own networks; put it into another recipe")
        if taken := [name for a in self.attacks if (name := a.called or a.name) in KEYED_ATTACKS]:
            raise ValueError(f"no attack called {taken[0]!r} beside keyed, which has one; give it another `called`")
        return self

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
        """The networks to train: one on the labels as they are, the reference, the further models, then one per label noise and rate.

        The members of an ensemble follow their network.
        """
        own, model = self.training.objective, self.model
        noisy = (
            Network(
                f"{model.name}@{noise.called or noise.name}-{rate:g}" + (f"+{noise.way}" if noise.way else ""),
                model,
                noise.objective or own,
                noise,
                rate,
            )
            for noise in self.noises
            for rate in noise.rates
        )
        beside = self.reference
        trained = beside is not None and not beside.weights
        plain = (Network(REFERENCE, model, beside.objective, training=beside.settings),) if beside and trained else ()
        keyed = (Network(REFERENCE, model, own), Network(OTHER_KEY, model, own)) if self.keyed is not None else ()
        further = (
            Network(one.called or one.name, one, one.objective or own, training=one.training) for one in self.models
        )
        ensembles = ((one, *self._members(one)) for one in (Network(model.name, model, own), *noisy))
        clean, *others = ensembles
        return (*clean, *plain, *keyed, *further, *(one for ensemble in others for one in ensemble))

    def _members(self, network: Network) -> Iterator[Network]:
        for number in range(1, self.training.members + 1):
            yield network._replace(name=f"{network.name}{MEMBER_MARK}{number}", member=number)

    @property
    def own_networks(self) -> tuple[Network, ...]:
        """The networks that have rows of their own: all but further members of ensembles."""
        return tuple(network for network in self.networks if not network.member)

    def training_of(self, network: Network) -> TrainingSection:
        """Return how a network is trained; the reference has no attacked validation, and both it and further models start from
        random weights."""
        reference = self.reference is not None and network.name == REFERENCE
        if not reference and not isinstance(network.model, ModelSection):
            return self.training
        changes: dict[str, Any] = {
            "objective": network.objective,
            "settings": {**self.training.settings, **network.training},
            "start": "",
            "adapt_bands": False,
            "pretraining": None,
            "rounds": None,
        }
        if reference:
            changes |= {"robustness": None, "unlabelled": 0}
        elif isinstance(network.model, ModelSection) and network.model.balance:
            changes["balance"] = network.model.balance
        return self.training.model_copy(update=changes)

    @property
    def deciding(self) -> dict[str, Any]:
        """Everything that decides a trained or measured number, as plain values."""
        tree = self.model_dump(mode="json", exclude=set(DISPLAY_KEYS)) | {"data": self.data.deciding}
        # Ids are those from before the key was renamed.
        tree["estimators"] = [
            {key: value for key, value in one.items() if key != "temperature" or value != "none"}
            for one in tree.pop("uncertainty")
        ]
        if not self.inputs:
            del tree["inputs"]
        for section in (
            "corruptions",
            "faults",
            "models",
        ):  # recipes without them keep the id that they had before there were any
            if not tree[section]:
                del tree[section]
        tree["training"]["settings"] = {k: v for k, v in self.training.settings.items() if k not in NOT_DECIDING}
        for key in ADDED_TRAINING_KEYS:  # ids of recipes without them stay what they were
            if not tree["training"][key]:
                del tree["training"][key]
        if (first := self.training.pretraining) is not None and first.task == "patch-labels":
            del tree["training"]["pretraining"]["task"], tree["training"]["pretraining"]["masking"]
        for baseline in tree["baselines"]:
            if not baseline["called"]:
                del baseline["called"]
        if self.reference is None:
            del tree["reference"]
        if self.keyed is None:
            del tree["keyed"]
        else:  # where the key lies decides nothing; a run folder knows its key by a check value
            del tree["keyed"]["key"]
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
        "data": DataSection, "split": SplitSection, "model": MethodSection, "training": TrainingSection, "supervision": MethodSection, "pretraining": PretrainingSection, "rounds": RoundsSection, "reference": ReferenceSection, "keyed": KeyedSection, "models": ModelSection, "cost": CostSection, "objective": MethodSection,
        "baselines": BaselineSection, "uncertainty": UncertaintySection, "attacks": AttackSection, "suites": AttackSection, "corruptions": CorruptionSection, "sensitivity": SensitivitySection,
        "noises": NoiseSection, "faults": FaultSection, "scene": SceneSection,
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
