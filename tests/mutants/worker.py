"""Runs pytest again and again in forks of a process that has the slow libraries loaded; the project itself is loaded anew.

Reads a JSON list [seconds, argument, ...] per line from standard input and answers 1 (passed) or 0 (failed, or ran too long).
It works in the folder that it is started in.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

SLOW = (
    "torch", "numpy", "scipy.stats", "scipy.ndimage", "rasterio", "pyproj", "shapely", "cv2", "pydantic", "lightning_fabric",
    "safetensors.torch", "hypothesis", "pytest", "typer", "rich.progress", "jinja2",
)  # fmt: skip


def run(arguments: list[str], limit_s: float) -> bool:
    """Run pytest in a fork and return whether it passed; a fork that takes longer is killed with its children."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "src")]
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments])))
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    for name in SLOW:
        importlib.import_module(name)
    if any(name.split(".")[0] == "seawall" for name in sys.modules):
        raise SystemExit("worker: the project is loaded before a bug is planted; no bug would be seen")
    for line in sys.stdin:
        limit_s, *arguments = json.loads(line)
        print(int(run(arguments, float(limit_s))), flush=True)


if __name__ == "__main__":
    main()
