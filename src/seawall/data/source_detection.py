"""From a place on disk to a source of chips: which layout it has, and the settings of that source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

from seawall import registry
from seawall.data.index import is_chip_folder
from seawall.data.raw_chips import ImageSource, SourceLayout
from seawall.errors import DataError, UsageError
from seawall.types import Setting

DETECT = "auto"
"""Kind of source that stands for the layout that is found."""


def detect_source(place: Path) -> str:
    """Return the name of the source whose layout a place has.

    A source of the trait `general` is taken where no other one claims the place.

    Raises:
        UsageError: Several sources claim it, or it is a chip folder.
        DataError: There is nothing, or no source claims it.
    """
    if is_chip_folder(place):
        raise UsageError(f"{place}: expected raw images, got a chip folder; use it as it is")
    known = list(registry.entries("source"))
    claiming = [entry for entry in known if source_layout(entry).claims(place)]
    claiming = [entry for entry in claiming if "general" not in entry.traits] or claiming
    if len(claiming) > 1:
        names = " and ".join(entry.name for entry in claiming)
        raise UsageError(f"{place}: expected the layout of one source, got {names}; name one of them as kind")
    if claiming:
        return claiming[0].name
    if not place.exists():
        raise DataError(f"{place}: expected a folder or an index, got nothing there; check the path")
    names = ", ".join(entry.name for entry in known)
    raise DataError(f"{place}: expected a layout of {names}, got none of them; arrange the files")


def source_layout(entry: registry.Entry) -> type[SourceLayout]:
    """Return the class of a registered source.

    Raises:
        UsageError: It does not say what it claims.
    """
    if not hasattr(entry.make, "claims"):
        raise UsageError(f"source {entry.name}: expected a class method claims(place), got none; add it")
    return cast(type[SourceLayout], entry.make)


def source_fields(name: str) -> tuple[str, ...]:
    """Return the settings of a source; the first is the place that it is made for.

    Raises:
        UsageError: There is no such source.
    """
    return tuple(f.name for f in fields(registry.find("source", name).make) if f.init)


def make_source(
    place: str | Path, kind: str, asked: Mapping[str, Setting], offered: Mapping[str, Setting]
) -> ImageSource:
    """Return a source with the settings that it has a field for.

    Args:
        place: A folder, a file, or a number of scenes; the value of the source's first field.
        kind: Name of a source, with settings of its own after it ("simulated size=256"); "auto" detects the source.
        asked: What the caller asks for, by the name of the field.
        offered: What is of use to some sources, by the name of the field.

    Raises:
        UsageError: The source is unknown, has no field for what is asked or gets it twice, or a value is of the wrong type.
        DataError: There is nothing at the place, or no source claims it.
    """
    name, own = registry.parse_settings("source", kind)
    name = detect_source(Path(place)) if name == DETECT else name
    first, *known = source_fields(name)
    for key, value in asked.items():
        if key not in known:
            raise UsageError(
                f"curate.{key}: expected no such argument for the source {name!r}, got {value!r}; "
                "it would have no effect, so remove it"
            )
        if key in own:
            raise UsageError(f"curate.{key}: expected it once, got {value!r} beside kind {kind!r}; remove one")
    given = {key: value for key, value in offered.items() if key in known}
    return registry.build("source", name, {first: str(place), **given, **asked, **own})
