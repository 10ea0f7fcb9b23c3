"""Names of classes: which one figures are of, which have bodies to count, and colors of sets. Loads no PyTorch, for the report reads it too."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.errors import UsageError

SET_COLORS = ((236, 231, 218), (0, 84, 159), (240, 140, 0))
"""Other, the class, cannot tell: light, dark blue and orange, which differ in lightness, whatever the color vision."""


def class_index(name: str, classes: Sequence[str]) -> int:
    """Return the index of a class.

    Raises:
        UsageError: There is no class of that name.
    """
    if name not in classes:
        raise UsageError(f"class: expected one of {', '.join(classes)}, got {name!r}; name one of these")
    return classes.index(name)


def main_class(classes: Sequence[str]) -> str:
    """Return the class that figures are of where none is named: water where there is one, else the last.

    Example:
        >>> main_class(("land", "water", "ice")), main_class(("land", "ice"))
        ('water', 'ice')
    """
    return "water" if "water" in classes else classes[-1]


def body_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes whose connected bodies are counted where none is named: water where there is one, else all but the first."""
    return ("water",) if "water" in classes else tuple(classes[1:])
