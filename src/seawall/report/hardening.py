"""The section on hardening: a hardened network beside the plain one and the threshold models, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.metrics.worst_case import WORST
from seawall.report.attack_effects import attacked_models
from seawall.report.elements import PageBlock, Paragraphs, Section, Sentence, Table, table_row
from seawall.report.formatting import DASH, join_words, number_text, plural
from seawall.report.record_index import CLEAN_METHOD, MeasurementKey, RecordIndex, TableCell
from seawall.report.run_facts import HardeningFacts
from seawall.report.run_reader import RunFolder

TRANSFER_FLAG = "transfer-wins"


def card_rows(run: RunFolder, index: RecordIndex) -> list[tuple[str, tuple[MeasurementKey, ...]]]:
    """Return the rows of the before/after card: a name, and the setups of the clean chips and of every threat.

    Before, after, after under the attacks on the network before, then the models that were attacked beside them.
    """
    facts = run.facts.hardening
    attacked = {a.model: a for a in reversed(attacked_models(index))}
    if facts.after not in attacked:
        return []
    threats = [threat.text for threat in attacked[facts.after].threats]

    def row(name: str, model: str, method: str) -> tuple[str, tuple[MeasurementKey, ...]]:
        return name, ((model, *CLEAN_METHOD), *((model, method, threat) for threat in threats))

    network = index.display_name(facts.after)
    others = [model for model in index.models if model in attacked and model not in (facts.before, facts.after)]
    return [
        row(f"{network}, {facts.before}", facts.before, WORST),
        row(f"{network}, hardened", facts.after, WORST),
        row(f"hardened, attacks on {facts.before}", facts.after, "transfer"),
        *(row(index.display_name(model), model, WORST) for model in others),
    ]


def overfitting_text(facts: HardeningFacts) -> str:
    """Return what the monitor of catastrophic overfitting said about the training; epochs count from 1.

    Example:
        >>> overfitting_text(HardeningFacts(overfitting_epochs=(11,), kept_epoch=5))
        'after epoch 12: several steps undid what one step did not; the weights are those of epoch 6, the best under several steps'
    """
    if not facts.overfitting_epochs or facts.kept_epoch is None:
        return "none, at no check did several steps leave less than half of the IoU that one step leaves"
    seen = f"after epoch {facts.overfitting_epochs[0] + 1}: several steps undid what one step did not"
    kept = f"the weights are those of epoch {facts.kept_epoch + 1}"
    if facts.kept_epoch in facts.overfitting_epochs:
        return f"{seen}; {kept}, which have it too, because no earlier check was better: do not rely on them"
    return f"{seen}; {kept}, the best under several steps"


def hardening_section(run: RunFolder, index: RecordIndex) -> Section | None:
    """Show the before/after card and the bill; None where the run has no reference."""
    facts, rows = run.facts.hardening, card_rows(run, index)
    if not rows:
        return None
    costs = {1: facts.after, 0: facts.before}
    body = tuple(
        table_row(name, *(index.cell(setup, "iou.pooled") for setup in setups), _minutes(facts, costs.get(i, "")))
        for i, (name, setups) in enumerate(rows)
    )
    threats = [index.threat(threat) for _, _, threat in rows[0][1][1:]]
    head = (
        ("Model", ""), ("clean", "no attack"), *((t.amount, f"{t.budget}: {t.text}") for t in threats),
        ("CPU-minutes", "CPU time of the training, its validations included"),
    )  # fmt: skip
    note = (
        "Worst case over the attacks of each model; a threshold model has its exact worst case, a network an upper bound. "
        f"Attacks on {facts.before}: images that were made against that network, given to the hardened one."
    )
    blocks: list[PageBlock] = [
        Table(f"{index.klass} IoU, pooled, by network and budget", head, body, note),
        Paragraphs(_sentences(run, index, rows[1][1])),
    ]
    lead = "The same chips and the same split: one network was trained on clean images, the other on attacked ones."
    return Section("hardening", "Before and after hardening", lead, blocks)


def _minutes(facts: HardeningFacts, model: str) -> TableCell | str:
    if not model:
        return ""
    spent, key = facts.cpu_minutes.get(model), f"{model}|||cpu_minutes"
    what = "CPU-minutes of all processes, up to the end of the training"
    return (
        TableCell(DASH, "not recorded with these weights", key)
        if spent is None
        else TableCell(number_text(float(f"{spent:.2g}")), what, key)
    )


def _sentences(run: RunFolder, index: RecordIndex, after: Sequence[MeasurementKey]) -> tuple[Sentence, ...]:
    """Return what the overfitting monitor said, whether transferred attacks beat the others, and the cost of the evaluation."""
    found: list[Sentence] = [(f"Catastrophic overfitting: {overfitting_text(run.facts.hardening)}.",)]
    beaten = [index.threat(setup[2]).budget for setup in after if TRANSFER_FLAG in index.flags(setup)]
    if beaten:
        found.append(
            (f"Attacks without the hardened network’s own gradients did more than those with them, within {join_words(beaten)}: "
             "at these budgets its figures are too good.",)
        )  # fmt: skip
    if spent := run.facts.cpu_seconds.get("evaluation"):
        chips = len(index.counts((run.facts.hardening.after, *CLEAN_METHOD)))
        found.append(
            (
                f"The evaluation of all models on {plural(chips, 'chip')} took {number_text(float(f'{spent / 60:.2g}'))} CPU-minutes.",
            )
        )
    return tuple(found)
