"""Properties of chips that methods take as settings: one rule for label noise and corruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, cast

from seawall import registry
from seawall.bands import short_band
from seawall.errors import UsageError, did_you_mean
from seawall.types import ModelSpec, Setting, Units, unit_of_channels

if TYPE_CHECKING:
    from seawall.data.chips import ChipFolder


@dataclass(frozen=True)
class ChipContext:
    """Properties of the chips that a method is applied to.

    Args:
        gsd_m: Meters per pixel.
        bands: Band ids in channel order.
        unit: Unit of the images, or one per band where they differ.
        classes: Class names in the order of the label values; empty where they are not known yet.
        chips: Ids of the chips that the method is applied to, in file order.
    """

    gsd_m: float
    bands: tuple[str, ...]
    unit: Units
    classes: tuple[str, ...] = ()
    chips: tuple[str, ...] = ()

    @staticmethod
    def of(folder: ChipFolder, chips: Sequence[str]) -> ChipContext:
        """Return the context of some chips of a folder."""
        return ChipContext(folder.gsd_m, folder.bands, folder.unit, folder.classes, tuple(chips))

    @staticmethod
    def of_model(spec: ModelSpec, gsd_m: float | None = None) -> ChipContext:
        """Return the context of chips as a model takes them, of its own pixel size unless another is given."""
        return ChipContext(spec.gsd_m if gsd_m is None else gsd_m, spec.bands, spec.unit, spec.classes)

    def of_channels(self, channels: Sequence[int]) -> ChipContext:
        """Return the context of some bands of one source, under their names without the source."""
        bands = tuple(short_band(self.bands[at]) for at in channels)
        return replace(self, bands=bands, unit=unit_of_channels(self.unit, channels))

    def klass(self, given: Setting) -> Setting:
        """Return the index of the class that a method is about: the given index or name, else water.

        Raises:
            UsageError: There is no such class, or none is given and there is neither "water" nor a pair of classes.
        """
        if not self.classes:
            return 0 if given is None or isinstance(given, str) else given
        if isinstance(given, str) and given.isdigit() and given not in self.classes:
            given = int(given)  # an index that was read from text
        if isinstance(given, str):
            if given not in self.classes:
                raise UsageError(f"klass: unknown class {given!r}; {did_you_mean(given, self.classes)}")
            return self.classes.index(given)
        if given is not None:
            if isinstance(given, int) and not 0 <= given < len(self.classes):
                raise UsageError(
                    f"klass: expected a class of {', '.join(self.classes)}, got {given}; choose 0..{len(self.classes) - 1}"
                )
            return given
        if "water" in self.classes:
            return self.classes.index("water")
        if len(self.classes) == 2:
            return 1
        raise UsageError(
            f"klass: expected the class that the method is about, got none of {', '.join(self.classes)}; write klass=<name>"
        )


ContextField = Callable[[ChipContext, Setting], object]
"""The value of a field, from the chips and from what the caller gave (None for nothing)."""

CONTEXT_FIELDS: Mapping[str, ContextField] = {
    "gsd_m": lambda context, given: context.gsd_m if given is None else given,
    "bands": lambda context, given: list(context.bands) if given is None else given,
    "unit": lambda context, given: context.unit if given is None else given,
    "image_unit": lambda context, given: context.unit if given is None else given,
    "classes": lambda context, given: (len(context.classes) or 2) if given is None else given,
    "klass": lambda context, given: context.klass(given),
}
"""Fields of a method that are set from the chips, by name, where the caller gives no setting.

A new method that needs one of these properties declares a field of that name. `image_unit` is for methods whose `unit`
is that of another quantity.
"""


def build_with_context(
    kind: str,
    name: str,
    settings: Mapping[str, Setting],
    context: ChipContext,
    own: Mapping[str, ContextField] | None = None,
) -> object:
    """Build a registered method with the properties of the chips.

    Args:
        kind: Kind of the method.
        name: Registered name.
        settings: Its settings; those of `CONTEXT_FIELDS` that are left out come from the context.
        context: The chips.
        own: Further fields of this kind, or other rules for some of `CONTEXT_FIELDS`.

    Raises:
        UsageError: There is no such method, or a setting is wrong or contradicts the chips.
    """
    names = [f.name for f in fields(registry.find(kind, name).make) if f.init]
    rules = {**CONTEXT_FIELDS, **(own or {})}
    filled = {key: cast(Setting, fill(context, settings.get(key))) for key, fill in rules.items() if key in names}
    if context.classes and filled.get("classes", len(context.classes)) != len(context.classes):
        raise UsageError(
            f"{name}.classes: expected {len(context.classes)} as the chips have, got {filled['classes']}; leave it out"
        )
    return registry.build(kind, name, {**settings, **filled})
