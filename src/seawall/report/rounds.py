"""The section on trainings in rounds: what each round added to the labels or changed in them, and what it cost."""

from __future__ import annotations

from collections.abc import Callable

from seawall.report.elements import PageBlock, Section, Table, TableRow, table_row
from seawall.report.formatting import DASH, number_text, percent_text, ratio_text
from seawall.report.record_index import RecordIndex, TableCell
from seawall.report.run_facts import RoundFacts
from seawall.report.run_reader import RunFolder

ROUND_COLUMNS: tuple[tuple[str, str, Callable[[RoundFacts], str]], ...] = (
    ("Chips", "chips without labels of which a tile was accepted, of all", lambda r: _of(r.chips, r.of_chips)),
    ("Tiles", "tiles that are left after those without the class were thinned, of all accepted ones", lambda r: _of(r.kept_tiles, r.accepted)),
    ("Share, accepted", "share of the class in the accepted tiles", lambda r: percent_text(r.accepted_share, 1)),
    ("Share, trained", "share of the class in the labels that the round added or was trained on", lambda r: percent_text(r.share, 1)),
    ("Share, known", "share of the class in the known labels", lambda r: percent_text(r.known_share, 1)),
    ("Changed", "share of the labels that the network of the round changes", lambda r: percent_text(r.changed, 1)),
    ("Validation", "best monitored figure of the round", lambda r: DASH if r.val is None else ratio_text(r.val, 3)),
    ("CPU-minutes", "CPU time of the trainings of the round", lambda r: number_text(r.cpu_minutes and float(f"{r.cpu_minutes:.2g}"))),
)  # fmt: skip


def rounds_section(run: RunFolder, index: RecordIndex) -> Section | None:
    """Show every round of every network that was trained in rounds; None where none was."""
    blocks: list[PageBlock] = [
        _rounds_table(index.display_name(name), rounds, index.klass) for name, rounds in run.facts.rounds.items()
    ]
    if not blocks:
        return None
    lead = (
        "Each round is trained on labels that follow from the predictions of the round before, on training chips alone. The weights that are "
        "kept are those of the round with the best monitored figure."
    )
    return Section("rounds", "Round by round", lead, blocks)


def _rounds_table(name: str, rounds: tuple[RoundFacts, ...], klass: str) -> Table:
    columns = [column for column in ROUND_COLUMNS if any(column[2](one) != DASH for one in rounds)]
    head = (
        ("Round", ""),
        *((title, f"{why}; the class is {klass}" if "class" in why else why) for title, why, _ in columns),
    )
    return Table(f"{name}, {klass}, by round", head, tuple(_round_row(one, columns) for one in rounds))


def _round_row(one: RoundFacts, columns: list[tuple[str, str, Callable[[RoundFacts], str]]]) -> TableRow:
    title = f"{one.round}, kept" if one.kept else str(one.round)
    return table_row(title, *(TableCell(text(one), f"{why} ({one.monitor})" if name == "Validation" else why) for name, why, text in columns))  # fmt: skip


def _of(some: int | None, all_: int | None) -> str:
    return DASH if some is None or all_ is None else f"{some} of {all_}"
