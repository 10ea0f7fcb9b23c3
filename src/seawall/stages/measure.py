"""What the models do on held-out chips, clean and attacked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from torch import nn

from seawall.datasets.chips import ChipFolder
from seawall.datasets.loader import whole
from seawall.datasets.splits import Split
from seawall.evaluate import CLEAN, Case, evaluate, missing, write_examples
from seawall.interrogate import QUICK, interrogated
from seawall.models.threshold import ThresholdNet
from seawall.orders import baseline_name, cases_of
from seawall.runtime import find_device
from seawall.stages.learn import maker, spec_of_chips
from seawall.stages.run import Run
from seawall.types import ModelSpec, SegmentationModel


def measure(run: Run, chips: ChipFolder, split: Split, models: Mapping[str, nn.Module]) -> None:
    """Evaluate every model on the held-out chips; the clean network and the baselines under attack as well."""
    recipe, log = run.recipe, run.log
    groups = {row.id: row.group for row in chips.rows}
    first = next(iter(models))
    attacked = {first: models[first], **dict(baselines(run, chips, split))}
    cases = [CLEAN, *cases_of(recipe, cast(ModelSpec, models[first].spec))]
    for name, model in {**attacked, **models}.items():
        model.to(find_device(run.device))
        mine = _flagged(run, chips, split, name, model, cases) if name in attacked else [CLEAN]
        for case in mine:
            shown = name == first and case is mine[-1]  # the last attack at its last threat is the page's example
            todo = missing(
                log, split.test, recipe=recipe.id, name=name, classes=chips.classes, groups=groups, attacks=[case]
            )
            evaluate(
                cast(SegmentationModel, model), whole(chips, todo), log=log, recipe=recipe.id, name=name, groups=groups,
                attacks=[case], seed=recipe.seed, show=telling(chips, split.test, recipe.examples) if shown else (),
                examples=run.folder / "examples", progress=_of(len(todo), run.say(f"{name}: {case.method} {case.spoken}".rstrip())),
            )  # fmt: skip
            if shown:
                _complete_examples(run, chips, split, name, model, case)


def _complete_examples(run: Run, chips: ChipFolder, split: Split, name: str, model: nn.Module, case: Case) -> None:
    """Write the examples that the rows were measured without: the recipe may ask for more of them later."""
    if case.act is None:
        return
    folder = run.folder / "examples"
    there = {
        str(said.get("chip"))
        for said in (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json"))
        if (said.get("model"), said.get("method"), said.get("threat")) == (name, case.method, case.spoken)
    }
    missed = [id_ for id_ in telling(chips, split.test, run.recipe.examples) if id_ not in there]
    if missed:
        net = cast(SegmentationModel, model)
        write_examples(net, whole(chips, missed), case, folder, name=name, seed=run.recipe.seed)


def _of(chips: int, say: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """Tell how many batches there will be, which a stream of them cannot; chips of other sizes make a few more."""
    return lambda done, _, note: say(done, max(done, -(-chips // 8)), note)


def _flagged(run: Run, chips: ChipFolder, split: Split, name: str, model: nn.Module, cases: list[Case]) -> list[Case]:
    """Interrogate a network that is not measured to the end yet: its attacks carry what speaks against them."""
    groups, net = {row.id: row.group for row in chips.rows}, cast(SegmentationModel, model)
    if not missing(
        run.log, split.test, recipe=run.recipe.id, name=name, classes=chips.classes, groups=groups, attacks=cases
    ):
        return cases
    return interrogated(net, whole(chips, telling(chips, split.test, QUICK.chips)), cases, run.recipe.seed)


def telling(chips: ChipFolder, ids: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the chips whose classes are most evenly mixed: pictures of nothing but land show nothing."""
    counts = {id_: chips.row(id_).class_counts for id_ in ids}
    even = {id_: 1 - max(found) / max(sum(found), 1) for id_, found in counts.items()}
    return tuple(sorted(even, key=lambda id_: (-even[id_], id_))[:count])


def baselines(run: Run, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    """Yield the models without training, named by their index."""
    for method in run.recipe.baselines:
        model = maker(method)(spec_of_chips(chips))
        if method.settings.get("rule") == "otsu":
            cast(ThresholdNet, model).fit(whole(chips, split.train))
        yield baseline_name(method), model
