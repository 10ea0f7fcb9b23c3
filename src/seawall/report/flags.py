"""The registry of flags: what each flag on a number or a map means, how serious it is, and what to do.

It lists exactly the flags that the code of seawall writes; a test reads the source for that. A row or a map holds
the id of a flag, the id with a detail after a colon, or a sentence that matches `pattern`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Flag:
    """A warning against a number, or a note about it.

    Args:
        id: Name in the records, in links and in the docs.
        means: What was seen.
        do: The next step.
        weight: "warning" if the number may be wrong or too favorable to the model; "note" if it only informs.
        pattern: Regular expression of the text of the flag, where that is not the id itself.
    """

    id: str
    means: str
    do: str
    weight: Literal["warning", "note"] = "warning"
    pattern: str = ""

    def matches(self, text: str) -> bool:
        """Tell whether a text is this flag: its id, its id with a detail after a colon, or a match of `pattern`."""
        form = self.pattern or re.escape(self.id).replace("\\-", "[ _-]")
        return re.match(rf"(?:{form})(?![\w-])", text, re.IGNORECASE) is not None or text == self.id


_FLAGS = (
    Flag("zero-gradient", "The gradient of the loss is zero on some chips, so a gradient attack cannot move.",
         "Read the number as “not yet attacked”: run a black-box attack (square) or a transfer attack before quoting it."),
    Flag("vanishing-gradient", "Gradients are so small that steps follow rounding, not the model.",
         "Attack with a loss on logits instead of probabilities, and confirm with a black-box attack."),
    Flag("random-forward", "The model answers differently when asked twice.",
         "Fix its seed or average the attack’s gradient over many answers; until then the number is too kind to the model."),
    Flag("probabilities", "The model gives probabilities where logits were expected; its gradients saturate.",
         "Take the final softmax or sigmoid off the model and run the attack again.", "warning",
         "probabilities|already softmax"),
    Flag("black-box-wins", "An attack without gradients beats one with gradients: the gradients mislead.",
         "Quote the black-box figure, and look for a step in the model that hides gradients."),
    Flag("transfer-wins", "Noise made for another model beats noise made for this one: its gradients mislead.",
         "Quote the transfer figure, and look for a step in the model that hides gradients."),
    Flag("more-steps-gain", "Twice the steps or restarts still lower the score; the attack has not settled.",
         "Run the attack longer until the figure stops moving; this one is an upper bound."),
    Flag("not-monotone", "A larger budget did less harm than a smaller one, which no proper attack allows.",
         "Use the worst case over both budgets, and give the attack more steps at the larger one."),
    Flag("milder-when-severe", "The same corruption at a smaller severity did clearly more harm.",
         "Look at the curve and the pictures: some perturbations help the model, or take the hard pixels out of the count.", "note"),
    Flag("unbounded-survives", "Even with an unlimited budget the model keeps part of its score.",
         "The attack or its gradients are broken: try another loss and a black-box attack before believing the rest."),
    Flag("weaker-than-noise", "The attack does less harm than random noise of the same size.",
         "Do not quote this attack; the random-noise row is the more honest figure."),
    Flag("weaker-than-exact", "The attack does less harm than the exact worst case of this index, which has a closed form.",
         "Give the attack more steps until it meets the closed form; this one is an upper bound."),
    Flag("no-sanity-checks", "The sanity checks were switched off, so nobody has looked for what speaks against this number.",
         "Attack again without --no-sanity-checks (in a recipe: sanity_checks = true) before quoting it."),
    Flag("not-physical", "The chips are 8-bit pictures of unknown stretch, so a budget has no physical size.",
         "Compare models on these chips with each other only; do not compare budgets with reflectance or dB."),
    Flag("partial-suite", "Some attacks were not run on some chips, so the worst case is not complete.",
         "Run the recipe again; it goes on with what is missing."),
    Flag("non-finite-logits", "The model answered with NaN or infinity on some chips.",
         "Look for an overflow in the model on these chips; a figure over them means nothing."),
    Flag("empty", "The chip holds no pixel that the sensor saw.",
         "Nothing follows from it; leave the chip out, or look at its nodata value.", "note"),
    Flag("unlabelled", "The chip holds no pixel that is both seen and labelled.",
         "It is in no part of a split; add a label, or leave the chip out.", "note"),
    Flag("acquisition-time-unknown", "Nothing says when the scene was acquired: no tag, no stamp in the file's name.",
         "The numbers stand; pass the time to seawall predict if the date of the map matters.", "note",
         "acquisition-time-unknown|the acquisition time is unknown"),
    Flag("unlike-training", "The scene does not look like the training scenes: its band statistics are farther from theirs than a new "
         "scene of their kind is, but for the stated false-alarm rate.",
         "Read the causes in the map's JSON file: a unit, an offset, clouds, snow, another season or land cover. Check the map by eye, or train "
         "on such scenes."),
    Flag("layer-misses-scene", "The vector layer does not touch the scene, so its mask is all land.",
         "Look at the layer's coordinate system and extent; nothing follows from such a mask.", "warning",
         "layer-misses-scene|the layer misses the scene"),
    Flag("overlap-below-receptive-field", "Tiles share fewer pixels than the network looks far, so other tiles give another map.",
         "Raise the overlap to what the text says, and map again.", "warning"),
    Flag("receptive-field-unknown", "Nobody knows how far the network looks, so the map may depend on its tiles.",
         "Map with another tile size, and see whether the area moves.", "note"),
    Flag("layer-empty", "The vector layer has no features, so its mask is all land.",
         "Look at the layer; nothing follows from such a mask.", "warning", "layer-empty|the layer has no features"),
    Flag("no-such-value", "No pixel of the raster has the value that was asked for, so its mask is all land.",
         "Look at which values the raster holds; nothing follows from such a mask.", "warning", r"no-such-value|no pixel has the value \d+"),
    Flag("nothing-known", "No pixel of the raster is known: all of it is nodata.",
         "Look at the raster's nodata value; nothing follows from it.", "warning", "nothing-known|no pixel is known"),
    Flag("shift-at-limit", "The best shift between two sources is the farthest that was tried.",
         "The true one may lie beyond; look at the coordinate systems of both.", "warning", "shift-at-limit|the best shift is the farthest that was tried"),
    Flag("layer-reprojected", "The vector layer has another coordinate system and was reprojected to the scene's.",
         "Nothing needs to be done unless the shores look shifted.", "note", "layer-reprojected|the layer was reprojected"),
    Flag("geometries-repaired", "Some geometries of the vector layer were invalid and were repaired.",
         "Look at the mask where the layer crosses itself.", "note", r"geometries-repaired|\d+ invalid geometries repaired"),
    Flag("features-skipped", "Some features of the vector layer were left out; the text says why.",
         "See whether what was left out is water that matters.", "note", r"features-skipped|\d+ features skipped"),
    Flag("chips-seen-in-training", "The model learned from some of these chips or its weights were chosen by them.",
         "Do not quote it as accuracy on new places: measure the held-out part, which is the default, or other chips."),
    Flag("chips-seen-in-calibration", "Some of these chips are of scenes that the predictor was calibrated on.",
         "Do not quote its calibration or its coverage as that on new places: measure other chips, or calibrate on --part val."),
    Flag("extreme-values", "Some pixels hold numbers that their unit cannot hold, such as a fill value that nobody declared; they count as unseen.",
         "Declare the value as nodata where the files are made; look at the share, and at where these pixels lie."),
    Flag("blank-pixels", "Some pixels are exactly 0 in every band and nobody declared 0 as nodata; they count as unseen.",
         "Declare nodata where the files are made; if 0 was measured there, the images were clipped before they came here."),
    Flag("nodata-in-range", "The declared nodata value is also a possible measurement, and some pixels hold it in some bands only; they count as seen.",
         "Choose a nodata value that no band can measure, such as -9999 or NaN, and write the files again."),
    Flag("offset-suspected", "No band has a dark end: a bright scene, or the offset of 0.1 of Sentinel-2 baseline 04.00 is still in the numbers.",
         "Compare with the product’s metadata; if the offset is in, state it (offset -0.1, or subtract 1000 before scaling)."),
    Flag("no-nodata", "The scene declares no nodata value, so its fill pixels may count as seen.",
         "Declare the nodata value where the scene is made."),
    Flag("nothing-seen", "No pixel of the scene is seen, so its map is empty.",
         "Check that the right file was mapped."),
    Flag("no-area", "The ground area of the scene’s pixels is not known, so areas are missing.",
         "Give the scene a transform and a coordinate system that covers it."),
    Flag("pixel-size", "The scene’s pixels have another size than those that the model was trained on.",
         "Resample the scene, or use a model of its resolution."),
    Flag("model-identity-unknown", "The network has an attribute whose value cannot be told, so no earlier result of it is used again.",
         "The numbers stand; give the class a method identity() that names the attributes that count.", "note"),
)  # fmt: skip
FLAGS_BY_ID = {flag.id: flag for flag in _FLAGS}
"""The registry, by id."""


def find_flag(text: str) -> Flag | None:
    """Return the registered flag of a text, or None.

    Args:
        text: The id of a flag, alone or followed by a colon and what was found, or a sentence that matches a flag's pattern.

    Example:
        >>> find_flag("partial suite: 3 of 60 missing").id, find_flag("odd")
        ('partial-suite', None)
    """
    return next((flag for flag in _FLAGS if flag.matches(text)), None)


def explain(text: str) -> Flag:
    """Return the flag of a text; of one that is not registered, such as a plug-in's, its text is the meaning.

    Example:
        >>> explain("the acquisition time is unknown").weight
        'note'
        >>> explain("odd").means
        'The run marked this number with “odd”, which seawall does not know.'
    """
    if known := find_flag(text):
        return known
    id_ = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "flag"
    means = f"The run marked this number with “{text}”, which seawall does not know."
    return Flag(id_, means, "Look it up where the method that wrote it is described.")


def warning_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Return the flags that are warnings, without the notes.

    Example:
        >>> warning_flags(("zero-gradient", "the acquisition time is unknown"))
        ('zero-gradient',)
    """
    return tuple(flag for flag in flags if explain(flag).weight == "warning")
