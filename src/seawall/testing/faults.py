"""What every fault in the weights must keep."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from seawall.models.checksums import WeightChecksums
from seawall.registry import Entry
from seawall.testing.assertions import made, quiet_random, same_batch, same_snapshot, snapshot
from seawall.testing.fixtures import ground_batch
from seawall.types import Batch, ModelSpec
from seawall.weight_faults.int8 import BitFlip, QuantizedWeights, flip_integer, int8_weights
from seawall.weight_faults.search import WeightFault

FAULT_SPEC = ModelSpec(("B02", "B03"), ("land", "water"), "reflectance", 10.0)
FAULT_ROUNDS = 3


def check_flips_are_what_was_flipped(entry: Entry) -> None:
    """Every yielded flip is one bit of the memory, no bit is flipped twice, and each round flips at least one."""
    with int8_weights(flat_network()) as weights:
        before = {name: integers.clone() for name, integers in weights.integers().items()}
        rounds = _rounds(entry, weights, ground_batch())
        assert rounds and all(rounds), "it flipped nothing"
        flips = [flip for some in rounds for flip in some]
        assert len({(f.layer, f.index, f.bit) for f in flips}) == len(flips), "a bit was flipped twice"
        for flip in flips:
            assert int(before[flip.layer][flip.index]) == flip.before, f"{flip} does not begin at what was in memory"
            assert flip.after == flip_integer(flip.before, flip.bit), f"{flip} is not one bit"
            before[flip.layer][flip.index] = flip.after
        same = all(torch.equal(before[name], integers) for name, integers in weights.integers().items())
        assert same, "the memory is not what the flips say"
        assert weights.hamming_distance() == len(flips), "the Hamming distance is not the number of flips"


def check_weights_come_back(entry: Entry) -> None:
    """Afterwards weights, gradients, modes and hooks are as before, to the bit, and the batch was not written to."""
    model, batch = flat_network().train(), ground_batch()
    before, kept = snapshot(model), batch.copy()
    with int8_weights(model) as weights:
        _rounds(entry, weights, batch)
    assert same_snapshot(before, snapshot(model)), "the model is not as it was"
    assert same_batch(batch, kept), "the fault wrote to the batch"


def check_only_its_seed(entry: Entry) -> None:
    """Randomness comes from the seed alone."""
    with quiet_random():
        first = _flips_of(entry, ground_batch())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert first == _flips_of(entry, ground_batch()), "the same seed gave other flips"


def check_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever labels of invalid pixels are, the same bits are flipped."""
    batch = ground_batch()
    first = _flips_of(entry, batch)
    for label in (0, 1, 255, -1):
        other = replace(batch, label=torch.where(batch.valid, batch.label, label))
        assert first == _flips_of(entry, other), f"label {label} of invalid pixels changed the flips"


def check_every_flip_is_detected(entry: Entry) -> None:
    """The checksums of the weights notice every round, at the groups of its flips."""
    with int8_weights(flat_network()) as weights:
        checksums = WeightChecksums.of(weights.integers(), group=8)
        flips = [flip for some in _rounds(entry, weights, ground_batch()) for flip in some]
        found = {(group.tensor, group.group) for group in checksums.changed_groups(weights.integers())}
        assert found == {(flip.layer, flip.index // 8) for flip in flips}, f"changed groups {found}, flips {flips}"


class FlatNetwork(nn.Module):
    """A network of one hidden layer per pixel, with a bias and a batch norm, which no fault may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = FAULT_SPEC
        self.hidden = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 2, H, W)."""
        logits: Tensor = self.head(torch.tanh(self.norm(self.hidden(image))))
        return logits


def flat_network() -> nn.Module:
    """Return a network with stated weights, in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = FlatNetwork()
        for k, weight in enumerate(model.parameters()):
            weight.copy_(torch.sin(torch.arange(weight.numel()) * 1.7 + k).reshape(weight.shape))
    return model.eval()


def _rounds(entry: Entry, weights: QuantizedWeights, batch: Batch) -> list[tuple[BitFlip, ...]]:
    return list(islice(made(entry, WeightFault)(weights, batch, 0), FAULT_ROUNDS))


def _flips_of(entry: Entry, batch: Batch) -> list[tuple[BitFlip, ...]]:
    with int8_weights(flat_network()) as weights:
        return _rounds(entry, weights, batch)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
