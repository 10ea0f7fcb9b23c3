"""Validation of recipes: builds every method, and checks settings, threats, names and data keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from seawall import registry
from seawall.attacks.suites import named_attacks as attacks_of
from seawall.errors import RecipeError, UsageError
from seawall.evaluation.case import Case
from seawall.geo.sensors import band_noise, resolve_bands
from seawall.label_noise.build import NoiseContext, build_noise
from seawall.labels.indices import parse_rule
from seawall.recipe import DataSection, MethodSection, Recipe
from seawall.simulate.scene import S2_BANDS
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.training.configuration import make_training
from seawall.types import ModelSpec, Unit

SOURCE_NAMES = {"chips": "a chip folder", "simulated": "simulated scenes", "files": "files"}


def validate_recipe(recipe: Recipe) -> None:
    """Build every method that a recipe names, so that errors are found before the training.

    Raises:
        UsageError: A method, a setting or a threat is wrong.
    """
    make_training(recipe.training.settings)
    for method in (recipe.model, *recipe.baselines):
        registry.build("model", method.name, method.settings)
    for estimator in recipe.estimators:
        registry.build("uncertainty", estimator.name, estimator.settings)
    for objective in (recipe.training.objective, *(n.objective for n in recipe.noises if n.objective)):
        registry.build("objective", objective.name, objective.settings)
    for attack in recipe.attacks:
        registry.build("attack", attack.name, attack.settings)
    for suite in recipe.suites:
        registry.build("suite", suite.name, suite.settings)
    for text in (text for section in (*recipe.attacks, *recipe.suites) for text in section.threats):
        _validate_threat(text, recipe)
    if recipe.training.robustness is not None:
        _validate_threat(recipe.training.robustness.threat, recipe)
    for noise in recipe.noises:
        for rate in noise.rates:
            build_noise(
                noise.name, noise.at(rate), NoiseContext(10.0, _recipe_bands(recipe), _possible_units(recipe)[0])
            )
    if recipe.data.labels not in ("truth", "cover"):
        parse_rule(recipe.data.labels)


def _validate_threat(text: str, recipe: Recipe) -> None:
    # the chips are not made yet, so any possible unit is accepted; bands are checked with the chips
    first: UsageError | None = None
    for unit in _possible_units(recipe):
        try:
            spec = ModelSpec(_recipe_bands(recipe), ("land", "water"), unit, 10.0)
            for one in split_by_band(text, spec):
                threat_for(one, spec)
            return
        except UsageError as bad:
            first = first or bad
    if first:
        raise first


def _possible_units(recipe: Recipe) -> tuple[Unit, ...]:
    return ("reflectance", "stretched") if recipe.data.sensor == "s2" else ("sigma0_db", "gamma0_db", "stretched")


def _recipe_bands(recipe: Recipe) -> tuple[str, ...]:
    return tuple(resolve_bands(recipe.data.bands or (("VV", "VH") if recipe.data.sensor == "s1" else S2_BANDS)))


def validate_data(data: DataSection, kind: Literal["chips", "simulated", "files"]) -> None:
    """Refuse keys of a data section that have no effect on its kind of source.

    Raises:
        RecipeError: A key has no effect on such a source.
    """
    files = ("names", "group", "gsd_m", "gain", "offset", "label_map", "select")
    simulated = ("count", "size", "clouds")
    ignored = {"chips": (*files, *simulated, "bands", "labels"), "simulated": files, "files": simulated}[kind]
    for key in ignored:
        if (value := getattr(data, key)) != getattr(DataSection(), key):
            raise RecipeError(
                f"data.{key}: expected no such key for {SOURCE_NAMES[kind]}, got {value!r}; it would have no effect, so remove it"
            )


def threat_for(text: str, spec: ModelSpec) -> ThreatModel:
    """Parse a threat for a model; multiples of noise refer to the published noise of its sensor.

    Raises:
        UsageError: The text has no unit, or one that is not the model's.
    """
    return parse_threat(text, spec, noise=band_noise(spec.bands))


def split_by_band(text: str, spec: ModelSpec) -> list[str]:
    """Return one threat per band for `bands=each`, else the text itself.

    Example:
        >>> split_by_band("linf 1% reflectance bands=each", ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0))
        ['linf 1% reflectance bands=B03', 'linf 1% reflectance bands=B08']
    """
    if "bands=each" not in text.split():
        return [text]
    return [text.replace("bands=each", f"bands={band}") for band in spec.bands]


def attack_cases(recipe: Recipe, spec: ModelSpec) -> Iterator[Case]:
    """Yield every attack of a recipe, the members of its suites included, under every threat of it."""
    for attack in recipe.attacks:
        method = registry.build("attack", attack.name, attack.settings)
        for text in attack.threats:
            yield from (
                Case(attack.called or attack.name, method, threat_for(one, spec)) for one in split_by_band(text, spec)
            )
    for suite in recipe.suites:
        made = registry.build("suite", suite.name, suite.settings)
        for text in suite.threats:
            yield from (Case(name, method, threat_for(text, spec)) for name, method in attacks_of(made))


def baseline_name(method: MethodSection) -> str:
    """Return the name of a baseline in the rows: its index and rule, or its registered name."""
    return "-".join(str(method.settings[key]) for key in ("index", "rule") if key in method.settings) or method.name


def check_distinct_names(recipe: Recipe, spec: ModelSpec) -> None:
    """Refuse methods whose rows could not be told apart.

    Raises:
        RecipeError: Two attacks or suite members have one name and one threat, or two baselines or estimators have one name.
    """
    cases = [(case.method, case.threat_text) for case in attack_cases(recipe, spec)]
    if twice := [case for case in cases if cases.count(case) > 1]:
        raise RecipeError(
            f"attacks: expected each name once per threat, got {twice[0][0]!r} twice under {twice[0][1]!r}; "
            "give one attack another `called`, or put one suite into another recipe"
        )
    names = [recipe.model.name, *map(baseline_name, recipe.baselines), *(f"+{e.name}" for e in recipe.estimators)]
    if twice_named := [name for name in names if names.count(name) > 1]:
        raise RecipeError(
            f"baselines, estimators: expected each name once, got {twice_named[0]!r} twice; put one of the two into another recipe"
        )
