"""Settings of trainings in rounds. Loads no PyTorch, for recipes are read without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from seawall.settings import settings


@settings("training.rounds", "see docs/few-labels.md")
class PaulGanju:
    """Pseudo-labels of chips without labels: an ensemble labels the tiles that it is sure of, and the network goes on with these too.

    Two networks are trained on the known labels: the recipe's, and one of another architecture. The mean of their logits over the
    eight symmetries of the square gives probabilities; a tile is accepted where more than the share `pixels` of its seen pixels
    have one above `confidence`, and its labels are the most probable classes. The recipe's network is then trained further on known and
    accepted labels, and it joins the ensemble of the next round.

    Easy tiles are mostly of land alone, so that the network would forget water. Tiles without a pixel of water are therefore left out,
    in random order, until water has the share that it has among the known labels.

    Paper: Paul and Ganju 2021, arXiv:2107.08369. Differs: the pseudo-labelled chips are training chips, not those that the figures are of;
    tiles of land are thinned; the network of the best round is kept instead of the ensemble with a conditional random field.

    Args:
        rounds: Rounds of pseudo-labels.
        beside: Registered model of the second network.
        beside_settings: Its settings.
        confidence: Probability that a pixel has to exceed.
        pixels: Share of the seen pixels of a tile that has to.
        tile: Side of a tile in pixels; 0 takes whole chips.
        settings: Training settings of the rounds that differ from those of the first training, such as {epochs = 5}.
    """

    rounds: PositiveInt = 2
    beside: str = "unet++"
    beside_settings: Mapping[str, Any] = Field(default_factory=dict)
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    pixels: Annotated[float, Field(ge=0, lt=1)] = 0.9
    tile: NonNegativeInt = 0
    settings: Mapping[str, Any] = Field(default_factory=dict)
    name: ClassVar[str] = "paul-ganju"


@settings("training.rounds", "see docs/few-labels.md")
class RelabelLoop:
    """Image-level labels, in a loop: every pixel gets the label of its image, a network is trained, it labels the pixels anew, and so on.

    A new label never contradicts that of the image: an image of the class keeps more than the share of `image-labels` of it, where need
    be the pixels of highest probability, and one that is not has at most that share of it, none by default. Where the new labels
    become those before, or land and water swap back and forth, nothing is learned any more, so there are two rules to stop.

    Args:
        rounds: Relabellings at most.
        stop: Share of the labels that the network of a round changes, below which the loop ends.
        restart: Whether every round starts from random weights; else from those of the round before.
        settings: Training settings of the rounds that differ from those of the first training.

    Source: the loop for weak annotations of common lectures on segmentation, which has no rule to stop.
    """

    rounds: PositiveInt = 4
    stop: Annotated[float, Field(ge=0, lt=1)] = 0.01
    restart: bool = True
    settings: Mapping[str, Any] = Field(default_factory=dict)
    name: ClassVar[str] = "relabel-loop"
