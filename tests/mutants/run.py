"""Plant known bugs one at a time and see whether the tests that belong to them notice.

Each `[[mutant]]` of the TOML files beside this script is one changed expression with the tests that must fail. A mutant is
caught when they fail (or hang), missed when they pass. Before any mutant, the same tests must pass on the code as it is.

    python tests/mutants/run.py                     # all of them, on two cores
    python tests/mutants/run.py --only train        # those whose name, file or list holds the word
    python tests/mutants/run.py --markdown          # the table of docs/mutants.md
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import py_compile
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("src", "tests", "recipes", "docs", "benchmarks", "pyproject.toml", "README.md", "Makefile", "constraints.txt")
BAR = 0.95
"""Share of the mutants that must be caught."""


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Args:
        area: Name of the list it is from.
        name: The bug in words.
        file: Path from the project's root.
        old: Text that occurs once in the file.
        new: What stands there instead.
        tests: Arguments of pytest; they must fail with the bug and pass without it.
    """

    area: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """Return a source text with the bug in it.

        Raises:
            ValueError: The old text does not occur exactly once: the code has moved on and the mutant must follow.
            SyntaxError: The source does not parse with the bug.
        """
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.area}: {self.name!r}: {text.count(self.old)} places in {self.file} hold {self.old!r}"
            )
        planted = text.replace(self.old, self.new)
        compile(planted, self.file, "exec")  # what does not even parse would be caught by anything
        return planted


def read_mutants(folder: Path = ROOT / "tests" / "mutants") -> list[Mutant]:
    """Return every mutant of every list."""
    return [
        Mutant(path.stem, each["name"], each["file"], each["old"], each["new"], tuple(each["tests"]))
        for path in sorted(folder.glob("*.toml"))
        for each in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    ]


class Copies:
    """Copies of the project, each with a worker, so that mutants never touch the tree and don't see each other."""

    def __init__(self, jobs: int, limit_s: float) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mutants-"))
        self.limit_s = limit_s
        self.workers: list[subprocess.Popen[str]] = []
        self.free: queue.Queue[tuple[Path, subprocess.Popen[str]]] = queue.Queue()
        for job in range(jobs):
            copy = _copy_project(self.home / str(job))
            env = {
                **os.environ,
                "PYTHONPATH": str(copy / "src"),
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            words = [sys.executable, str(copy / "tests" / "mutants" / "worker.py")]
            worker = subprocess.Popen(
                words, cwd=copy, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.workers.append(worker)
            self.free.put((copy, worker))

    def close(self) -> None:
        """End the workers and remove the copies."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        shutil.rmtree(self.home)

    def tests_pass(self, tests: Sequence[str], mutant: Mutant | None = None) -> bool:
        """Run tests in a free copy, with a mutant planted or without; tests that hang have failed.

        Raises:
            RuntimeError: The worker died, so nothing is known.
        """
        copy, worker = self.free.get()
        try:
            if mutant is None:
                return self._answer(worker, tests)
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8")
            path.write_text(mutant.planted(text), encoding="utf-8")
            try:
                return self._answer(worker, tests)
            finally:
                path.write_text(text, encoding="utf-8")
        finally:
            self.free.put((copy, worker))

    def _answer(self, worker: subprocess.Popen[str], tests: Sequence[str]) -> bool:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps([self.limit_s, *tests]) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline().strip()
        if answer not in ("0", "1"):
            raise RuntimeError(f"worker: expected 0 or 1, got {answer!r}; run it alone to see why")
        return answer == "1"


def _copy_project(copy: Path) -> Path:
    """Copy what the tests need; its bytecode is checked by content, because a bug may keep size and time of a file."""
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy / name)
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(copy / "src", quiet=1, invalidation_mode=checked)
    return copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word of the list, name or file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-s", type=float, default=600, help="seconds for the tests of one mutant")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of lines")
    given = parser.parse_args()
    chosen = [m for m in read_mutants() if any(given.only in text for text in (m.area, m.name, m.file))]
    if not chosen:
        print(f"error: no mutant has {given.only!r} in its list, name or file", file=sys.stderr)
        return 2
    copies = Copies(given.jobs, given.limit_s)
    try:
        if not sound(copies, {mutant.tests for mutant in chosen}, given.jobs):
            return 1
        verdicts = judge(copies, chosen, given.jobs)
    finally:
        copies.close()
    print(table(chosen, verdicts) if given.markdown else summary(chosen, verdicts))
    return 0 if sum(v == "caught" for v in verdicts) >= BAR * len(chosen) else 1


def sound(copies: Copies, tests: Iterable[tuple[str, ...]], jobs: int) -> bool:
    """Check that the tests pass on the code as it is, all at once or else one by one; a failing test would catch anything."""
    given = sorted(tests)
    if copies.tests_pass(sorted({word for words in given for word in words})):
        return True
    with ThreadPoolExecutor(jobs) as pool:
        passed = list(pool.map(copies.tests_pass, given))
    for each, fine in zip(given, passed, strict=True):
        if not fine:
            print(f"error: {' '.join(each)} fails without any mutant; mend it first", file=sys.stderr)
    return all(passed)


def judge(copies: Copies, mutants: Sequence[Mutant], jobs: int) -> list[str]:
    """Return caught or missed for each mutant."""

    def one(mutant: Mutant) -> str:
        begin = time.monotonic()
        verdict = "missed" if copies.tests_pass(mutant.tests, mutant) else "caught"
        print(
            f"{verdict}  {mutant.area}: {mutant.name}  ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True
        )
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, mutants))


def summary(mutants: Sequence[Mutant], verdicts: Sequence[str]) -> str:
    """Return the mutants that were not caught, and the catch rate."""
    lines = [f"{v}: {m.area}: {m.name} ({m.file})" for m, v in zip(mutants, verdicts, strict=True) if v != "caught"]
    caught = sum(v == "caught" for v in verdicts)
    return "\n".join([*lines, f"{caught} of {len(mutants)} caught ({caught / len(mutants):.1%})"])


def table(mutants: Sequence[Mutant], verdicts: Sequence[str]) -> str:
    """Return a Markdown table: caught and all per area, then those that were missed."""
    every = Counter(m.area for m in mutants)
    caught = Counter(m.area for m, v in zip(mutants, verdicts, strict=True) if v == "caught")
    rows = [f"| {area} | {caught[area]} | {every[area]} |" for area in sorted(every)]
    total = f"| all | {caught.total()} ({caught.total() / every.total():.1%}) | {every.total()} |"
    return "\n".join(["| list | caught | planted |", "|---|---|---|", *rows, total])


if __name__ == "__main__":
    sys.exit(main())
