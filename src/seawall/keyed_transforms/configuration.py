"""The section of a recipe on a keyed transform: the transform, where its key is, and the attacks that go with it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from seawall.keyed_transforms.keys import check_key_source


class KeyedSection(BaseModel):
    """A keyed transform before the network, and what it is measured against; never one without the other.

    Two more networks are trained alike: one without the transform, and one with another key, as an adversary without
    the key would train it.

    Args:
        transform: Registered keyed transform.
        settings: Its settings, such as `{block = 4}`.
        key: File of the key, or "env:NAME"; never the key itself.
        range: Data values that become 0 and 1 before the transform; by default those of the unit.
        threats: Threats of the adaptive attacks, each with its unit.
        steps: Steps of PGD.
        queries: Forward passes per chip of the attack without gradients.
        guesses: Keys that the adversary with the weights and without the key guesses at once.
        wrong_keys: Keys that the network is tried with on clean images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    transform: str
    settings: dict[str, Any] = Field(default_factory=dict)
    key: str
    range: tuple[float, float] | None = None
    threats: tuple[str, ...] = Field(min_length=1)
    steps: int = Field(20, ge=1, le=1000)
    queries: int = Field(200, ge=1, le=100_000)
    guesses: int = Field(8, ge=1, le=100)
    wrong_keys: int = Field(5, ge=1, le=100)

    @field_validator("key")
    @classmethod
    def _check_source(cls, key: str) -> str:
        return check_key_source(key)
