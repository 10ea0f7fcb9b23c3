"""The tables of the SRIP project report (M. Srinivasan, October 2024), and what its figures measure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One table of the report: what it is of, and its figures under our names of the report's metrics."""

    number: int
    title: str
    trained_on: str
    figures: Mapping[str, float]
    called: str = ""

    @property
    def name(self) -> str:
        """How the page calls it."""
        return self.called or f"Report, Table {self.number}"


METRICS: Mapping[str, str] = {
    "srip.iou": "Average IoU",
    "srip.accuracy": "Average pixel accuracy",
    "srip.precision": "Average precision",
    "srip.recall": "Average recall",
    "srip.f1": "Average F1 score",
    "srip.specificity": "Average specificity",
    "srip.dice": "Average Dice coefficient",
}
"""Metric names of the records to the names that the report prints."""

TABLES: tuple[Published, ...] = (
    Published(
        1,
        "correct masks",
        "index masks from Sentinel-2",
        {"srip.iou": 0.8067, "srip.accuracy": 0.9530, "srip.precision": 0.8978, "srip.recall": 0.8495,
         "srip.f1": 0.8530, "srip.specificity": 0.9799},
    ),
    Published(
        2,
        "incorrect masks",
        "a vector water layer",
        {"srip.iou": 0.5950, "srip.accuracy": 0.9011, "srip.precision": 0.6445, "srip.recall": 0.5950,
         "srip.f1": 0.6143, "srip.specificity": 0.9011},
    ),
    Published(
        3,
        "eroded and dilated masks",
        "one third eroded, one third dilated, one third untouched",
        {"srip.dice": 0.6784, "srip.iou": 0.7527, "srip.accuracy": 0.9357, "srip.precision": 0.8111,
         "srip.recall": 0.8437, "srip.f1": 0.8133, "srip.specificity": 0.9345},
    ),
)  # fmt: skip

CLIFF: tuple[Published, ...] = tuple(
    Published(
        0, title, trained_on, {"srip.dice": dice, "srip.iou": iou, "srip.accuracy": accuracy}, f"Later study, {rate} %"
    )
    for rate, title, trained_on, dice, iou, accuracy in (
        (0, "clean masks", "index masks as they were", 0.7696, 0.8230, 0.9554),
        (2, "2 % of the pixels", "eroded and dilated masks", 0.7748, 0.8252, 0.9546),
        (12, "12 % of the pixels", "eroded and dilated masks", 0.7693, 0.8224, 0.9546),
        (20, "20 % of the pixels (22 % elsewhere in its text)", "eroded and dilated masks", 0.0541, 0.4150, 0.8045),
    )
)
"""The poisoning sweep of the same lab's later study: a cliff between 12 % and 20 %."""

DIFFERENCES: tuple[tuple[str, str], ...] = (
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
"""What a reader must know before comparing a published figure with one of ours."""


def tables_of(text: str) -> tuple[Published, ...]:
    """Return what a recipe reproduces: one table, the later study's sweep, or all tables where it does not say.

    Example:
        >>> [t.name for t in tables_of("poison-cliff")][0], len(tables_of("srip")), tables_of("table 2")[0].number
        ('Later study, 0 %', 3, 2)
    """
    if "cliff" in text:
        return CLIFF
    which = table_of(text)
    return tuple(table for table in TABLES if which in (None, table.number))


def table_of(text: str) -> int | None:
    """Return the report's table that a recipe reproduces.

    Example:
        >>> table_of("srip-table-3"), table_of("hls"), table_of("table 1")
        (3, None, 1)
    """
    found = re.search(r"table[ -]?([123])\b", text)
    return int(found[1]) if found else None
