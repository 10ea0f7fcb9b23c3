"""Memory of an evaluation: chips read batch by batch, against all of them held.

    python benchmarks/measurement.py [--chips 8 48] [--size 512] [--bands 13]

Prints one JSON object per number of chips: memory and seconds of both ways, each in a process of its own, and their
ratios. Memory is the most that is held at the end of a batch beyond what the process had before the first; mapped files
are left out, because the system takes them back when it needs them. Both measure the same threshold model, clean
images only. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from loader import BANDS, make_folder

from seawall.data.chips import ChipFolder
from seawall.evaluation.case import CLEAN_CASE
from seawall.evaluation.measurement import ChipSource, check_and_evaluate
from seawall.models.water_index import WaterIndexThreshold
from seawall.records import RecordLog
from seawall.types import ModelSpec


def measure(root: Path, way: str, log: Path) -> dict[str, float]:
    """Measure every chip of a folder and return the peak memory of this process and the seconds."""
    folder = ChipFolder.open(root)
    model = WaterIndexThreshold("ndwi")(ModelSpec(folder.bands, folder.classes, folder.unit, folder.gsd_m))
    chips = ChipSource.of_folder(folder, folder.ids)
    before, most = held_mib(), 0.0

    def look(done: int, total: int, note: str) -> None:
        nonlocal most
        most = max(most, held_mib() - before)

    start = time.perf_counter()
    if way == "held":
        batches = list(chips.read(folder.ids))
        chips = replace(chips, read=lambda ids: batches)
    check_and_evaluate(
        model, chips, [CLEAN_CASE], log=RecordLog(log), recipe=lambda case: way, name="ndwi", seed=0, checks=None, progress=lambda case: look
    )  # fmt: skip
    return {"held_mib": round(most, 1), "seconds": round(time.perf_counter() - start, 2)}


def held_mib() -> float:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) / 1024


def compare(root: Path, count: int, home: Path) -> dict[str, object]:
    """Run both ways in their own processes."""
    found = {}
    for way in ("streamed", "held"):
        words = [sys.executable, __file__, "--one", way, str(root), str(home / f"{way}-{count}.jsonl")]
        found[way] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    ratios = {f"{key}_ratio": round(found["held"][key] / found["streamed"][key], 2) for key in found["held"]}
    return {"chips": count, **found, **ratios}


def main() -> None:
    """Print the comparison."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--chips", type=int, nargs="+", default=[8, 48])
    asked.add_argument("--size", type=int, default=512)
    asked.add_argument("--bands", type=int, default=len(BANDS))
    asked.add_argument("--one", nargs=3, metavar=("WAY", "FOLDER", "LOG"))
    given = asked.parse_args()
    if given.one:
        way, root, log = given.one
        print(json.dumps(measure(Path(root), way, Path(log))))
        return
    for count in given.chips:
        with tempfile.TemporaryDirectory() as home:
            make_folder(Path(home) / "chips", count, given.size, given.bands)
            print(json.dumps(compare(Path(home) / "chips", count, Path(home))), flush=True)


if __name__ == "__main__":
    main()
