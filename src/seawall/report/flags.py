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
    Flag("no-intervals", "Too few places for an interval over places.",
         "Read the figure as one observation; add places to the test part."),
    Flag("overlap-below-receptive-field", "Neighboring tiles share fewer pixels than the network needs, so the map depends on the tiles.",
         "Leave out --overlap, or give at least the pixels that the flag names."),
    Flag("receptive-field-unknown", "The network has no bound to how far it looks, so another size of tiles gives another map.",
         "Map with tiles of the size that the network was judged on."),
    Flag("model-identity-unknown", "The network has an attribute whose value cannot be told, so no earlier result of it is used again.",
         "The numbers stand; give the class a method identity() that names the attributes that count."),
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

    Example:
        >>> explain("softmax").id
        'probabilities'
        >>> explain("odd").means
        'The run marked this number with “odd”.'
    """
    key = re.sub(r"[^a-z0-9]+", "-", flag.partition(":")[0].lower()).strip("-") or "flag"
    if key.startswith("partial-suite"):
        key = "partial-suite"
    key = _ALIASES.get(key, key)
    for known in _KNOWN:
        if known.id == key:
            return known
    return Flag(key, f"The run marked this number with “{flag}”.", "Do not quote it before the reason is known.")
