"""Chips with labels: folders and their index, splits, the loader, and the curation that makes them."""

from seawall.datasets.chips import Chip, ChipFolder
from seawall.datasets.curate import CurateReport, Estimate, curate
from seawall.datasets.index import ChipHeader, ChipRow
from seawall.datasets.loader import patches, whole
from seawall.datasets.sampling import Sampler, class_shares
from seawall.datasets.simulated import Simulated
from seawall.datasets.sources import IndexTable, Pairs, Sen1Floods11
from seawall.datasets.splits import (
    Split,
    check_disjoint,
    groups_without_water,
    kfold_groups,
    record_split,
    split_blocks,
    split_chips,
    split_facts,
    split_groups,
)
from seawall.datasets.writer import ChipWriter

__all__ = [
    "Chip",
    "ChipFolder",
    "ChipHeader",
    "ChipRow",
    "ChipWriter",
    "CurateReport",
    "Estimate",
    "IndexTable",
    "Pairs",
    "Sampler",
    "Sen1Floods11",
    "Simulated",
    "Split",
    "check_disjoint",
    "class_shares",
    "curate",
    "groups_without_water",
    "kfold_groups",
    "patches",
    "record_split",
    "split_blocks",
    "split_chips",
    "split_facts",
    "split_groups",
    "whole",
]
