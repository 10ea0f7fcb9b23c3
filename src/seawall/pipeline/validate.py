"""A recipe's orders made into methods: built, checked, and told what they must know of the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

from seawall import registry
from seawall.attacks.suites import Suite
from seawall.attacks.suites import named_attacks as attacks_of
from seawall.errors import RecipeError, UsageError
from seawall.evaluation.case import Case
from seawall.geo.sensors import band_noise, resolve_bands
from seawall.label_noise.build import NoiseContext, build_noise
from seawall.labels.indices import parse_rule
from seawall.recipe import Data, Method, Recipe
from seawall.simulate.scene import S2_BANDS
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.training.configuration import make_training
from seawall.types import ModelSpec, Unit

WORDS = {"chips": "a chip folder", "simulated": "simulated scenes", "files": "files"}


def vet(recipe: Recipe) -> None:
    """Build every method that a recipe names, so that a typo costs a second and not a training.

    Raises:
        UsageError: A method, a setting or a threat is wrong.
    """
    make_training(recipe.training.settings)
    for method in (recipe.model, *recipe.baselines):
        registry.build("model", method.name, method.settings)
    for objective in (recipe.training.objective, *(n.objective for n in recipe.noises if n.objective)):
        registry.build("objective", objective.name, objective.settings)
    for attack in recipe.attacks:
        registry.build("attack", attack.name, attack.settings)
    for suite in recipe.suites:
        registry.build("suite", suite.name, suite.settings)
    for text in (text for order in (*recipe.attacks, *recipe.suites) for text in order.threats):
        _vet_threat(text, recipe)
    for noise in recipe.noises:
        for rate in noise.rates:
            build_noise(noise.name, noise.at(rate), NoiseContext(10.0, _bands(recipe), _units(recipe)[0]))
    if recipe.data.labels not in ("truth", "cover"):
        parse_rule(recipe.data.labels)


def _vet_threat(text: str, recipe: Recipe) -> None:
    # the chips are not there yet, so any unit that the threat fits will do; bands are checked with the chips
    wrong: UsageError | None = None
    for unit in _units(recipe):
        try:
            spec = ModelSpec(_bands(recipe), ("land", "water"), unit, 10.0)
            for one in each_band(text, spec):
                threat_for(one, spec)
            return
        except UsageError as bad:
            wrong = wrong or bad
    if wrong:
        raise wrong


def _units(recipe: Recipe) -> tuple[Unit, ...]:
    return ("reflectance", "stretched") if recipe.data.sensor == "s2" else ("sigma0_db", "gamma0_db", "stretched")


def _bands(recipe: Recipe) -> tuple[str, ...]:
    return tuple(resolve_bands(recipe.data.bands or (("VV", "VH") if recipe.data.sensor == "s1" else S2_BANDS)))


def vet_data(data: Data, kind: Literal["chips", "simulated", "files"]) -> None:
    """Refuse what a data section says in vain: a key without effect is an error.

    Raises:
        RecipeError: A key has no effect on such a source.
    """
    files = ("names", "group", "gsd_m", "gain", "offset", "label_map", "select")
    simulated = ("count", "size", "clouds")
    vain = {"chips": (*files, *simulated, "bands", "labels"), "simulated": files, "files": simulated}[kind]
    for key in vain:
        if (value := getattr(data, key)) != getattr(Data(), key):
            raise RecipeError(
                f"data.{key}: expected no such key for {WORDS[kind]}, got {value!r}; it would have no effect, so remove it"
            )


def threat_for(text: str, spec: ModelSpec) -> ThreatModel:
    """Read a threat against a model; multiples of noise are of its sensor's published noise.

    Raises:
        UsageError: The text has no unit, or one that is not the model's.
    """
    return parse_threat(text, spec, noise=band_noise(spec.bands))


def each_band(text: str, spec: ModelSpec) -> list[str]:
    """Return one threat per band for `bands=each`: what an adversary does with each band alone; else the text itself.

    Example:
        >>> each_band("linf 1% reflectance bands=each", ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0))
        ['linf 1% reflectance bands=B03', 'linf 1% reflectance bands=B08']
    """
    if "bands=each" not in text.split():
        return [text]
    return [text.replace("bands=each", f"bands={band}") for band in spec.bands]


def cases_of(recipe: Recipe, spec: ModelSpec) -> Iterator[Case]:
    """Yield every attack of a recipe, the members of its suites included, under every threat of it."""
    for attack in recipe.attacks:
        act = registry.build("attack", attack.name, attack.settings)
        for text in attack.threats:
            yield from (Case(attack.called or attack.name, act, threat_for(one, spec)) for one in each_band(text, spec))
    for suite in recipe.suites:
        made = cast(Suite, registry.build("suite", suite.name, suite.settings))
        for text in suite.threats:
            yield from (Case(name, act, threat_for(text, spec)) for name, act in attacks_of(made))


def baseline_name(method: Method) -> str:
    """Return how rows name a model without training: its index and rule, or its registered name."""
    return "-".join(str(method.settings[key]) for key in ("index", "rule") if key in method.settings) or method.name


def check_distinct(recipe: Recipe, spec: ModelSpec) -> None:
    """Refuse two methods that would share their rows.

    Raises:
        RecipeError: Two attacks or suite members have one name and one threat, or two baselines have one name.
    """
    cases = [(case.method, case.threat_text) for case in cases_of(recipe, spec)]
    if twice := [case for case in cases if cases.count(case) > 1]:
        raise RecipeError(
            f"attacks: expected each name once per threat, got {twice[0][0]!r} twice under {twice[0][1]!r}; "
            "give one attack another `called`, or put one suite into another recipe"
        )
    names = [recipe.model.name, *map(baseline_name, recipe.baselines)]
    if twice_named := [name for name in names if names.count(name) > 1]:
        raise RecipeError(
            f"baselines: expected each name once, got {twice_named[0]!r} twice; put one of the two into another recipe"
        )
