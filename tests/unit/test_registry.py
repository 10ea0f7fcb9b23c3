"""The registry guesses names, validates settings and refuses what is not a frozen value."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from seawall import registry
from seawall.errors import UsageError
from seawall.registry import HOMES, build, entries, find, register


def test_unknown_names_guess() -> None:
    with pytest.raises(UsageError, match="did you mean 'fgsm'"):
        find("attack", "fgms")
    with pytest.raises(UsageError, match="did you mean 'attack'"):
        list(entries("atack"))


def test_settings_are_checked_against_the_fields() -> None:
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        build("attack", "pgd", {"stps": 3})
    with pytest.raises(UsageError, match="steps"):
        build("attack", "pgd", {"steps": "many"})


def test_a_method_must_be_a_frozen_value() -> None:
    with pytest.raises(UsageError, match="frozen"):

        @register("attack", "loose")
        class Loose:
            pass


def test_a_name_is_taken_once() -> None:
    with pytest.raises(UsageError, match="taken"):

        @register("attack", "pgd")
        @dataclass(frozen=True)
        class Impostor:
            pass


def test_unknown_traits_guess() -> None:
    with pytest.raises(UsageError, match="did you mean 'weak'"):
        register("attack", "x", traits=("weka",))


@pytest.mark.parametrize("kind", sorted(HOMES))
def test_every_method_is_described_in_one_sentence(kind: str) -> None:
    for entry in entries(kind):
        assert entry.summary.endswith("."), f"{kind} {entry.name}: {entry.summary!r}"
        assert len(entry.summary) < 140


def test_a_broken_file_is_named_at_every_call_and_no_method_is_lost(tmp_path: Path) -> None:
    code = """
import importlib, sys
from pathlib import Path
from seawall import registry
from seawall.errors import UsageError
import seawall.attacks
home = Path(sys.argv[1])
(home / "broken.py").write_text("raise RuntimeError('of its author')")
seawall.attacks.__path__.append(str(home))
for call in (1, 2):
    try:
        list(registry.entries("suite"))
    except UsageError as bad:
        assert "broken.py" in str(bad) and "of its author" in str(bad), bad
    else:
        raise SystemExit(f"call {call} said nothing")
(home / "broken.py").unlink()
importlib.invalidate_caches()
assert [e.name for e in registry.entries("suite")] == ["halmosi", "sea", "seawall"]
"""
    home = tmp_path / "more"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(home)], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr


def test_a_broken_plug_in_takes_no_method_away_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = metadata.EntryPoint("mine", "no_such_package.attack", "seawall.methods")
    monkeypatch.setattr(registry, "_loaded", registry._loaded - {"plugins"})
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [broken])
    for _ in range(2):
        assert "pgd" in {entry.name for entry in entries("attack")}
        with pytest.raises(UsageError, match=r"no_such_package.attack did not load: ModuleNotFoundError"):
            find("attack", "mine")
    assert list(registry.broken_plugins()) == ["no_such_package.attack"]
