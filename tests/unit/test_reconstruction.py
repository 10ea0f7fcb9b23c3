"""Pre-training by reconstruction: what is hidden, what counts, and which weights are passed on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seawall.errors import ModelError, UsageError
from seawall.models.blocks import Standardize
from seawall.registry import build, find
from seawall.rng import Keys
from seawall.training.configuration import Masking, Training
from seawall.training.reconstruction import (
    MaskedReconstruction,
    pretrain_network,
    reconstructing_network,
    share_weights,
)
from seawall.types import Architecture, Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def batch_of(images: int = 3, bands: int = 2, size: int = 32) -> Batch:
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(images, bands, 4, 4, generator=draw)
    image = 0.6 * torch.nn.functional.interpolate(smooth, size=size, mode="bilinear")
    seen = torch.ones(images, size, size, dtype=torch.bool)
    seen[:, :5] = False
    return Batch.of(image, torch.zeros(images, size, size).long(), seen=seen, valid=torch.zeros_like(seen))


def network(name: str = "unet", spec: ModelSpec = SPEC) -> torch.nn.Module:
    make = build("model", name, find("model", name).smoke)
    assert isinstance(make, Architecture)
    torch.manual_seed(0)
    model = make(spec)
    assert isinstance(model.standardize, Standardize)
    model.standardize.fit([0.3] * len(spec.bands), [0.1] * len(spec.bands))
    return model


class Perfect(torch.nn.Module):
    """Knows the standardized image, and is wrong by 2 at one place."""

    def __init__(self, batch: Batch, wrong: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.standardize = network().standardize
        self.answer = torch.cat([self.standardize(batch.image), torch.full_like(batch.image[:, :1], 1e6)], 1)
        self.answer[wrong] += 2.0
        self.shown: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shown.append(image)
        return self.answer


def test_as_many_blocks_are_hidden_as_asked_and_bands_as_a_whole() -> None:
    batch = batch_of(200, 4)
    seen = torch.ones_like(batch.seen)
    hidden = MaskedReconstruction(Masking(bands=0.0)).hidden(replace(batch, seen=seen), Keys(0, batch.chips))
    blocks = hidden.float().unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}, "blocks are hidden whole"
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden)), "in all bands"
    assert set(blocks[:, 0].sum((1, 2)).tolist()) == {round(0.6 * 16)}
    assert len({tuple(one.flatten().tolist()) for one in blocks[:20, 0]}) > 15, "chips have their own"
    some = MaskedReconstruction(Masking(bands=0.5)).hidden(replace(batch, seen=seen), Keys(0, batch.chips))
    whole = some.flatten(2).all(2)
    assert float(whole.float().mean()) == pytest.approx(0.5 - 0.5**4 / 4, abs=0.05) and not bool(whole.all(1).any())
    assert not bool((MaskedReconstruction().hidden(batch, Keys(0, batch.chips)) & ~batch.seen[:, None]).any())
    odd = batch_of(2, 2, 13)
    assert MaskedReconstruction().hidden(odd, Keys(0, odd.chips)).shape == (2, 2, 13, 13)


def test_the_loss_is_that_of_hidden_pixels_alone() -> None:
    batch = batch_of()
    masking, keys = MaskedReconstruction(Masking(bands=0.0)), Keys(0, batch.chips)
    hidden = masking.hidden(batch, keys.fold("reconstruction"))
    inside, outside = (tuple(where.nonzero()[0].tolist()) for where in (hidden, ~hidden & batch.seen[:, None]))
    for wrong, value in ((inside, 4.0 / float(hidden.sum())), (outside, 0.0), ((0, 0, 0, 0), 0.0)):
        model = Perfect(batch, wrong)
        assert masking(model, batch, keys).item() == pytest.approx(value, rel=1e-4, abs=1e-9), wrong
        assert torch.equal(model.shown[0][hidden], torch.full((int(hidden.sum()),), 0.3)), "hidden is the mean"
        kept = ~hidden
        assert torch.equal(model.shown[0][kept], batch.image[kept])


@pytest.mark.parametrize(
    "name", ["unet", "unet++", "linknet", "deeplabv3+", "fcn-8s", "pspnet", "segformer", "index-unet"]
)
@pytest.mark.parametrize("bands", [("B03", "B08"), ("B03",), ("B02", "B03", "B08")])
def test_all_but_the_last_layer_is_passed_on_for_any_network(name: str, bands: tuple[str, ...]) -> None:
    classes = ("land", "water", "snow") if len(bands) == 2 else SPEC.classes
    if name == "index-unet" and len(bands) < 2:
        pytest.skip("it needs pairs of bands")
    model = network(name, replace(SPEC, bands=bands, classes=classes))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin = reconstructing_network(model, 1)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.fill_(0.125)
    share_weights(twin, model)
    kept = {key for key, weight in model.named_parameters() if torch.equal(weight, before[key])}
    total = sum(weight.numel() for weight in model.parameters())
    own = sum(weight.numel() for key, weight in model.named_parameters() if key in kept)
    assert kept and own < 0.2 * total, f"{name}: {sorted(kept)} stay"
    assert all(len(classes) in before[key].shape[:2] for key in kept), "they are those of the outputs"


def test_a_network_learns_to_reconstruct_and_keeps_its_last_layer(tmp_path: Path) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masking = Masking(4, 0.4, 0.0)
    training = Training(epochs=6, steps_per_epoch=10, batch=3, patch=32, lr=1e-2, tensorboard=False)

    def feed(epoch: int):
        for index in range(10):
            batch = batch_of()
            yield replace(batch, chips=tuple(f"{id_}@{epoch}.{index}" for id_ in batch.chips))

    history = pretrain_network(model, masking, feed, training, tmp_path)
    losses = [float(row["loss"] or 0) for row in history.rows]
    assert losses[-1] < 0.6 * losses[0], losses
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name for name in same if "standardize" not in name} == {"network.head.weight", "network.head.bias"}
    again = network()
    pretrain_network(again, masking, feed, training, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    for settings, says in (({"block": 0}, "block"), ({"share": 0.0}, "share"), ({"bands": 1.0}, "bands")):
        with pytest.raises(UsageError, match=says):
            Masking(**settings)
    with pytest.raises(ModelError, match="expected a network with weights before its last layer, got linear"):
        pretrain_network(network("linear"), Masking(), lambda epoch: [], Training(), tmp_path)
