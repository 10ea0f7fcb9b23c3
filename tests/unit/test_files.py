"""A file that exists is a file that is whole; a run folder has one owner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seawall.errors import RunError
from seawall.files import RunLock, atomic, write_atomic


def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    write_atomic(path, b"first")
    with pytest.raises(OSError, match="disk"), atomic(path) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_midway_leaves_no_final_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from seawall.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as f:\n f.write(b'half'); f.flush(); os.kill(os.getpid(), 9)"
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
