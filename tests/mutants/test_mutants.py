"""The planted bugs still fit the code, and the script that plants them can tell a caught one from a missed one."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run import ROOT, Copies, Mutant, read_mutants

MUTANTS = read_mutants()


def test_there_are_many_and_no_two_alike() -> None:
    assert len(MUTANTS) >= 1
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.area}: {m.name}")
def test_it_fits_the_code_and_names_tests_that_exist(mutant: Mutant) -> None:
    mutant.planted((ROOT / mutant.file).read_text(encoding="utf-8"))
    assert all((ROOT / word.split("::")[0]).exists() for word in mutant.tests if not word.startswith("-"))


def test_a_missed_bug_is_told_from_a_caught_one() -> None:
    tests = ("tests/unit/test_rng.py",)
    seedless = Mutant(
        "keys", "the seed means nothing", "src/seawall/rng.py", "str(self.seed), *self.path", "*self.path", tests
    )
    harmless = Mutant("keys", "only prose", "src/seawall/rng.py", "Return keys for a sub-purpose", "Return keys", tests)
    copies = Copies(1, 120)
    try:
        assert [copies.tests_pass(tests), copies.tests_pass(tests, seedless), copies.tests_pass(tests, harmless)] == [
            True,
            False,
            True,
        ]
    finally:
        copies.close()
