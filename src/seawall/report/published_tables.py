"""The section that compares a run with the tables of the published SRIP report and of the same lab's later study."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seawall.report.elements import BulletList, Section, Table, table_row
from seawall.report.formatting import plural, ratio_text
from seawall.report.record_index import CLEAN_METHOD, RecordIndex, TableCell
from seawall.report.run_reader import RunFolder
from seawall.report.run_section import label_source
from seawall.report.scores import PUBLISHED_METRICS, is_measured


@dataclass(frozen=True)
class PublishedTable:
    """One table of the published report, its figures by the names of the records' metrics."""

    number: int
    title: str
    trained_on: str
    figures: Mapping[str, float]
    called: str = ""

    @property
    def name(self) -> str:
        """Name of its column."""
        return self.called or f"Report, Table {self.number}"


SRIP_TABLES: tuple[PublishedTable, ...] = (
    PublishedTable(
        1,
        "correct masks",
        "index masks from Sentinel-2",
        {"srip.iou": 0.8067, "srip.accuracy": 0.9530, "srip.precision": 0.8978, "srip.recall": 0.8495,
         "srip.f1": 0.8530, "srip.specificity": 0.9799},
    ),
    PublishedTable(
        2,
        "incorrect masks",
        "a vector water layer",
        {"srip.iou": 0.5950, "srip.accuracy": 0.9011, "srip.precision": 0.6445, "srip.recall": 0.5950,
         "srip.f1": 0.6143, "srip.specificity": 0.9011},
    ),
    PublishedTable(
        3,
        "eroded and dilated masks",
        "one third eroded, one third dilated, one third untouched",
        {"srip.dice": 0.6784, "srip.iou": 0.7527, "srip.accuracy": 0.9357, "srip.precision": 0.8111,
         "srip.recall": 0.8437, "srip.f1": 0.8133, "srip.specificity": 0.9345},
    ),
)  # fmt: skip

POISONING_SWEEP: tuple[PublishedTable, ...] = tuple(
    PublishedTable(
        0, title, trained_on, {"srip.dice": dice, "srip.iou": iou, "srip.accuracy": accuracy}, f"Later study, {rate} %"
    )
    for rate, title, trained_on, dice, iou, accuracy in (
        (0, "clean masks", "index masks as they were", 0.7696, 0.8230, 0.9554),
        (2, "2 % of the pixels", "eroded and dilated masks", 0.7748, 0.8252, 0.9546),
        (12, "12 % of the pixels", "eroded and dilated masks", 0.7693, 0.8224, 0.9546),
        (20, "20 % of the pixels (22 % elsewhere in its text)", "eroded and dilated masks", 0.0541, 0.4150, 0.8045),
    )
)
"""The poisoning sweep of the same lab's later study: the scores fall between 12 % and 20 %."""

COMPARISON_NOTES: tuple[tuple[str, str], ...] = (
    (
        "Its IoU is not water IoU.",
        "The lab's public code takes each image's mean over land and water, then the mean over images; land is easy and "
        "lifts the figure. Table 3 shows it: a Dice of 0.678 for one class can never lie below an IoU of 0.753 for the "
        "same class. Dice is of water alone, and by itself it means a water IoU of about 0.51. The scoring script behind "
        "the tables is inferred from that code.",
    ),
    (
        "Masks and predictions are binarized again.",
        "Under the report's convention both pass through Otsu's threshold before they are compared. The rows named "
        "“report’s convention” on this page do the same, so these columns can be compared; the pooled figures above cannot.",
    ),
    (
        "Table 2 may say nothing about mask quality.",
        "Its six figures fit, to the fourth decimal, a test in which the ground truth held no water pixel at all: recall "
        "equals IoU, specificity equals accuracy, and precision follows from the share of images predicted all land. "
        "That is an inference, not a proof.",
    ),
    (
        "Other pixels, other places.",
        "The report used 1263 chips of 512 × 512 pixels from the Amazon basin, very likely one Sentinel-1 band with masks "
        "from Sentinel-2 (NDWI ≥ −0.25, least cloudy scene of 2023). Its text says Sentinel-2 images; the conflict is open.",
    ),
    (
        "Another split.",
        "The report cut its images into two halves, image by image as far as it says, so a test image may lie next to one "
        "of training. Here whole places, or whole blocks of a scene, are held out.",
    ),
    (
        "Another attack on the masks.",
        "In the report's code dilation returns the first mask over the budget; here no budget is ever exceeded. "
        "There the validation masks were corrupted as well; here only training masks are.",
    ),
)
"""Differences between the published figures and those of a run."""


def published_tables(text: str) -> tuple[PublishedTable, ...]:
    """Return the tables of a recipe's key `published`: one table, the later study's sweep, or else all tables.

    Example:
        >>> [t.name for t in published_tables("poison-cliff")][0], len(published_tables("srip")), published_tables("table 2")[0].number
        ('Later study, 0 %', 3, 2)
    """
    if "cliff" in text:
        return POISONING_SWEEP
    which = table_number(text)
    return tuple(table for table in SRIP_TABLES if which in (None, table.number))


def table_number(text: str) -> int | None:
    """Return the number of the table that a recipe's key `published` names; None where it names none.

    Example:
        >>> table_number("srip-table-3"), table_number("hls"), table_number("table 1")
        (3, None, 1)
    """
    found = re.search(r"table[ -]?([123])\b", text)
    return int(found[1]) if found else None


def published_comparison(run: RunFolder, index: RecordIndex) -> Section | None:
    """Return the published tables beside the scores of this run by the same convention, with the differences."""
    models = [m for m in index.models if any(is_measured(index, m, metric) for metric in PUBLISHED_METRICS)]
    published = run.recipe.published if run.recipe else ""
    if not models or not published:
        return None
    which, tables = table_number(published), published_tables(published)
    trained = _compared_models(run, index, models, which, tables == POISONING_SWEEP)
    head = [("Metric", "name in the published report")]
    head += [(t.name, f"published: {t.title}; trained on {t.trained_on}") for t in tables]
    head += [(f"Ours: {index.display_name(m)}", "the same convention, computed by this run") for m in trained]
    rows = []
    for metric, called in PUBLISHED_METRICS.items():
        theirs = [_published_cell(t.name, t.figures.get(metric)) for t in tables]
        rows.append(
            table_row(
                called, *theirs, *(index.cell((m, *CLEAN_METHOD), metric, format_value=_four_digits) for m in trained)
            )
        )
    pooled = tuple(index.cell((m, *CLEAN_METHOD), "iou.pooled", format_value=_four_digits) for m in trained)
    rows.append(
        table_row(f"For scale: pooled {index.klass} IoU", *(TableCell("–", "not published") for _ in tables), *pooled)
    )
    title = " and ".join(f"Table {t.number}: {t.title}" for t in tables) if which else "Tables 1 to 3"
    title = "The later study's sweep over corrupted masks" if tables == POISONING_SWEEP else title
    table = Table(
        title,
        tuple(head),
        tuple(rows),
        "The published figures carry no intervals; ours are on the test part, places held out.",
    )
    lead = "The report is “Robust Semantic Segmentation of Sentinel Images with UNet and Adversarial Uncertainty” (M. Srinivasan, October 2024). Equal names below mean equal formulas, not equal experiments."
    if tables == POISONING_SWEEP:
        lead = "The later study is of the same lab (mid-term report, figures as printed there). " + lead
    return Section(
        "published",
        "Beside the published report",
        lead,
        (table, BulletList((*_run_description(run, index), *COMPARISON_NOTES))),
    )


def _compared_models(
    run: RunFolder, index: RecordIndex, models: Sequence[str], which: int | None, sweep: bool = False
) -> list[str]:
    """Return the models to compare with a published table; Table 3 and the sweep are about noisy masks."""
    trained = [m for m in models if m in run.trained] or list(models)
    wrong = [m for m in trained if m in index.noises]
    right = [m for m in trained if m not in index.noises]
    if sweep:
        return [*right[:1], *wrong[:3]]
    return (wrong[:4] or right) if which == 3 else (right or wrong)[:4]


def _four_digits(value: float | None) -> str:
    return ratio_text(value, 4)


def _published_cell(name: str, value: float | None) -> TableCell:
    if value is None:
        return TableCell("–", f"not given there ({name})")
    return TableCell(_four_digits(value), f"published ({name})", f"published|{name.removeprefix('Report, ').lower()}")


def _run_description(run: RunFolder, index: RecordIndex) -> tuple[tuple[str, str], ...]:
    chips = f"{run.data.chips} chips" if run.data.chips else "its own chips"
    bands = ", ".join(run.data.bands)
    text = (
        f"This run used {chips} ({label_source(run)}"
        + (f"; bands {bands}" if bands else "")
        + f") and tested on {plural(len(index.groups), 'place')} held out."
    )
    return (("What ours is.", text),)
