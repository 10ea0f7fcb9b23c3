"""Names of bands in chips of several sources, such as "s1.pre.VV": a source, a dot and the id of the band.

A source is one of the images of a chip: a sensor, and a time where there are several images of it. Chips of one source have
plain names, and their source is "".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from seawall.errors import UsageError, did_you_mean

SOURCE_PATTERN = re.compile(r"s[12](\.[a-z0-9-]+)?")
"""Names of sources: a sensor, then the time where a chip has several images of the sensor."""


def parse_sources(text: str) -> tuple[str, ...]:
    """Return the names of sources in a text such as "s1,s2.pre".

    Raises:
        UsageError: A name is none of a source, or is there twice.

    Example:
        >>> parse_sources("s1,s2,s2.pre")
        ('s1', 's2', 's2.pre')
    """
    names = tuple(text.split(","))
    for name in names:
        if not SOURCE_PATTERN.fullmatch(name):
            raise UsageError(
                f"sensor: expected s1 or s2, each with a time if there are several (s2.pre), joined by commas, got {name!r}; "
                "see docs/chips.md"
            )
        if names.count(name) > 1:
            raise UsageError(f"sensor: expected each source once, got {name!r} twice; leave one out")
    return names


def qualified_band(source: str, band: str) -> str:
    """Return the name of a band of a source; a band of no named source keeps its name.

    Example:
        >>> qualified_band("s1.pre", "VV"), qualified_band("", "VV")
        ('s1.pre.VV', 'VV')
    """
    return f"{source}.{band}" if source else band


def source_of(band: str) -> str:
    """Return the source of a band, "" where its name has none.

    Example:
        >>> source_of("s1.pre.VV"), source_of("VV")
        ('s1.pre', '')
    """
    return band.rpartition(".")[0]


def short_band(band: str) -> str:
    """Return the id of a band without its source.

    Example:
        >>> short_band("s1.pre.VV"), short_band("VV")
        ('VV', 'VV')
    """
    return band.rpartition(".")[2]


def channels_of_sources(bands: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Return the channels of each source, in the order in which the sources occur.

    Example:
        >>> channels_of_sources(("s1.VV", "s1.VH", "s2.B03"))
        {'s1': (0, 1), 's2': (2,)}
    """
    found: dict[str, list[int]] = {}
    for channel, band in enumerate(bands):
        found.setdefault(source_of(band), []).append(channel)
    return {source: tuple(channels) for source, channels in found.items()}


def channels_of(names: Sequence[str], bands: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the channels of bands; the name of a source stands for all of its bands.

    Raises:
        UsageError: There is no such band and no such source.

    Example:
        >>> channels_of(("s2", "s1.VV"), ("s1.VV", "s1.VH", "s2.B03"), "inputs")
        (2, 0)
    """
    sources = channels_of_sources(bands)
    found: list[int] = []
    for name in names:
        if name not in bands and (not name or name not in sources):
            known = (*bands, *(source for source in sources if source))
            raise UsageError(
                f"{where}: expected bands or sources of the chips, got {name!r}; {did_you_mean(name, known)}"
            )
        found += (bands.index(name),) if name in bands else sources[name]
    return tuple(dict.fromkeys(found))


def bands_of_one_source(bands: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of bands without their source if all are of one, else the names as they are.

    Example:
        >>> bands_of_one_source(("s2.pre.B03", "s2.pre.B08")), bands_of_one_source(("s1.VV", "s2.B03"))
        (('B03', 'B08'), ('s1.VV', 's2.B03'))
    """
    return tuple(map(short_band, bands)) if len(channels_of_sources(bands)) == 1 else tuple(bands)
