"""What each flag on a number means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """A doubt that travels with a number: its id in the records, its meaning, the next step."""

    id: str
    means: str
    do: str


_KNOWN = (
    Flag("zero-gradient", "The gradient of the loss is zero on some chips, so a gradient attack cannot move.",
         "Read the number as “not yet attacked”: run a black-box attack (square) or a transfer attack before quoting it."),
    Flag("vanishing-gradient", "Gradients are so small that steps follow rounding, not the model.",
         "Attack with a loss on logits instead of probabilities, and confirm with a black-box attack."),
    Flag("random-forward", "The model answers differently when asked twice.",
         "Fix its seed or average the attack’s gradient over many answers; until then the number is too kind to the model."),
    Flag("probabilities", "The model gives probabilities where logits were expected; its gradients saturate.",
         "Take the final softmax or sigmoid off the model and run the attack again."),
    Flag("black-box-wins", "An attack without gradients beats one with gradients: the gradients mislead.",
         "Quote the black-box figure, and look for a step in the model that hides gradients."),
    Flag("transfer-wins", "Noise made for another model beats noise made for this one: its gradients mislead.",
         "Quote the transfer figure, and look for a step in the model that hides gradients."),
    Flag("more-steps-gain", "Twice the steps or restarts still lower the score; the attack has not settled.",
         "Run the attack longer until the figure stops moving; this one is an upper bound."),
    Flag("not-monotone", "A larger budget did less harm than a smaller one, which no proper attack allows.",
         "Use the worst case over both budgets, and give the attack more steps at the larger one."),
    Flag("unbounded-survives", "Even with an unlimited budget the model keeps part of its score.",
         "The attack or its gradients are broken: try another loss and a black-box attack before believing the rest."),
    Flag("weaker-than-noise", "The attack does less harm than random noise of the same size.",
         "Do not quote this attack; the random-noise row is the more honest figure."),
    Flag("not-physical", "The chips are 8-bit pictures of unknown stretch, so a budget has no physical size.",
         "Compare models on these chips with each other only; do not compare budgets with reflectance or dB."),
    Flag("partial-suite", "Some attacks were not run on some chips, so the worst case is not complete.",
         "Run the recipe again; it goes on with what is missing."),
    Flag("non-finite-logits", "The model answered with NaN or infinity on some chips.",
         "Look for an overflow in the model on these chips; a figure over them means nothing."),
    Flag("chips-seen-in-training", "The model learned from some of these chips or its weights were chosen by them.",
         "Do not quote it as accuracy on new places: measure the held-out part, which is the default, or other chips."),
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
    Flag("empty", "No pixel of the chip is seen.", "Leave the chip out; it adds nothing to any figure."),
    Flag("unlabelled", "No pixel of the chip has a label that counts.", "Label the chip, or leave it out; it is in no figure."),
    Flag("no-intervals", "Too few places for an interval over places.",
         "Read the figure as one observation; add places to the test part."),
)  # fmt: skip

_ALIASES: Mapping[str, str] = {
    "zero-gradients": "zero-gradient", "gradient-zero": "zero-gradient", "vanishing-gradients": "vanishing-gradient",
    "stochastic": "random-forward", "random": "random-forward", "nondeterministic": "random-forward",
    "non-deterministic": "random-forward", "softmax": "probabilities", "already-softmax": "probabilities",
    "black-box-better": "black-box-wins", "transfer-better": "transfer-wins", "more-steps": "more-steps-gain",
    "more-steps-better": "more-steps-gain", "more-restarts": "more-steps-gain", "non-monotone": "not-monotone",
    "unbounded": "unbounded-survives", "weaker-than-random": "weaker-than-noise", "stretched": "not-physical",
}  # fmt: skip


def explain(flag: str) -> Flag:
    """Return what a flag means; an unknown one is shown as it is and told to be looked up.

    Args:
        flag: The id of a flag, alone or followed by a colon and what was found.

    Example:
        >>> explain("softmax").id
        'probabilities'
        >>> explain("pixel-size: pixels of 30 m").id
        'pixel-size'
        >>> explain("odd").means
        'The run marked this number with “odd”.'
    """
    id_, colon, _ = flag.partition(": ")
    if colon and any(known.id == id_ for known in _KNOWN):
        flag = id_
    key = re.sub(r"[^a-z0-9]+", "-", flag.lower()).strip("-") or "flag"
    if key.startswith("partial-suite"):
        key = "partial-suite"
    key = _ALIASES.get(key, key)
    for known in _KNOWN:
        if known.id == key:
            return known
    return Flag(key, f"The run marked this number with “{flag}”.", "Do not quote it before the reason is known.")
