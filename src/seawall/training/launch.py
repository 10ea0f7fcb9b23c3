"""Signal handling, and one job in several processes of this machine, started as torchrun starts them."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from seawall import errors
from seawall.errors import RunError, SeawallError, StoppedError
from seawall.result import StageProgress

GRACE_S = 20.0
"""Seconds that the other processes have to end after one failed or a signal came."""


@contextmanager
def handle_signals(where: str) -> Iterator[threading.Event]:
    """Set an event at the first SIGINT or SIGTERM; a second one is handled as before.

    Args:
        where: The work, for the message.

    Raises:
        StoppedError: A signal came and the work inside ended without raising.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if event.is_set():
        raise StoppedError(f"{where}: stopped as asked; what was done is saved and the same command goes on from there")


@dataclass
class _WorkerProcess:
    """One process, and its error with a weight: 2 is a cause of the failure, 1 may be one, 0 is a consequence."""

    rank: int
    process: subprocess.Popen[str]
    log: IO[str]
    error: SeawallError | None = None
    weight: int = 0
    lines: threading.Thread | None = field(default=None, repr=False)


def run_processes(module: str, job: Mapping[str, object], count: int, where: str, progress: StageProgress) -> None:
    """Run `python -m module` in several processes that find each other, and wait for all of them.

    Each gets the job as one line of JSON on its standard input; see `worker`. When one fails the
    others are stopped, and its error is raised here. SIGINT and SIGTERM are passed on to all.

    Args:
        module: A module that calls `seawall.training.launch.run_worker`.
        job: Plain values.
        count: How many processes.
        where: The work, for messages.
        progress: Called with what the first process reports.

    Raises:
        SeawallError: What the process that failed raised.
        RunError: A process was killed.
        StoppedError: SIGINT or SIGTERM came.
    """
    messages: queue.Queue[tuple[int, dict[str, object]]] = queue.Queue()
    with handle_signals(where) as stopped:
        port = _free_port()
        children: list[_WorkerProcess] = []
        try:
            for rank in range(count):
                children.append(_start(module, rank, count, messages, port))
                _send_job(children[-1], job)
            _watch(children, messages, stopped, progress)
            failed = [child for child in children if child.process.poll()]  # by themselves, not by what follows
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()
        if failed and not stopped.is_set():
            raise _root_error(failed, where)


def run_worker(run: Callable[[Mapping[str, object], StageProgress], None]) -> None:
    """Run the job that `run_processes` sends on standard input, and send back progress and errors.

    The process ends when its parent ends.
    """
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print does not belong to the messages
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    first = os.environ.get("RANK") == "0"

    def report(done: int, total: int, note: str = "") -> None:
        if first:
            channel.write(json.dumps({"progress": [done, total, note]}) + "\n")

    try:
        run(job, report)
    except Exception as bad:
        # An orderly exit would wait for the broken process group, so the process exits at once.
        kind = next((k.__name__ for k in type(bad).__mro__ if getattr(errors, k.__name__, None) is k), "")
        weight = (0 if type(bad).__name__ == "OtherProcessError" else 2) if kind else 1
        text = str(bad) if kind else f"{type(bad).__name__}: {bad}"
        channel.write(json.dumps({"error": kind or "RunError", "text": text, "weight": weight}) + "\n")
        channel.flush()
        os._exit(1)


def _start(
    module: str, rank: int, count: int, messages: queue.Queue[tuple[int, dict[str, object]]], port: int
) -> _WorkerProcess:
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
    child = _WorkerProcess(rank, process, log)

    def read() -> None:
        for line in process.stdout or ():
            messages.put((rank, json.loads(line)))

    child.lines = threading.Thread(target=read, daemon=True)
    child.lines.start()
    return child


def _send_job(child: _WorkerProcess, job: Mapping[str, object]) -> None:
    try:
        if child.process.stdin is not None:
            child.process.stdin.write(json.dumps(job) + "\n")
            child.process.stdin.flush()  # it stays open: its end tells the process that its parent ended
    except BrokenPipeError:
        pass  # it ended already; its exit code is read below


def _watch(
    children: list[_WorkerProcess],
    messages: queue.Queue[tuple[int, dict[str, object]]],
    stopped: threading.Event,
    progress: StageProgress,
) -> None:
    """Forward progress until all processes end; after a failure or a signal, for at most `GRACE_S` seconds."""
    until: float | None = None
    terminated = False
    while any(child.process.poll() is None for child in children) or not messages.empty():
        try:
            rank, message = messages.get(timeout=0.1)
        except queue.Empty:
            pass
        else:
            _handle_message(children[rank], message, progress)
        if stopped.is_set() and not terminated:
            terminated = True
            for child in children:
                child.process.terminate()
        if until is None and any(child.process.poll() for child in children):
            until = time.monotonic() + GRACE_S
        if until is not None and time.monotonic() > until:
            return
    for child in children:
        if child.lines is not None:
            child.lines.join(1.0)
    while not messages.empty():
        rank, message = messages.get()
        _handle_message(children[rank], message, progress)


def _handle_message(child: _WorkerProcess, message: Mapping[str, object], progress: StageProgress) -> None:
    if isinstance(values := message.get("progress"), list):
        progress(int(values[0]), int(values[1]), str(values[2]))
    else:
        child.error = getattr(errors, str(message["error"]))(str(message["text"]))
        child.weight = int(str(message["weight"]))


def _root_error(failed: list[_WorkerProcess], where: str) -> SeawallError:
    """Return the first cause: a sent error, else a process that died without one, else a consequence of either."""
    reported = sorted((child for child in failed if child.error is not None), key=lambda child: -child.weight)
    died = [child for child in failed if child.error is None]
    if reported and reported[0].error is not None and (reported[0].weight == 2 or not died):
        return reported[0].error
    child = died[0]
    child.log.seek(0)
    last = (child.log.read().strip().splitlines() or ["no message"])[-1]
    return RunError(
        f"{where}: expected every process to finish, got exit code {child.process.returncode} of process {child.rank} "
        f"({last}); run the same command again, it goes on from the last checkpoint"
    )


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
