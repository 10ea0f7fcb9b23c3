"""The exception tree. Every message reads `<where>: expected <what>, got <value>; <what to do>`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SeawallError(Exception):
    """Base of all errors that the user can act on; the command line prints them in one line."""

    exit_code = 1


class UsageError(SeawallError):
    """Invalid use: a wrong setting, an unknown name, an eps without unit."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key, a wrong type or a value out of range."""


class ImageryError(SeawallError):
    """A raster cannot be read, is truncated, or is not safe to open."""


class RadiometryError(ImageryError):
    """Pixel values contradict their declared unit, or their unit is unknown."""


class DataError(SeawallError):
    """A chip, label, index or split is invalid."""


class ModelError(SeawallError):
    """Weights or their specification are invalid or do not fit the data."""


class RunError(SeawallError):
    """A run folder is locked, was made by another recipe, or cannot be written."""


class PartialError(SeawallError):
    """Some items failed while the others were done; each failure is in the message or the report."""

    exit_code = 3


class StoppedError(SeawallError):
    """The work was interrupted by a signal; finished parts are saved, and the same command resumes."""

    exit_code = 130


def expected(what: str, got: object) -> str:
    """Return a pydantic message in the form of all error messages.

    Example:
        >>> expected("Input should be a valid integer", "many")
        "expected a valid integer, got 'many'"
        >>> expected("Field required", {"settings": {}})
        'expected a value, got none'
        >>> expected("Value error, val + test below 1", 2)
        'expected val + test below 1, got 2'
        >>> expected("String should match pattern 'a+'", "b")
        "expected a string to match pattern 'a+', got 'b'"
    """
    if what == "Field required":
        return "expected a value, got none"
    text = re.sub(r"^Input should be ", "", what.removeprefix("Value error, "))
    text = re.sub(r"^(\w+) should (have|match) ", lambda found: f"a {found[1].lower()} to {found[2]} ", text)
    return f"expected {text}, got {got!r}"


def first_error(bad: ValidationError, where: str = "", *, known: Iterable[str] = (), advice: str = "") -> str:
    """Return the first finding of a pydantic validation as `<where>.<key>: expected <what>, got <value>; <what to do>`.

    Args:
        bad: What the validation raised.
        where: Name of the section or method that was validated; "" where the key alone is enough.
        known: Keys beside the first wrong one, which a message on an unknown key guesses from.
        advice: What to do about a wrong value.

    Example:
        >>> from pydantic import TypeAdapter, ValidationError
        >>> try:
        ...     TypeAdapter(list[int]).validate_python([1, "many", None])
        ... except ValidationError as bad:
        ...     first_error(bad, "bands")
        "bands.1: expected a valid integer, unable to parse string as an integer, got 'many' (and 1 more)"
    """
    errors = bad.errors()
    steps = [*([where] if where else []), *map(str, errors[0]["loc"])]
    unknown = errors[0]["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    if unknown and known:
        return f"unknown key {'.'.join(steps)!r}; {did_you_mean(steps[-1], known)}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    what = "no such key" if unknown else errors[0]["msg"]
    finding = f"{'.'.join(steps)}: {expected(what, errors[0].get('input'))}{more}"
    return f"{finding}; {advice}" if advice else finding


def did_you_mean(name: str, known: Iterable[str], most: int | None = None) -> str:
    """Return a hint with the closest known name, or with the known names.

    Args:
        name: The unknown name.
        known: The known ones.
        most: How many of them are listed, at most; None lists all.

    Example:
        >>> did_you_mean("pdg", ["pgd", "fgsm"])
        "did you mean 'pgd'?"
        >>> did_you_mean("x", ["pgd", "fgsm"])
        'known: fgsm, pgd'
        >>> did_you_mean("x", ["pgd", "fgsm", "apgd"], most=2)
        'known: apgd, fgsm and 1 more'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    more = "" if most is None or len(names) <= most else f" and {len(names) - most} more"
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names[:most])}{more}"
