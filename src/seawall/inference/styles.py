"""QGIS styles of a map's layers: written beside each GeoTIFF, so that QGIS shows it in its colors at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from seawall.inference.layers import LAYERS, ClassColor, index_labels

QGIS_VERSION = "3.28"
RAMPS: Mapping[str, tuple[ClassColor, ...]] = {
    "probability": ((247, 251, 255), (158, 202, 225), (8, 48, 107)),
    "uncertainty": ((0, 0, 4), (187, 55, 84), (252, 255, 164)),
}
"""Colors at 0, 1/2 and 1: of the probability, and of every measure of uncertainty; both rise or fall in lightness throughout."""


def layer_style(layer: str, classes: Sequence[str], klass: str) -> str:
    """Return the QML text of a layer: its indices in their colors, or a ramp from 0 to 1.

    Args:
        layer: Name of the layer, as in `seawall.inference.layers.LAYERS`.
        classes: Class names of the map.
        klass: The reported class.
    """
    root = ElementTree.Element("qgis", version=QGIS_VERSION, styleCategories="AllStyleCategories")
    pipe = ElementTree.SubElement(root, "pipe")
    if LAYERS[layer].stored == "index":
        renderer = ElementTree.SubElement(
            pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
        )
        palette = ElementTree.SubElement(renderer, "colorPalette")
        for value, (name, color) in index_labels(layer, classes, klass).items():
            ElementTree.SubElement(
                palette, "paletteEntry", value=str(value), label=name, color=_hex(color), alpha="255"
            )
    else:
        _add_ramp(pipe, RAMPS["probability" if layer == "probability" else "uncertainty"])
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ElementTree.tostring(root, "unicode")


def _add_ramp(pipe: ElementTree.Element, colors: Sequence[ClassColor]) -> None:
    """Add a renderer of values between 0 and 1, which QGIS reads through the scale of the band."""
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", type="singlebandpseudocolor", band="1", opacity="1", alphaBand="-1",
        classificationMin="0", classificationMax="1",
    )  # fmt: skip
    shader = ElementTree.SubElement(ElementTree.SubElement(renderer, "rastershader"), "colorrampshader")
    for name, value in {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0",
                        "minimumValue": "0", "maximumValue": "1"}.items():  # fmt: skip
        shader.set(name, value)
    for i, color in enumerate(colors):
        share = f"{i / (len(colors) - 1):g}"
        ElementTree.SubElement(shader, "item", value=share, label=share, color=_hex(color), alpha="255")


def _hex(color: ClassColor) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
