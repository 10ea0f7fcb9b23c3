"""A recipe's keyed transform: the networks behind it, the adaptive attacks on them, and what they are worth without the key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from torch import nn

from seawall import registry
from seawall.attacks.transfer import Transfer
from seawall.errors import RecipeError
from seawall.evaluation.case import Case
from seawall.keyed_transforms.keys import SecretKey, public_key, read_key
from seawall.models.keyed import KeyedModel, KeyEnsemble, protect
from seawall.models.weights import spec_of
from seawall.recipe.recipe import Network, Recipe
from seawall.recipe.sections import OTHER_KEY, REFERENCE, KeyedSection
from seawall.threat.parser import parse_threat
from seawall.types import Attack, ModelSpec


def network_key(recipe: Recipe, network: Network) -> SecretKey | None:
    """Return the key of a network: the recipe's, that of the surrogate, which is no secret, or none.

    Raises:
        UsageError: The key cannot be read.
    """
    if recipe.keyed is None or network.name == REFERENCE:
        return None
    return public_key(f"surrogate {recipe.seed}") if network.name == OTHER_KEY else read_key(recipe.keyed.key)


def protected(recipe: Recipe, network: Network, model: nn.Module) -> nn.Module:
    """Return a network behind its keyed transform; the network itself where it has none."""
    key, section = network_key(recipe, network), recipe.keyed
    if key is None or section is None:
        return model
    salt = key_salt(recipe, network)
    return protect(model, section.transform, section.settings, key, salt=salt, valid_range=section.range)


def key_salt(recipe: Recipe, network: Network) -> str:
    """Return the salt of a network's check value, its own for every recipe, so that a resumed training has the same."""
    return hashlib.sha256(f"{recipe.id} {network.name}".encode()).hexdigest()[:32]


def key_check(recipe: Recipe) -> dict[str, str]:
    """Return the check value of the recipe's key, which tells a resumed run that the key is the same."""
    network = recipe.networks[0]
    key = network_key(recipe, network)
    return {} if key is None else {"keyed.check": key.check_value(key_salt(recipe, network))}


def validate_keyed(section: KeyedSection) -> None:
    """Build the transform and read the key before any work.

    Raises:
        UsageError: The transform, a setting or the key is wrong.
        RecipeError: The range does not rise.
    """
    registry.build("keyed-transform", section.transform, section.settings)
    read_key(section.key)
    if section.range is not None and not section.range[0] < section.range[1]:
        raise RecipeError(
            f"keyed.range: expected two rising numbers, got {section.range}; leave it out for those of the unit"
        )


def adaptive_attacks(section: KeyedSection, seed: int, models: Mapping[str, nn.Module]) -> dict[str, Attack]:
    """Return the attacks that a keyed network is never shown without, by their names in the rows.

    Args:
        section: The recipe's section.
        seed: Seed of the guessed keys.
        models: The keyed network first, the plain one and the surrogate.
    """
    network, other = next(iter(models.values())), models[OTHER_KEY]
    assert isinstance(network, KeyedModel) and isinstance(other, KeyedModel)  # `train_networks` has put them there
    guessed = [network.with_key(public_key(f"guess {seed} {i}")).for_attacks() for i in range(section.guesses)]
    pgd = {"steps": section.steps}
    surrogates: dict[str, nn.Module] = {
        "plain": models[REFERENCE],
        OTHER_KEY: other.for_attacks(),
        "guessed": KeyEnsemble(guessed),
    }
    if sloped := not registry.build("keyed-transform", section.transform, section.settings).differentiable:
        surrogates["sloped"] = network.for_attacks()
    given = {name: Transfer(surrogate=net, attack="pgd", attack_settings=pgd) for name, net in surrogates.items()}
    return {
        "key-known": registry.build("attack", "pgd", pgd),
        **({"key-known-slope": given["sloped"]} if sloped else {}),
        "transfer-plain": given["plain"],
        "transfer-other-key": given[OTHER_KEY],
        "guessed-keys": given["guessed"],
        "black-box": registry.build("attack", "square", {"steps": section.queries}),
    }


def adaptive_cases(recipe: Recipe, models: Mapping[str, nn.Module]) -> dict[str, list[Case]]:
    """Return the adaptive attacks on the keyed network and on the plain one, by model; nothing without a keyed transform.

    The plain network gets the same images where they were made without its gradients; "key-known" is PGD on itself, and
    "transfer-plain" and "key-known-slope" are nothing of their own there.
    """
    section, first = recipe.keyed, next(iter(models))
    if section is None:
        return {}
    attacks, spec = adaptive_attacks(section, recipe.seed, models), spec_of(models[first])
    threats = [parse_threat(text, spec) for text in section.threats]
    made = [Case(name, attack, threat) for name, attack in attacks.items() for threat in threats]
    return {first: made, REFERENCE: [case for case in made if case.method not in ("transfer-plain", "key-known-slope")]}


def models_without_key(recipe: Recipe, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the keyed network as whoever has the weights alone can use it: without the transform, and with wrong keys."""
    if recipe.keyed is None:
        return {}
    first, network = next(iter(models.items()))
    assert isinstance(network, KeyedModel)  # as above
    keys = [public_key(f"wrong {recipe.seed} {i}") for i in range(recipe.keyed.wrong_keys)]
    none, *wrong = names_without_key(first, len(keys))
    found: dict[str, nn.Module] = {none: network.without_transform()}
    return found | {name: network.with_key(key) for name, key in zip(wrong, keys, strict=True)}


def names_without_key(network: str, wrong_keys: int) -> dict[str, str]:
    """Return what stands in for the key, by the name in the rows: first no transform, then several wrong keys."""
    return {f"{network}, {said}": said for said in ("no transform", *(f"wrong key {i + 1}" for i in range(wrong_keys)))}


def keyed_facts(recipe: Recipe, spec: ModelSpec) -> dict[str, object]:
    """Return what the report shows of a keyed transform; the key is not among it."""
    section = recipe.keyed
    if section is None:
        return {}
    network, transform = recipe.model.name, registry.build("keyed-transform", section.transform, section.settings)
    threats: Sequence[str] = [str(parse_threat(text, spec)) for text in section.threats]
    return {
        "network": network, "plain": REFERENCE, "other_key": OTHER_KEY, "transform": section.transform, "block": transform.block,
        "differentiable": transform.differentiable, "threats": threats, "guesses": section.guesses,
        "without_key": names_without_key(network, section.wrong_keys),
    }  # fmt: skip
