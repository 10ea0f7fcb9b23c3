"""Evaluation of the models on held-out chips, clean and attacked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from seawall.attacks.fischer import Fischer
from seawall.chip_context import ChipContext
from seawall.class_names import main_class
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.splits import Split
from seawall.evaluation.case import CLEAN_CASE, Case, fit_set_attacks
from seawall.evaluation.evaluate import write_examples
from seawall.evaluation.measurement import ChipSource, case_progress, check_and_evaluate, most_mixed_chips
from seawall.evaluation.sanity_checks import QUICK_CHECKS
from seawall.inference.backends import find_device
from seawall.metrics.corruption_error import corruption_errors
from seawall.pipeline.context import RunContext
from seawall.pipeline.keyed import adaptive_cases, models_without_key
from seawall.pipeline.reference import exact_cases, transfer_cases
from seawall.pipeline.training import fit_to_chips, model_factory, spec_of_chips
from seawall.pipeline.validate import attack_cases, baseline_name, corruption_cases, possible_cases
from seawall.recipe.recipe import Recipe
from seawall.recipe.sections import OTHER_KEY, REFERENCE
from seawall.types import ModelSpec, SegmentationModel
from seawall.uncertainty.build import build_uncertainty, fitted_estimator
from seawall.uncertainty.temperature import TemperatureScaled, fit_temperature


def evaluate_models(
    run: RunContext,
    chips: ChipFolder,
    split: Split,
    models: Mapping[str, nn.Module],
    baselines: Mapping[str, nn.Module],
) -> None:
    """Evaluate networks and baselines on the held-out chips; the clean network, the reference and the baselines under attack as well.

    A baseline without gradients has the attacks that need none.

    With a reference, attacks on it are given to the clean network, and baselines have their exact worst case where there is one.

    A network behind a keyed transform and the plain one beside it have the adaptive attacks of `seawall.pipeline.keyed` too.

    An estimator of uncertainty around a network is a model of its own, "unet+tta", measured on clean images.
    """
    recipe, log = run.recipe, run.log
    first = next(iter(models))
    models = {**models, **dict(uncertain_models(run, chips, split, models))}
    attacked = {name: models[name] for name in (first, REFERENCE) if name in models} | dict(baselines)
    attacks = [CLEAN_CASE, *attack_cases(recipe, cast(ModelSpec, models[first].spec))]
    corrupted = corruption_cases(recipe, ChipContext.of(chips, split.test))
    cases = [*attacks, *corrupted]
    adaptive = adaptive_cases(recipe, models)
    models |= models_without_key(recipe, models)
    more = transfer_cases(attacks, models[REFERENCE]) if REFERENCE in models else []
    source = ChipSource.of_folder(chips, split.test)
    for name, model in {**attacked, **models}.items():
        mine = [*cases, *more] if name == first else cases if name in attacked else [CLEAN_CASE]
        mine = [*mine, *adaptive.get(name, ())]
        if name in baselines:
            mine = possible_cases(model, mine)
        if more and name in baselines:
            mine = [*exact_cases(attacks, model, next(iter(whole_chips(chips, split.test[:1])))), *corrupted]
        check_and_evaluate(
            model.to(find_device(run.device)), source, mine, log=log,
            recipe=lambda case: recipe.id, name=name, seed=recipe.seed,
            checks=QUICK_CHECKS if recipe.sanity_checks else None,
            progress=case_progress(run.progress, mine, name), fit=lambda: whole_chips(chips, split.train),
        )  # fmt: skip
        if name == first:
            most_mixed = most_mixed_chips(chips, split.test, recipe.examples)
            _write_examples(run, chips, split, name, model, most_mixed, *example_cases(attacks))
            klass = main_class(chips.classes)
            for case in worst_corruptions(run, name, cases, klass):
                _write_examples(run, chips, split, name, model, most_mixed[:1], case, None)


def example_cases(cases: Sequence[Case]) -> tuple[Case, Case | None]:
    """Return the cases of the report's examples: the last one, or a whole-image attack and its restricted variant, if any.

    Example:
        >>> from seawall.attacks.fischer import Fischer
        >>> from seawall.threat import ThreatModel
        >>> eps = ThreatModel("linf", 0.08)
        >>> made = [Case(n, Fischer("water", noise=n), eps) for n in ("whole", "restricted", "inside")]
        >>> [case and case.method for case in example_cases(made)]
        ['whole', 'restricted']
    """
    for case in reversed(cases):
        act = case.attack
        if isinstance(act, Fischer) and act.noise == "whole":
            part = replace(act, noise="restricted")
            variant = next((c for c in cases if c.attack == part and c.threat_text == case.threat_text), None)
            if variant is not None:
                return case, variant
    return cases[-1], None


CORRUPTIONS_SHOWN = 4
"""Corruptions of which the report has a picture."""


def worst_corruptions(run: RunContext, name: str, cases: Sequence[Case], klass: str) -> list[Case]:
    """Return the corruptions that cost a model most, each at its largest severity; at most `CORRUPTIONS_SHOWN`.

    Args:
        run: The run, whose records are there.
        name: Model name in the rows.
        cases: The cases that were measured.
        klass: Class of the IoU.
    """
    made = corruption_errors(run.log, name, "", klass, samples=0)[:-1]
    worst = sorted(made, key=lambda e: -(e.drop.value or 0.0))[:CORRUPTIONS_SHOWN]
    at = [(one.corruption, one.levels[-1].severity) for one in worst]
    return sorted((c for c in cases if (c.method, c.severity) in at), key=lambda c: at.index((c.method, c.severity)))


def _write_examples(
    run: RunContext, chips: ChipFolder, split: Split, name: str, model: nn.Module, wanted: Sequence[str], case: Case, restricted: Case | None
) -> None:  # fmt: skip
    """Write the examples of the report that do not exist yet; a resumed run may have a higher number of them."""
    if case.attack is None and case.corruption is None:
        return
    folder, net = run.folder / "examples", cast(SegmentationModel, model)
    existing = {
        str(example.get("chip"))
        for example in (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json"))
        if (example.get("model"), example.get("method"), example.get("threat")) == (name, case.method, case.threat_text)
    }
    missing = [id_ for id_ in wanted if id_ not in existing]
    if missing:
        [case] = fit_set_attacks([case], net, lambda: whole_chips(chips, split.train), run.recipe.seed)
        write_examples(
            net, whole_chips(chips, missing), case, folder, name=name, seed=run.recipe.seed, restricted=restricted
        )


def uncertainty_facts(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return network and estimator of each model that is an estimator around a network, by the model's name.

    Around the recipe's network, and around each that is trained on noisy labels.
    """
    networks = [one.name for one in recipe.own_networks if one.model == recipe.model and one.name not in NOT_WRAPPED]
    return {
        f"{name}+{one.called}": {"model": name, "estimator": one.called}
        for name in networks
        for one in recipe.uncertainty
    }


NOT_WRAPPED = (REFERENCE, OTHER_KEY)
"""Networks that are there to be compared with, which have no estimators of uncertainty."""


def uncertain_models(
    run: RunContext, chips: ChipFolder, split: Split, models: Mapping[str, nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks with each of the recipe's estimators of uncertainty around them, calibrated where it says so."""
    sections = {one.called: one for one in run.recipe.uncertainty}
    for name, facts in uncertainty_facts(run.recipe).items():
        section, network = sections[facts["estimator"]], models[facts["model"]]
        weights = run.folder / "models" / facts["model"] / "model.safetensors"
        method = build_uncertainty(section.name, section.settings, weights)
        method = fitted_estimator(method, network, lambda: whole_chips(chips, split.train))
        predictor = cast(SegmentationModel, method(cast(SegmentationModel, network)))
        divisor = fit_temperature(predictor, whole_chips(chips, split.val), section.temperature)
        yield name, cast(nn.Module, predictor) if divisor is None else TemperatureScaled(predictor, divisor)


def baseline_models(run: RunContext, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    """Yield the models beside the networks, fitted to the training chips where they are fitted."""
    for method in run.recipe.baselines:
        model = model_factory(method)(spec_of_chips(chips))
        fit_to_chips(model, whole_chips(chips, split.train), run.recipe.seed)
        yield baseline_name(method), model
