"""Validation of recipes: builds every method, and checks settings, threats, names and data keys."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from seawall import registry
from seawall.attacks.suites import named_attacks as attacks_of
from seawall.bands import channels_of, parse_sources, qualified_band, short_band, source_of
from seawall.chip_context import ChipContext
from seawall.corruptions.build import build_corruption
from seawall.data.index import is_chip_folder, read_index
from seawall.data.joint import bands_of_source
from seawall.data.source_detection import DETECT, detect_source, source_fields
from seawall.errors import RecipeError, UsageError, did_you_mean
from seawall.evaluation.case import Case, severity_cases
from seawall.geo.sensors import are_sentinel_bands, resolve_bands
from seawall.label_noise.build import build_noise
from seawall.labels.rules import parse_rule
from seawall.models.weights import spec_of
from seawall.recipe.recipe import Recipe
from seawall.recipe.sections import BaselineSection, CorruptionSection, DataSection, MethodSection
from seawall.simulate.scene import S2_BANDS
from seawall.supervision.build import build_supervision, check_combination
from seawall.threat.parser import parse_threat
from seawall.training.round_settings import PaulGanju
from seawall.types import DECIBEL_UNITS, Attack, ModelSpec, Unit, Units
from seawall.uncertainty.ensemble import Ensemble
from seawall.weight_faults.build import named_defenses

OWN_LABELS = ("truth", "cover")
"""Values of `data.labels` that are no rule: the labels are the source's own."""

CHIP_FOLDER = "chips"
"""Kind of a source that is a chip folder already; nothing is curated."""

SIMULATED = "simulated"
"""What `data.source` says for scenes that are simulated; it is the name of their source too."""

SOURCE_KEYS: Mapping[str, str] = {
    **{key: key for key in ("select", "names", "group", "gsd_m", "label_map", "size", "frame", "clouds")},
    "gain": "hints", "offset": "hints", "count": "scenes",
}  # fmt: skip
"""Keys of a data section that have an effect on a source with a certain field: key to field."""


def validate_recipe(recipe: Recipe) -> None:
    """Build every method that a recipe names, so that errors are found before the training.

    Raises:
        UsageError: A method, a setting or a threat is wrong.
    """
    _validate_kind(recipe.data)
    for method in (recipe.model, *recipe.models, *recipe.baselines):
        registry.build("model", method.name, method.settings)
    _validate_uncertainty(recipe)
    first = recipe.training.pretraining
    for objective in (first.objective if first else None, *(network.objective for network in recipe.networks)):
        if objective is not None:
            registry.build("objective", objective.name, objective.settings)
    _validate_attacks(recipe)
    _validate_learning_without_labels(recipe)
    check_combination([one.name for one in recipe.training.supervision])
    possible = next(_possible_specs(recipe))
    context = ChipContext(possible.gsd_m, possible.bands, possible.unit)
    for one in recipe.training.supervision:
        build_supervision(one.name, one.settings, context)
    for corruption in recipe.corruptions:
        _validate_corruption(corruption, recipe)
    for fault in recipe.faults:
        registry.build("fault", fault.name, fault.settings)
        named_defenses(fault.defenses)
    keyed = () if recipe.keyed is None else (recipe.keyed,)
    for text in (text for section in (*recipe.attacks, *recipe.suites, *keyed) for text in section.threats):
        _validate_threat(text, recipe)
    if recipe.training.robustness is not None:
        _validate_threat(recipe.training.robustness.threat, recipe)
    for noise in recipe.noises:
        for rate in noise.rates:
            build_noise(noise.name, noise.at(rate), context)
    if recipe.data.labels not in OWN_LABELS:
        parse_rule(recipe.data.labels)


def _validate_learning_without_labels(recipe: Recipe) -> None:
    training = recipe.training
    if training.unlabelled and not learns_without_labels(training.objective):
        names = [entry.name for entry in registry.entries("objective") if "unlabelled" in entry.traits]
        raise RecipeError(
            f"training.unlabelled: expected an objective that learns without labels, got {training.objective.name!r}; "
            f"choose one of {', '.join(names)}, or leave it out"
        )
    if training.rounds is not None and isinstance(method := training.rounds.method, PaulGanju):
        registry.build("model", method.beside, method.beside_settings)


def learns_without_labels(objective: MethodSection) -> bool:
    """Return whether an objective learns from pixels without a label."""
    return "unlabelled" in registry.find("objective", objective.name).traits


def _validate_threat(text: str, recipe: Recipe) -> None:
    # the chips are not made yet, so any possible unit is accepted; bands are checked with the chips
    first: UsageError | None = None
    for spec in _possible_specs(recipe):
        try:
            for one in split_by_band(text, spec):
                parse_threat(one, spec)
            return
        except UsageError as bad:
            first = first or bad
    if first:
        raise first


def _validate_corruption(section: CorruptionSection, recipe: Recipe) -> None:
    # as for threats: a corruption that fits no possible unit is refused here, the chips decide later; where no bands
    # are named they may lack the cirrus band, which no product of surface reflectance has
    first: UsageError | None = None
    for spec in _possible_specs(recipe):
        kept = [at for at, band in enumerate(spec.bands) if recipe.data.bands or short_band(band) != "B10"]
        own = spec.of_channels(kept)
        context = ChipContext(own.gsd_m, own.bands, own.unit)
        try:
            build_corruption(section.name, section.settings, context)
            return
        except UsageError as bad:
            first = first or bad
    if first:
        raise first


def _possible_specs(recipe: Recipe) -> Iterator[ModelSpec]:
    """Yield what the chips of a recipe may be, as far as that is known before they are made: their bands in each possible unit."""
    place = Path(os.path.expandvars(recipe.data.source))
    if is_chip_folder(place):
        header, _ = read_index(place)
        yield _spec_of_inputs(recipe, header.bands, header.unit)
        return
    names = parse_sources(recipe.data.sensor)
    several = len(names) > 1
    bands = {name: _recipe_bands(recipe, name if several else "", names) for name in names}
    for units in itertools.product(*map(_possible_units, names)):
        own = dict(zip(names, units, strict=True))
        every = [(qualified_band(name if several else "", band), own[name]) for name in names for band in bands[name]]
        yield _spec_of_inputs(recipe, [band for band, _ in every], tuple(unit for _, unit in every))


def _spec_of_inputs(recipe: Recipe, bands: Sequence[str], unit: Units) -> ModelSpec:
    at = channels_of(recipe.inputs, bands, "inputs") if recipe.inputs else range(len(bands))
    return ModelSpec(tuple(bands), ("land", "water"), unit, 10.0).of_channels(at)


def _possible_units(source: str) -> tuple[Unit, ...]:
    return ("reflectance", "stretched") if source.startswith("s2") else (*DECIBEL_UNITS, "stretched")


def _recipe_bands(recipe: Recipe, source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the bands of a source: those of the recipe, with others that it names as inputs, or all of the sensor."""
    sensor = (source or recipe.data.sensor)[:2]
    wanted = bands_of_source(recipe.data.bands, source, names) or (("VV", "VH") if sensor == "s1" else S2_BANDS)
    named = [short_band(band) for band in recipe.inputs if band not in names and source_of(band) == source]
    known = tuple(resolve_bands(wanted)) if are_sentinel_bands(wanted) or not source else wanted
    return tuple(dict.fromkeys((*known, *named)))


def _validate_kind(data: DataSection) -> None:
    name, settings = registry.parse_settings("source", data.kind)
    names = [entry.name for entry in registry.entries("source")]
    if name not in (known := (DETECT, CHIP_FOLDER, *names)):
        raise RecipeError(f"data.kind: unknown source {name!r}; {did_you_mean(name, known)}")
    fields = source_fields(name)[1:] if name in names else ()
    if unknown := [key for key in settings if key not in fields]:
        raise RecipeError(f"data.kind: unknown setting {unknown[0]!r} of {name}; {did_you_mean(unknown[0], fields)}")


def source_kind(data: DataSection, place: str) -> str:
    """Return "chips" for a chip folder, else the name of the source that a recipe takes.

    Args:
        data: Section of the recipe.
        place: Its source with the environment filled in.

    Raises:
        RecipeError: Scenes are to be simulated by another source.
        UsageError: No source has that name, or several claim the place.
        DataError: There is nothing, or no source claims it.
    """
    name, _ = registry.parse_settings("source", data.kind)
    if name == CHIP_FOLDER or (name == DETECT and is_chip_folder(Path(place))):
        return CHIP_FOLDER
    if place != SIMULATED:
        return detect_source(Path(place)) if name == DETECT else name
    if name not in (DETECT, SIMULATED):
        raise RecipeError(
            f"data.kind: expected {DETECT} or {SIMULATED} for simulated scenes, got {name!r}; name a folder as data.source"
        )
    return SIMULATED


def validate_data(data: DataSection, kind: str) -> None:
    """Refuse keys of a data section that have no effect on its source.

    Args:
        data: The section.
        kind: A registered source, or "chips".

    Raises:
        RecipeError: The source has no field for a key, or gets it twice.
    """
    fields = () if kind == CHIP_FOLDER else source_fields(kind)
    ignored = {key for key, field in SOURCE_KEYS.items() if field not in fields}
    ignored |= {"bands", "labels"} if kind == CHIP_FOLDER else set()
    ignored |= {"labels"} if data.labels == "cover" and "cover" not in fields else set()
    ignored |= {"count"} if data.source != SIMULATED else set()
    _, own = registry.parse_settings("source", data.kind)
    for key, default in DataSection():
        if (value := getattr(data, key)) == default:
            continue
        if key in ignored:
            where = "a chip folder" if kind == CHIP_FOLDER else f"the source {kind!r}"
            raise RecipeError(
                f"data.{key}: expected no such key for {where}, got {value!r}; it would have no effect, so remove it"
            )
        if SOURCE_KEYS.get(key, key) in own:
            raise RecipeError(f"data.{key}: expected it once, got {value!r} beside data.kind {data.kind!r}; remove one")


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
                Case(attack.called or attack.name, method, parse_threat(one, spec)) for one in split_by_band(text, spec)
            )
    for suite in recipe.suites:
        made = registry.build("suite", suite.name, suite.settings)
        for text in suite.threats:
            yield from (Case(name, method, parse_threat(text, spec)) for name, method in attacks_of(made))


def lacks_gradient(model: str) -> bool:
    """Return whether a registered model has no gradient to the image."""
    return "no-gradient" in registry.find("model", model).traits


def is_black_box(attack: Attack) -> bool:
    """Return whether an attack uses no gradient of the model."""
    entry = registry.entry_of("attack", attack)
    return entry is not None and "black-box" in entry.traits


def possible_cases(model: nn.Module, cases: Sequence[Case]) -> list[Case]:
    """Return the cases that a registered model can be measured under: without a gradient, no attack that needs one."""
    if not lacks_gradient(spec_of(model).architecture):
        return list(cases)
    return [case for case in cases if case.attack is None or is_black_box(case.attack)]


def _validate_uncertainty(recipe: Recipe) -> None:
    training = recipe.training
    there = {"members": training.members, "snapshots": training.settings.get("snapshots", 0)}
    for one in recipe.uncertainty:
        method = registry.build("uncertainty", one.name, one.settings)
        if isinstance(method, Ensemble) and not method.members and not there[method.of]:
            key = {"members": "training.members", "snapshots": "training.settings.snapshots"}[method.of]
            raise RecipeError(f"uncertainty: expected {key} above 0 for {one.name}, got 0; set it, or name the members")
        if one.temperature != "none" and not recipe.split.val:
            raise RecipeError(
                f"uncertainty: expected validation chips for the temperature of {one.name}, got split.val = 0; raise it, or set temperature = none"
            )


def _validate_attacks(recipe: Recipe) -> None:
    """Build the attacks and the suites.

    Raises:
        UsageError: A name or a setting is wrong.
        RecipeError: One needs gradients, and the recipe's model has none.
    """
    made = {attack.name: [registry.build("attack", attack.name, attack.settings)] for attack in recipe.attacks}
    for suite in recipe.suites:
        made[suite.name] = [attack for _, attack in attacks_of(registry.build("suite", suite.name, suite.settings))]
    for name, attacks in made.items() if lacks_gradient(recipe.model.name) else ():
        if not all(map(is_black_box, attacks)):
            raise RecipeError(
                f"attacks, suites: expected attacks without gradients for {recipe.model.name}, which has none, got {name}; use square, "
                "transfer or random"
            )


def corruption_cases(recipe: Recipe, chips: ChipContext) -> Iterator[Case]:
    """Yield every corruption of a recipe at every severity.

    Raises:
        UsageError: A corruption does not fit the chips.
    """
    for section in recipe.corruptions:
        made = {section.called or section.name: build_corruption(section.name, section.settings, chips)}
        yield from severity_cases(made, section.severities)


def baseline_name(method: BaselineSection) -> str:
    """Return the name of a baseline in the rows: as it is called, else its index and rule, or its registered name."""
    named = "-".join(str(method.settings[key]) for key in ("index", "rule") if key in method.settings)
    return method.called or named or method.name


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
    networks = [network.name for network in recipe.networks]
    names = [*networks, *map(baseline_name, recipe.baselines), *(f"+{one.called}" for one in recipe.uncertainty)]
    if twice_named := [name for name in names if names.count(name) > 1]:
        raise RecipeError(
            f"baselines, uncertainty: expected each name once, got {twice_named[0]!r} twice; give one of two baselines another `called`, or put it into another recipe"
        )
