"""The summary at the top of the page: sentences and key numbers, each number with the key of its record."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.report.attack_effects import attacked_models
from seawall.report.corruptions import mean_error_cell, mean_sentence
from seawall.report.elements import Sentence
from seawall.report.formatting import area_text, percent_text, plural, ratio_text
from seawall.report.record_index import CLEAN_METHOD, MeasurementKey, RecordIndex, TableCell
from seawall.report.robustness import headline_cell
from seawall.report.run_facts import MappedScene, NoiseFacts
from seawall.report.run_reader import RunFolder
from seawall.report.scenes import scene_cell, share_difference, truth_words


@dataclass(frozen=True)
class KeyNumber:
    """A number at the top of the page with its name, and a note on what to compare it with."""

    name: str
    cell: TableCell
    note: str


def main_model(run: RunFolder, index: RecordIndex) -> str:
    """Return the model that the summary is about: the recipe's network, else the first trained one, else the first."""
    plain = [m for m in index.models if m not in index.noises] or list(index.models)
    wanted = run.recipe.model.name if run.recipe else ""
    trained = [m for m in plain if m in run.trained]
    return next((m for m in (wanted, *trained, *plain) if m in plain), "")


def best_baseline(run: RunFolder, index: RecordIndex) -> tuple[str, TableCell] | None:
    """Return the best baseline that was not trained here, by pooled IoU."""
    mine = main_model(run, index)
    known = [
        (scene_cell, m)
        for m in index.models
        if m not in (mine, run.facts.hardening.before, *run.facts.keyed.without_key) and m not in run.trained and m not in index.noises and m not in index.uncertain
        and (scene_cell := index.value((m, *CLEAN_METHOD), "iou.pooled", index.klass)) is not None
    ]  # fmt: skip
    return (max(known)[1], index.cell((max(known)[1], *CLEAN_METHOD), "iou.pooled")) if known else None


def summary_sentences(run: RunFolder, index: RecordIndex) -> tuple[Sentence, ...]:
    """Return the sentences of the summary."""
    model = main_model(run, index)
    if not model:
        return (("This run has not measured anything yet.",),)
    sentences = [
        *_accuracy_sentences(run, index, model),
        *_scene_sentences(run),
        *_attack_sentences(index, model),
        *_corruption_sentences(index, model),
        *_label_noise_sentences(index, model),
    ]
    return tuple(sentences) or (("This run has not measured anything yet.",),)


def _accuracy_sentences(run: RunFolder, index: RecordIndex, model: str) -> list[Sentence]:
    setup: MeasurementKey = (model, *CLEAN_METHOD)
    iou = index.cell(setup, "iou.pooled")
    if not iou.key:
        return []
    recall, precision = (index.cell(setup, m, format_value=percent_text) for m in ("recall.pooled", "precision.pooled"))
    where = f"On {plural(len(index.groups), 'place')} never seen in training" if index.groups else "On the test part"
    if index.value(setup, "iou.pooled", index.klass) is None:
        return [(f"{where}, neither labels nor predictions hold any {index.klass}, so there is no score to give.",)]
    parts: list[str | TableCell] = [
        f"{where}, the {index.display_name(model)} finds ",
        recall,
        f" of the {index.klass} area it should, and ",
        precision,
        f" of what it marks as {index.klass} is {index.klass}: a pooled IoU of ",
        iou,
    ]
    if iou.low:
        parts.append(f" (95 % interval {iou.low} to {iou.high})")
    if other := best_baseline(run, index):
        parts += ["; the best simple rule, ", index.display_name(other[0]), ", reaches ", other[1]]
    return [(*parts, ".")]


def _attack_sentences(index: RecordIndex, model: str) -> list[Sentence]:
    held = [a for a in attacked_models(index) if a.model == model]
    if not held:
        return []
    threat, cell = headline_cell(held[0])
    facts = threat.facts
    everywhere = (
        "each band of each pixel" if facts.norm == "linf" and not (facts.region or facts.limits) else "the image"
    )
    return [(f"An adversary who may change {everywhere} by up to {threat.budget} takes it down to ", cell, ".")]


def _corruption_sentences(index: RecordIndex, model: str) -> list[Sentence]:
    return [mean_sentence(index, model)] if model in index.corrupted else []


def _most_corrupted(index: RecordIndex, model: str) -> tuple[str, NoiseFacts] | None:
    """Return the network that was trained like this one on labels of which the largest share was changed."""
    noisy = [
        (name, noise) for name, noise in index.noisy_models.items() if noise.model == model and not noise.objective
    ]
    known = [(name, noise) for name, noise in noisy if noise.changed_share is not None]
    return max(known, key=lambda one: one[1].changed_share or 0.0) if known else None


def _label_noise_sentences(index: RecordIndex, model: str) -> list[Sentence]:
    most = _most_corrupted(index, model)
    if most is None:
        return []
    name, noise = most
    cell = index.cell((name, *CLEAN_METHOD), "iou.pooled")
    change = f"{noise.noise} changed {noise.changed_text} of the pixels ({noise.rate_text} asked for)"
    return [(f"Trained on masks of which {change}, it reaches ", cell, ".")]


def _scene_sentences(run: RunFolder) -> list[Sentence]:
    for name, scene in run.scenes.items():
        if scene.result.area_km2 is None:
            continue
        mapped = scene_cell(scene, name, "area_km2", area_text(scene.result.area_km2))
        parts: list[str | TableCell] = [
            f"Over the whole {_scene_kind(run)} it maps ",
            mapped,
            f" of {scene.result.klass}",
        ]
        if scene.truth is not None:
            parts += truth_words(scene, name)
        if scene.result.unsure_share is not None:
            unsure = scene_cell(scene, name, "unsure_share", percent_text(scene.result.unsure_share, 1))
            parts += [", and is unsure of ", unsure, " of the pixels"]
        sentences: list[Sentence] = [(*parts, ".")]
        return sentences + [(text,) for text in share_difference(run, scene)]
    return []


def _scene_kind(run: RunFolder) -> str:
    simulated = run.recipe is not None and run.recipe.scene is not None and run.recipe.scene.source == "simulated"
    return "simulated scene" if simulated else "scene"


def key_numbers(run: RunFolder, index: RecordIndex) -> tuple[KeyNumber, ...]:
    """Return up to six key numbers."""
    model = main_model(run, index)
    made = []
    iou = index.cell((model, *CLEAN_METHOD), "iou.pooled")
    if iou.key:
        other = best_baseline(run, index)
        beside = f"{index.display_name(other[0])}: {other[1].text}" if other else "all test pixels together"
        made.append(KeyNumber(f"{run.klass} IoU, pooled", iou, beside))
        per_chip = index.cell((model, *CLEAN_METHOD), "iou.per_chip")
        made.append(KeyNumber(f"{run.klass} IoU, per chip", per_chip, "small waters count as much as large"))
    made += [_truth_number(scene, name) for name, scene in run.scenes.items() if scene.truth is not None][:1]
    held = [a for a in attacked_models(index) if a.model == model]
    if held:
        threat, cell = headline_cell(held[0])
        made.append(KeyNumber("under attack", cell, f"worst case within {threat.budget}"))
    if model in index.corrupted and index.reference:
        beside = f"mean corruption error; 1 is {index.display_name(index.reference)}"
        made.append(KeyNumber("natural perturbations", mean_error_cell(index, model), beside))
    most = _most_corrupted(index, model)
    if most is not None:
        made.append(KeyNumber("after wrong labels", index.cell((most[0], *CLEAN_METHOD), "iou.pooled"), most[1].label))
    return tuple(made)


def _truth_number(scene: MappedScene, name: str) -> KeyNumber:
    truth = scene.truth
    iou = scene_cell(scene, name, "truth.iou", ratio_text(truth.iou if truth else None))
    true_km2 = area_text(truth.true_km2 if truth else None)
    return KeyNumber(
        f"{scene.result.klass} IoU, whole scene", iou, f"maps {area_text(scene.result.area_km2)}, true {true_km2}"
    )
