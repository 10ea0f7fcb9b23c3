"""The section on a keyed transform: every adaptive attack beside the plain network, and access without the key."""

from __future__ import annotations

from seawall.metrics.worst_case import WORST
from seawall.records import KEYED_ATTACKS
from seawall.report.elements import PageBlock, Section, Table, table_row
from seawall.report.record_index import CLEAN_METHOD, RecordIndex, display_name
from seawall.report.run_facts import KeyedRunFacts
from seawall.report.run_reader import RunFolder

PLAIN_ATTACKS = {"key-known": "PGD on the plain network itself"}
"""What the attacks of a keyed network are on the plain one, where that differs."""

STRAIGHT_THROUGH = "; its gradient passes the encryption as if that were the identity, which misleads it"


def keyed_section(run: RunFolder, index: RecordIndex) -> Section | None:
    """Show a keyed network and the plain one under every adaptive attack; None where the run has no keyed transform."""
    facts = run.facts.keyed
    if not index.counts((facts.network, *CLEAN_METHOD)):
        return None
    name = index.display_name(facts.network)
    lead = (
        f"The network gets its images through “{facts.transform}” of blocks of {facts.block} x {facts.block} pixels under a secret key. "
        "Such a defense holds against those who lack the key, and only as far as the rows below show: robustness that rests on "
        "a secret ends where the secret does, and whoever may ask the network for predictions needs no key."
    )
    blocks: list[PageBlock] = [_attack_table(facts, index, name), _access_table(facts, index, name)]
    return Section("keyed", "Behind a keyed transform", lead, blocks)


def _attack_table(facts: KeyedRunFacts, index: RecordIndex, name: str) -> Table:
    threats = [index.threat(text) for text in facts.threats]
    both = {facts.network: f"{name}, keyed", facts.plain: facts.plain}
    rows = []
    attacks = [m for m in KEYED_ATTACKS if index.counts((facts.network, m, facts.threats[0]))]
    for method in ("clean", *attacks, WORST):
        cells = []
        for threat in facts.threats:
            text = "" if method == "clean" else threat
            cells += [index.cell((model, method, text), "iou.pooled") for model in both]
        rows.append(table_row(WORST_ROW if method == WORST else display_name(method), *cells))
    head = (
        ("Attack", ""),
        *((f"{shown}, {threat.amount}", f"{shown}: {threat.text}") for threat in threats for shown in both.values()),
    )
    through = "" if facts.differentiable else STRAIGHT_THROUGH
    said = [f"{method}: {KEYED_ATTACKS[method]}{through if method == 'key-known' else ''}." for method in attacks]
    note = (
        f"{' '.join(said)} Keys guessed at once: {facts.guesses}. On the plain network key-known is {PLAIN_ATTACKS['key-known']}, and the "
        "other rows are the same attacks without its gradients. Worst: the attack that hurts most, chip by chip. "
        "Figures are upper bounds."
    )
    return Table(f"{index.klass} IoU, pooled, by adaptive attack", head, tuple(rows), note, total=True)


WORST_ROW = "worst of all attacks of this run"


def _access_table(facts: KeyedRunFacts, index: RecordIndex, name: str) -> Table:
    models = {
        facts.network: f"{name}, right key",
        **{model: f"{name}, {said}" for model, said in facts.without_key.items()},
        facts.other_key: "trained alike with another key, used with that",
        facts.plain: "trained without a transform",
    }
    metrics = {"iou.pooled": "IoU", "accuracy.pooled": "accuracy"}
    rows = tuple(
        table_row(shown, *(index.cell((model, *CLEAN_METHOD), metric) for metric in metrics))
        for model, shown in models.items()
    )
    head = (("On clean images", ""), *((f"{shown}, pooled", metric) for metric, shown in metrics.items()))
    note = (
        "Access control: what the weights are worth to somebody without the key. Where these rows come near the first one, "
        "the key locks nothing; where they do not, fine-tuning on a few labels may still bring the network back."
    )
    return Table("Without the key", head, rows, note)
