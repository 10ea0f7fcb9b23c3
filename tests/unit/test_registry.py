"""The registry guesses names, validates settings and refuses what is not a frozen value."""

from dataclasses import dataclass

import pytest

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
