"""The command line as a test sees it: what it said and with what code it left."""

import contextlib
import hashlib
import io
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seawall import cli as command_line

LINE = re.compile(r"^error: \S.*?: (expected .+, got .+|unknown .+)(;|\().+")
"""`<where>: expected <what>, got <value>; <what to do>`, or an unknown name with a guess."""


@dataclass(frozen=True)
class Done:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that starts with error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def failed(self) -> dict[str, str]:
        """Reason of each item that failed."""
        found = (
            line.removeprefix("failed: ").split(": ", 1)
            for line in self.out.splitlines()
            if line.startswith("failed: ")
        )
        return {Path(item).stem: reason for item, reason in found}

    def refused(self, code: int, *says: str) -> str:
        """Check code, form and content of a refusal and return its line."""
        assert self.code == code, (self.code, self.out, self.err)
        assert "Traceback" not in self.err + self.out
        assert LINE.match(self.error) or code == 3, self.error
        for word in says:
            assert re.search(word, self.error), (word, self.error)
        return self.error


def cli(*words: str | Path) -> Done:
    """Run the command line in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["seawall", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line.main()
        code: object = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        sys.argv = before
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def process(*words: str | Path, limit: int = 0) -> Done:
    """Run the command line as a process of its own, with files of at most `limit` bytes."""

    def full() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "seawall.cli", *map(str, words)], capture_output=True, text=True, check=False, preexec_fn=full
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process grows beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file of a folder that is not hidden."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
