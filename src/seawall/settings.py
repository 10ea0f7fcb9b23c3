"""Frozen dataclasses of settings: one way to declare ranges, and one way to refuse what is out of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
from pydantic import ConfigDict, ValidationError

from seawall.errors import UsageError, first_error

Settings = TypeVar("Settings")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(where: str, advice: str) -> Callable[[type[Settings]], type[Settings]]:
    """Make a frozen dataclass whose fields are checked and converted by pydantic, alike in Python and inside a recipe.

    Args:
        where: What error messages call the settings.
        advice: What to do about a wrong value.

    Returns:
        A decorator. The constructor of the class raises `UsageError`; pydantic, which does not call it, reports the same findings.

    Example:
        >>> @settings("lamp", "see its label")
        ... class Lamp:
        ...     watts: pydantic.PositiveFloat = 5.0
        >>> Lamp(watts="3")
        Lamp(watts=3.0)
        >>> Lamp(watts=0)
        Traceback (most recent call last):
        seawall.errors.UsageError: lamp.watts: expected greater than 0, got 0; see its label
        >>> Lamp(wats=3)
        Traceback (most recent call last):
        seawall.errors.UsageError: unknown key 'lamp.wats'; did you mean 'watts'?
    """

    def make(plain: type[Settings]) -> type[Settings]:
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        made = pydantic.dataclasses.dataclass(frozen=True, config=config)(plain)
        check, names = made.__init__, [field.name for field in dataclasses.fields(made)]

        @functools.wraps(check)
        def init(self: Settings, *args: Any, **given: Any) -> None:
            by_name = dict(zip(names, args, strict=False))  # an error names the field then, and not its place
            try:
                check(self, *args[len(names) :], **by_name, **given)
            except ValidationError as bad:
                raise UsageError(first_error(bad, where, known=names, advice=advice)) from bad

        made.__init__ = init  # type: ignore[method-assign, assignment]
        return cast(type[Settings], made)

    return make
