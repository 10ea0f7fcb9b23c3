"""Chips with labels: folders and their index, splits, the loader, and the curation that makes them."""

from seawall.data.chips import Chip, ChipFolder
from seawall.data.curate import CurateEstimate, CurateReport, curate_chips
from seawall.data.index import ChipHeader, ChipRow
from seawall.data.loader import Sampler, class_shares, patches, whole_chips
from seawall.data.sources.index_table import IndexTable
from seawall.data.sources.pairs import Pairs
from seawall.data.sources.sen1floods11 import Sen1Floods11
from seawall.data.sources.simulated import Simulated
from seawall.data.splits import (
    Split,
    check_disjoint,
    groups_without_water,
    kfold_groups,
    record_split,
    split_blocks,
    split_chips,
    split_groups,
    split_summary,
)
from seawall.data.writer import ChipWriter

__all__ = [
    "Chip",
    "ChipFolder",
    "ChipHeader",
    "ChipRow",
    "ChipWriter",
    "CurateReport",
    "CurateEstimate",
    "IndexTable",
    "Pairs",
    "Sampler",
    "Sen1Floods11",
    "Simulated",
    "Split",
    "check_disjoint",
    "class_shares",
    "curate_chips",
    "groups_without_water",
    "kfold_groups",
    "patches",
    "record_split",
    "split_blocks",
    "split_chips",
    "split_summary",
    "split_groups",
    "whole_chips",
]
