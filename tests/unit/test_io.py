"""Atomic writes, digests, containment, CSV cells, and the lock of a run folder."""

import csv
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from seawall import io
from seawall.errors import RunError
from seawall.io import RunLock, escape_formulas, file_sha256, is_inside, open_atomic, write_atomic


def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    write_atomic(path, b"first")
    with pytest.raises(OSError, match="disk"), open_atomic(path) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_midway_leaves_no_final_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from seawall.io import open_atomic\n"
        "with open_atomic(Path(sys.argv[1])) as f:\n f.write(b'half'); f.flush(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "x").exists()


def test_second_run_on_a_folder_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(RunError, match=str(os.getpid())), RunLock(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".lock").write_text(str(dead.pid))
    with RunLock(tmp_path) as lock:
        assert lock.took_over


@pytest.mark.parametrize("text", ["", "1", "alive", "not a number"])
def test_a_lock_file_that_nobody_holds_never_blocks(tmp_path: Path, text: str) -> None:
    text = str(os.getpid()) if text == "alive" else text
    (tmp_path / ".lock").write_text(text)  # a killed owner; its id may belong to a living process by now
    with RunLock(tmp_path) as lock:
        assert lock.took_over == bool(text)
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_refused_run_leaves_the_lock_of_the_owner(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(RunError, match="held by process"), RunLock(tmp_path):
            pass
        with pytest.raises(RunError, match="held by process"), RunLock(tmp_path):
            pass


STAMPEDE = """
import os, sys, time
from pathlib import Path
from seawall import io as files
from seawall.errors import RunError
from seawall.io import RunLock
root, start = Path(sys.argv[1]), float(sys.argv[2])
for trial in range(int(sys.argv[3])):
    folder = root / str(trial)
    while time.time() < start + 0.02 * trial:
        pass
    try:
        with RunLock(folder):
            inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # a second holder fails here
            time.sleep(0.004)
            os.close(inside)
            (folder / "inside").unlink()
    except RunError:
        pass
"""


def test_of_processes_that_start_together_one_holds_the_lock(tmp_path: Path) -> None:
    trials = 90
    for trial in range(trials):
        (tmp_path / str(trial)).mkdir()
        if trial % 3:  # empty lock files and those of dead processes beside fresh folders
            (tmp_path / str(trial) / ".lock").write_text("" if trial % 3 == 1 else "999999")
    words = [sys.executable, "-c", STAMPEDE, str(tmp_path), str(time.time() + 1.5), str(trials)]
    started = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error


def test_texts_that_a_spreadsheet_takes_for_formulas_are_quoted(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from seawall.label_audit import audit

    bad = ("=HYPERLINK(1)", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1")
    for text in bad:
        assert escape_formulas({"a": text}) == {"a": "'" + text}
    fine = {"a": "plain", "b": -0.25, "c": None, "d": "-0.25", "e": "1e-5", "f": "a=b", "g": 3}
    assert escape_formulas(fine) == fine
    rows = [dict.fromkeys(audit.SUSPECT_COLUMNS) | {"chip": "a", "group": bad[0], "loss": -1.5}]
    found = SimpleNamespace(issues=0, cut=0, thresholds=np.zeros(2), joint=np.zeros(1), transition=lambda: np.zeros(1))
    folder = SimpleNamespace(classes=("land", "water"))
    audit._write_ranking(tmp_path, folder, found, rows)  # type: ignore[arg-type]
    with (tmp_path / "suspects.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["group"] == "'" + bad[0] and float(row["loss"]) == -1.5


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4097  # longer than one read
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_link_out_of_a_folder_is_not_inside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/a").touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    assert is_inside(tmp_path / "in", tmp_path / "in/a")
    assert not is_inside(tmp_path / "in", tmp_path / "in/link/a")
    assert not is_inside(tmp_path / "in", tmp_path / "in/../out")
    assert not is_inside(tmp_path / "in", tmp_path / "in2")


def test_a_lock_file_that_its_owner_removes_meanwhile_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, real, late = tmp_path / ".lock", io.fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        if not late:
            late.append(lock.unlink())  # the owner ends between the opening and the locking of its file
        real(handle, how)

    monkeypatch.setattr(io.fcntl, "flock", flock)
    with RunLock(tmp_path):
        assert lock.read_text() == str(os.getpid())
        with pytest.raises(RunError, match="held by process"), RunLock(tmp_path):
            pass
