"""A recipe's orders made into methods: built, checked, and told what they must know of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from seawall import registry
from seawall.datasets.chips import Chip, ChipFolder
from seawall.datasets.splits import Split
from seawall.errors import UsageError
from seawall.evaluate import Case
from seawall.imagery.sensors import band_noise, resolve
from seawall.imagery.simulate import ALL13
from seawall.keys import Keys
from seawall.labels.rule import parse_rule
from seawall.poison.thirds import assign_thirds
from seawall.recipe import Noise, Recipe
from seawall.schedule import make_training
from seawall.threat import ThreatModel, parse_threat
from seawall.types import Batch, LabelNoise, ModelSpec, Setting, Unit


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
        for text in attack.threats:
            _vet_threat(text, recipe)
    for noise in recipe.noises:
        registry.find("noise", noise.name)
    if recipe.data.labels not in ("truth", "cover"):
        parse_rule(recipe.data.labels)


def _vet_threat(text: str, recipe: Recipe) -> None:
    # the chips are not there yet, so any unit that the threat fits will do; bands are checked with the chips
    units: tuple[Unit, ...] = (
        ("reflectance", "stretched") if recipe.data.sensor == "s2" else ("sigma0_db", "gamma0_db", "stretched")
    )
    bands = recipe.data.bands or (("VV", "VH") if recipe.data.sensor == "s1" else ALL13)
    wrong: UsageError | None = None
    for unit in units:
        try:
            threat_for(text, ModelSpec(tuple(resolve(bands)), ("land", "water"), unit, 10.0))
            return
        except UsageError as bad:
            wrong = wrong or bad
    if wrong:
        raise wrong


def threat_for(text: str, spec: ModelSpec) -> ThreatModel:
    """Read a threat against a model; multiples of noise are of its sensor's published noise.

    Raises:
        UsageError: The text has no unit, or one that is not the model's.
    """
    return parse_threat(text, spec, noise=band_noise(spec.bands))


def cases_of(recipe: Recipe, spec: ModelSpec) -> Iterator[Case]:
    """Yield every attack of a recipe under every threat of it."""
    for attack in recipe.attacks:
        act = registry.build("attack", attack.name, attack.settings)
        for text in attack.threats:
            yield Case(attack.name, act, threat_for(text, spec))


def noise_of(noise: Noise, rate: float, chips: ChipFolder, split: Split) -> LabelNoise:
    """Build a noise; what it must know of the data (meters per pixel, bands, thirds) is filled in."""
    wanted = {
        f.name for f in fields(registry.find("noise", noise.name).make) if f.default is MISSING or f.name == "parts"
    }
    if noise.settings.get("of") == "meters":
        wanted.add("gsd_m")
    parts: dict[str, Setting] = dict(assign_thirds(split.train))
    context: dict[str, Setting] = {"gsd_m": chips.gsd_m, "bands": list(chips.bands), "unit": chips.unit, "parts": parts}
    given = {name: value for name, value in context.items() if name in wanted}
    settings: dict[str, Setting] = {**given, noise.vary: rate, **noise.settings}
    return cast(LabelNoise, registry.build("noise", noise.name, settings))


@dataclass(frozen=True)
class Relabel:
    """Label noise on whole chips, drawn once per chip whatever patch is cut from it."""

    noise: LabelNoise
    seed: int
    made: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, chip: Chip) -> Chip:
        if chip.id not in self.made:
            batch = Batch(
                torch.from_numpy(chip.image)[None], torch.from_numpy(chip.label)[None],
                torch.from_numpy(chip.seen)[None], torch.from_numpy(chip.valid)[None], (chip.id,),
            )  # fmt: skip
            self.made[chip.id] = self.noise(batch, Keys(self.seed, (chip.id,), ("noise",))).label[0].numpy()
        return replace(chip, label=self.made[chip.id])
