"""One thread per worker, the real chips where SEAWALL_DATA names them, and how many tests skip without them."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_chips() -> Path:
    """The folder of real Sentinel chips; tests that need it skip where it is not there."""
    folder = os.environ.get("SEAWALL_DATA", "")
    if not folder or not (Path(folder) / "index.csv").is_file():
        pytest.skip("SEAWALL_DATA names no folder of real chips")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "SEAWALL_DATA" in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests on real chips skipped: set SEAWALL_DATA to run them")
