"""One job in several processes of this machine: started as torchrun starts them, watched, and stopped together."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO

from seawall import errors
from seawall.errors import RunError, SeawallError
from seawall.processes import listening

GRACE_S = 20.0
"""How long the other processes may take to end after one has failed or all were asked to stop."""

Progress = Callable[[int, int, str], None]


@dataclass
class _Child:
    """One process and what it has sent: lines of JSON with its progress or its error."""

    rank: int
    process: subprocess.Popen[str]
    log: IO[str]
    error: SeawallError | None = None
    lines: threading.Thread | None = field(default=None, repr=False)


def run_processes(module: str, job: Mapping[str, object], count: int, where: str, progress: Progress) -> None:
    """Run `python -m module` in several processes that find each other, and wait for all of them.

    Each gets the job as one line of JSON on its standard input, and reports with `report`. When one fails the
    others are stopped, and its error is raised here. SIGINT and SIGTERM are passed on to all.

    Args:
        module: A module that calls `seawall.launch.worker`.
        job: Plain values.
        count: How many processes.
        where: What is being done, for messages.
        progress: Called with what the first process reports.

    Raises:
        SeawallError: What the process that failed raised.
        RunError: A process was killed.
        StoppedError: SIGINT or SIGTERM came.
    """
    told: queue.Queue[tuple[int, dict[str, object]]] = queue.Queue()
    with listening(where) as stopped:
        port = _free_port()
        children: list[_Child] = []
        try:
            for rank in range(count):
                children.append(_start(module, rank, count, told, port))
                _send(children[-1], job)
            _watch(children, told, stopped, progress)
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()
        failed = [child for child in children if child.process.returncode]
        if failed and not stopped.is_set():
            raise _reason(failed, where)


def worker(run: Callable[[Mapping[str, object], Progress], None]) -> None:
    """Run the job that `run_processes` sends on standard input, and send back progress and errors.

    The process ends when the one that started it is gone.
    """
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no message
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    first = os.environ.get("RANK") == "0"

    def tell(done: int, total: int, note: str = "") -> None:
        if first:
            channel.write(json.dumps({"progress": [done, total, note]}) + "\n")

    try:
        run(job, tell)
    except SeawallError as bad:
        known = next(kind.__name__ for kind in type(bad).__mro__ if getattr(errors, kind.__name__, None) is kind)
        cause = type(bad).__name__ != "OtherProcessError"
        channel.write(json.dumps({"error": known, "text": str(bad), "cause": cause}) + "\n")
        channel.flush()
        os._exit(1)  # a broken group of processes must not be asked to say goodbye
    except Exception as bad:
        channel.write(json.dumps({"error": "RunError", "text": f"{type(bad).__name__}: {bad}", "cause": False}) + "\n")
        channel.flush()
        os._exit(1)


def _start(module: str, rank: int, count: int, told: queue.Queue[tuple[int, dict[str, object]]], port: int) -> _Child:
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **os.environ,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "seawall",
    }  # fmt: skip
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  - lives as long as its process
    process = subprocess.Popen(
        [sys.executable, "-m", module], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
    )  # fmt: skip
    child = _Child(rank, process, log)

    def read() -> None:
        for line in process.stdout or ():
            told.put((rank, json.loads(line)))

    child.lines = threading.Thread(target=read, daemon=True)
    child.lines.start()
    return child


def _send(child: _Child, job: Mapping[str, object]) -> None:
    try:
        if child.process.stdin is not None:
            child.process.stdin.write(json.dumps(job) + "\n")
            child.process.stdin.flush()  # it stays open: its end tells the process that this one is gone
    except BrokenPipeError:
        pass  # it is gone already, and its exit code says so below


def _watch(
    children: list[_Child],
    told: queue.Queue[tuple[int, dict[str, object]]],
    stopped: threading.Event,
    progress: Progress,
) -> None:
    """Pass progress on until all have ended; after a failure or a wish to stop, for a while longer at most."""
    until: float | None = None
    asked = False
    while any(child.process.poll() is None for child in children) or not told.empty():
        try:
            rank, message = told.get(timeout=0.1)
        except queue.Empty:
            pass
        else:
            _take(children[rank], message, progress)
        if stopped.is_set() and not asked:
            asked = True
            for child in children:
                child.process.terminate()
        if until is None and any(child.process.poll() for child in children):
            until = time.monotonic() + GRACE_S
        if until is not None and time.monotonic() > until:
            return
    for child in children:
        if child.lines is not None:
            child.lines.join(1.0)
    while not told.empty():
        rank, message = told.get()
        _take(children[rank], message, progress)


def _take(child: _Child, message: Mapping[str, object], progress: Progress) -> None:
    if isinstance(said := message.get("progress"), list):
        progress(int(said[0]), int(said[1]), str(said[2]))
    elif message.get("cause") or child.error is None:
        kind = getattr(errors, str(message["error"]))
        child.error = kind(str(message["text"]))
        child.error.__notes__ = ["cause"] if message.get("cause") else []


def _reason(failed: list[_Child], where: str) -> SeawallError:
    """Return the error that began it: a cause before an echo of it, and anything said before a silent death."""
    said = [child.error for child in failed if child.error is not None]
    causes = [error for error in said if "cause" in getattr(error, "__notes__", ())]
    silent = [child for child in failed if child.error is None]
    if causes:
        return causes[0]
    if silent:
        child = silent[0]
        child.log.seek(0)
        last = (child.log.read().strip().splitlines() or ["no word"])[-1]
        return RunError(
            f"{where}: expected {len(failed)} processes to finish, got exit code {child.process.returncode} of process {child.rank} "
            f"({last}); run the same command again, it goes on from the last checkpoint"
        )
    return said[0]


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
