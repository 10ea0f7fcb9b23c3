"""Flipped weight bits: two's complement, gradients of bits, the search against an exhaustive one, defenses, checksums, the verb, the recipe."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import seawall
from seawall import api
from seawall.class_names import main_class
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.splits import record_split, split_chips
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, ModelError, RecipeError, UsageError
from seawall.geo.raster import Grid, write_cog
from seawall.inference.export import export_products
from seawall.inference.output_buffer import OutputBuffer
from seawall.inference.predict import predict_many, predict_scene
from seawall.inference.settings import PredictSettings
from seawall.models.checksums import GROUP_BYTES, WeightChecksums, WeightGuard
from seawall.models.linear import PixelClassifier
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import (
    load_model,
    pack_safetensors,
    read_checksums,
    save_model,
    set_split,
    unpack_safetensors,
)
from seawall.recipe.recipe import make_recipe
from seawall.report.run_facts import FAULT_ROWS
from seawall.report.run_reader import read_run
from seawall.rng import Keys
from seawall.testing.corruptions import OPTICAL_CHIPS, lake_chips
from seawall.testing.faults import flat_network
from seawall.testing.fixtures import ground_batch
from seawall.training.objectives.clustered_weights import ClusteredWeights, clustering_penalty
from seawall.types import Batch, ModelSpec
from seawall.weight_faults.damage import ClassCounts, FaultRound, fault_curve, measure_fault
from seawall.weight_faults.defense import Clipping, Reconstruction, WeightDefense
from seawall.weight_faults.int8 import (
    BIT_VALUES,
    QuantizedWeights,
    bits_to_integers,
    flip_integer,
    int8_weights,
    integers_to_bits,
    weight_parameters,
)
from seawall.weight_faults.search import (
    AttackedLoss,
    CandidateBits,
    ExhaustiveBitSearch,
    FaultObjective,
    ProgressiveBitSearch,
    RandomFlips,
    loss_after,
)
from terminal import cli

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
SEARCH, RANDOM = ProgressiveBitSearch(), RandomFlips()
ALL = torch.arange(-128, 128).to(torch.int8)


class Linear(nn.Module):
    """One 1x1 convolution without a bias; a single row is the logit of water against a logit 0 of land."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.spec = SPEC
        self.layer = nn.Conv2d(2, len(rows), 1, bias=False)
        self.layer.weight.data = torch.tensor(rows)[:, :, None, None]

    def forward(self, image: Tensor) -> Tensor:
        logits = self.layer(image)
        return logits if logits.shape[1] == 2 else torch.cat([torch.zeros_like(logits), logits], 1)


def test_two_s_complement_goes_there_and_back_and_a_bit_adds_what_it_weighs() -> None:
    bits = integers_to_bits(ALL)
    assert torch.equal(bits_to_integers(bits), ALL)
    assert [sum(int(b) << i for i, b in enumerate(row)) for row in bits.tolist()] == [n % 256 for n in range(-128, 128)]
    for integer in range(-128, 128):
        for bit in range(8):
            (as_byte,) = struct.unpack("b", bytes([integer % 256 ^ 1 << bit]))
            assert flip_integer(integer, bit) == as_byte
        assert abs(flip_integer(integer, 7) - integer) == 128 and flip_integer(integer, 7) * integer <= 0
    assert tuple(int(bits_to_integers(torch.eye(8)[i].bool())) for i in range(8)) == BIT_VALUES


def test_weights_are_rounded_to_steps_of_the_largest_over_127_and_come_back_to_the_bit() -> None:
    model = Linear([[0.5, -1.27], [1e-9, 0.3]])
    image = torch.rand(2, 2, 5, 5)
    before, kept = model(image), model.layer.weight.detach().clone()
    with int8_weights(model) as weights:
        (layer,) = weights.layers.values()
        assert layer.integers.tolist() == [50, -127, 0, 30] and layer.step == pytest.approx(0.01)
        assert weights.size == 4 and weights.hamming_distance() == 0
        weights.flip("layer.weight", 1, 7)
        assert model.layer.weight.flatten().tolist() == pytest.approx([0.5, 0.01, 0, 0.3]) and layer.integers[1] == 1
        weights.flip("layer.weight", 2, 7)
        assert layer.integers[2] == -128 and weights.hamming_distance() == 2, "-128 is reached by a flip alone"
    assert torch.equal(model.layer.weight, kept) and torch.equal(model(image), before)
    with pytest.raises(RuntimeError, match="stop"), int8_weights(model) as weights:
        weights.flip("layer.weight", 0, 7)
        raise RuntimeError("stop")
    assert torch.equal(model(image), before), "after an exception too"


@pytest.mark.parametrize("objective", ["ce", "soft-iou"])
def test_the_predicted_change_is_the_bit_gradient_with_its_sign(objective: FaultObjective) -> None:
    model, batch = flat_network(), ground_batch()
    with int8_weights(model) as weights:
        loss = AttackedLoss.of(weights, batch, objective, "given")
        before, gradients = loss.gradients(weights)
        assert before == loss.value(model)
        for name, layer in weights.layers.items():
            found = CandidateBits.of(layer, gradients[name], 0, 10**6)
            assert bool((found.rise > 0).all()) and len(found.index) > len(layer.integers)
            for index, bit, rise in zip(found.index.tolist(), found.bit.tolist(), found.rise.tolist(), strict=True):
                sign = -1 if int(layer.integers[index]) >> bit & 1 else 1
                assert rise == pytest.approx(float(gradients[name][index]) * BIT_VALUES[bit] * sign, rel=1e-5)
            for index in range(len(layer.integers)):
                ends = []
                for step in (1, -2):
                    with torch.no_grad():
                        layer.parameter.view(-1)[index] += step * layer.step
                    ends.append(loss.value(model))
                layer.write()
                slope = (ends[0] - ends[1]) / 2
                assert slope == pytest.approx(float(gradients[name][index]), rel=0.02, abs=3e-7), (
                    "per step of an integer"
                )


@pytest.mark.parametrize("objective", ["ce", "soft-iou"])
def test_on_one_layer_the_search_finds_the_bit_of_the_exhaustive_search(objective: FaultObjective) -> None:
    """With weights so small that the loss is linear in them, the same bit; otherwise the exhaustive one loses nothing."""
    faults = (ProgressiveBitSearch(0, objective, "given"), ExhaustiveBitSearch(objective, "given"))
    for seed in range(8):
        rows, batch = torch.randn(1, 2, generator=torch.Generator().manual_seed(seed)), ground_batch(seed=seed)
        for scale in (0.01, 1.0):
            flips, losses = [], []
            for fault in faults:
                with int8_weights(Linear((scale * rows).tolist())) as weights:
                    loss = AttackedLoss.of(weights, batch, objective, "given")
                    flips.append(next(fault(weights, batch, 0)))
                    losses.append(loss.value(weights.model))
            assert losses[0] <= losses[1]
            assert scale == 1.0 or flips[0] == flips[1], seed


def test_bits_are_added_only_where_no_layer_raises_the_loss() -> None:
    """The first bit alone lowers the measured loss, so that two of the layer are tried together."""
    with int8_weights(flat_network()) as weights:
        (chosen,) = islice(ProgressiveBitSearch(most=3)(weights, ground_batch(), 0), 1)
        assert len(chosen) == 1

    class Watched(AttackedLoss):
        def value(self, model: nn.Module) -> float:
            return float(weights.hamming_distance() >= 2)

        def gradients(self, weights: QuantizedWeights) -> tuple[float, dict[str, Tensor]]:
            return 0.5, super().gradients(weights)[1]

    with int8_weights(flat_network()) as weights:
        loss = Watched(ground_batch(), "ce", 1)
        assert len(ProgressiveBitSearch(most=3).next_round(weights, loss)) == 2 == weights.hamming_distance()
        assert ProgressiveBitSearch(most=1).next_round(weights, Watched(ground_batch(), "ce", 1)) != ()
    with int8_weights(flat_network()) as weights:
        assert ProgressiveBitSearch(most=1).next_round(weights, Watched(ground_batch(), "ce", 1)) == ()
        assert weights.hamming_distance() == 0, "what raised nothing is flipped back"


def test_a_bit_is_not_flipped_back() -> None:
    """The sign bit of 127 is set, and its gradient says to clear it again, which would raise the loss most."""
    with int8_weights(Linear([[0.5, -1.0], [1.0, 0.3]])) as weights:
        (layer,) = weights.layers.values()
        weights.flip("layer.weight", 2, 7)
        found = CandidateBits.of(layer, torch.tensor([0.0, 0.0, 1.0, 0.0]), 0, 99)
        assert 7 not in found.bit.tolist() and set(found.index.tolist()) <= {2}
        weights.flip("layer.weight", 2, 7)
        weights.flip("layer.weight", 1, 7)  # of another weight
        assert 7 in CandidateBits.of(layer, torch.tensor([0.0, 0.0, -1.0, 0.0]), 0, 99).bit.tolist()


@pytest.mark.parametrize("objective", ["ce", "soft-iou"])
def test_the_loss_of_a_search_is_that_of_the_valid_pixels(objective: FaultObjective) -> None:
    batch, model = ground_batch(), flat_network()
    with int8_weights(model) as weights, torch.no_grad():
        value = AttackedLoss.of(weights, batch, objective, "given").value(model)
        logits = model(batch.image).movedim(1, -1)[batch.valid]
        label = batch.label[batch.valid]
        water = logits.softmax(1)[:, 1]
        both = water[label == 1].sum()
        by_hand = {
            "ce": nn.functional.cross_entropy(logits, label),
            "soft-iou": 1 - (both + 1) / (water.sum() + (label == 1).sum() - both + 1),
        }
        assert value == pytest.approx(float(by_hand[objective]), rel=1e-5)


def test_layers_in_protected_memory_are_left_alone() -> None:
    with int8_weights(flat_network()) as weights:
        assert {flip.layer for some in islice(SEARCH(weights, ground_batch(), 0), 4) for flip in some} == {
            "head.weight"
        }
    with int8_weights(flat_network()) as weights:
        spared = ProgressiveBitSearch(spared="head")
        assert {flip.layer for some in islice(spared(weights, ground_batch(), 0), 4) for flip in some} == {
            "hidden.weight"
        }
        for text in ("tail", "weight"):
            with pytest.raises(
                UsageError, match=f"spared: expected a text that some weights have in their name, not all, got '{text}'"
            ):
                next(ProgressiveBitSearch(spared=text)(weights, ground_batch(), 0))


def test_a_zero_gradient_allows_no_flip() -> None:
    model = Linear([[0.5, -1.0], [1.0, 0.3]])
    with int8_weights(model) as weights:
        (layer,) = weights.layers.values()
        assert not len(CandidateBits.of(layer, torch.zeros(4), 0, 99).index)
        assert set(CandidateBits.of(layer, torch.tensor([0.0, 0.0, -1.0, 0.0]), 0, 99).index.tolist()) == {2}


def trained_on_lakes(objective: object = None) -> nn.Module:
    """Return a small U-Net that finds lakes."""
    spec = ModelSpec(OPTICAL_CHIPS.bands, ("land", "water"), "reflectance", 10.0)
    batch = lake_chips(OPTICAL_CHIPS, 8, 48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet(4, 2)(spec)
        model.standardize.fit([0.2] * 6, [0.1] * 6)
        steps = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(60):
            steps.zero_grad()
            value = (objective or seawall.build("objective", "supervised"))(model, batch, Keys(step, batch.chips))  # type: ignore[operator]
            value.backward()
            steps.step()
    return model.eval()


@pytest.fixture(scope="module")
def lakes() -> nn.Module:
    return trained_on_lakes()


def held_out() -> Iterator[Batch]:
    yield lake_chips(OPTICAL_CHIPS, 5, 48)


def curve(model: nn.Module, fault: object, most: int, defense: object = None) -> object:
    with int8_weights(model, defense) as weights:  # type: ignore[arg-type]
        found = list(measure_fault(weights, fault, lake_chips(OPTICAL_CHIPS, 8, 48), held_out, seed=0, most=most))  # type: ignore[arg-type]
        assert weights.hamming_distance() == len(fault_curve(found).flips)
    return fault_curve(found)


def test_a_search_halves_what_ten_times_as_many_random_flips_leave(lakes: nn.Module) -> None:
    found = curve(lakes, SEARCH, 30)
    assert found.clean.iou > 0.9 and found.flips_to_half is not None and found.flips_to_half <= 10
    control = curve(lakes, RandomFlips(0.0), 10 * found.flips_to_half)
    assert control.flips_to_half is None and control.rounds[-1].counts.iou > 0.75 * control.clean.iou
    assert np.mean([flip.bit == 7 for flip in found.flips]) >= 0.5, "mostly sign bits"
    assert all(one.detected == one.count for one in (*found.rounds, *control.rounds))


@pytest.mark.parametrize("defense", [Clipping(4), Reconstruction(4)], ids=lambda one: type(one).__name__)
def test_behind_a_defense_sign_flips_do_less_on_average(defense: WeightDefense, lakes: nn.Module) -> None:
    """The same weights lose their sign in turn; without a flip the network is the same."""
    clean, rises = [], []
    for guard in (None, defense):
        with int8_weights(lakes, guard) as weights:
            loss = AttackedLoss.of(weights, lake_chips(OPTICAL_CHIPS, 2, 48), "ce", "predicted")
            clean.append(loss.value(lakes))
            after = [
                loss_after(weights, name, ((index, 7),), loss.value)
                for name, layer in weights.layers.items()
                for index in range(0, len(layer.integers), 1 + len(layer.integers) // 10)
            ]
            rises.append(sum(after) - len(after) * clean[-1])
            assert weights.hamming_distance() == 0
    assert clean[0] == clean[1] and rises[1] < rises[0], rises


def test_limits_of_groups_by_hand() -> None:
    model = Linear([[10 / 127, -3 / 127], [1.0, 5 / 127]])
    with int8_weights(model, Clipping(2)) as weights:
        (layer,) = weights.layers.values()
        weights.flip("layer.weight", 0, 7)  # 10 -> -118, read as -3
        weights.flip("layer.weight", 3, 6)  # 5 -> 69, within 5..127
        assert layer.read().tolist() == [-3, -3, 127, 69]
    with int8_weights(model, Reconstruction(2)) as weights:
        (layer,) = weights.layers.values()
        # mean of (10, -3) is 3.5, rounded to 4, largest deviation 7; of (-118, -3) it is -60: -67 and -53
        weights.flip("layer.weight", 0, 7)
        assert layer.read().tolist() == [-67, -53, 127, 5]


def test_clustering_penalty_by_hand_and_in_training() -> None:
    weights = torch.tensor([1.0, 3.0, -2.0, -2.5, 0.0])
    assert clustering_penalty([weights]).item() == pytest.approx(2 + 0.125)
    assert clustering_penalty([weights, weights]).item() == pytest.approx(2 * 2.125)
    model, batch = flat_network(), ground_batch()
    keys = Keys(0, batch.chips)
    plain = seawall.build("objective", "supervised")(model, batch, keys)  # type: ignore[operator]
    added = ClusteredWeights(0.5)(model, batch, keys) - plain
    assert added.item() == pytest.approx(0.5 * clustering_penalty(weight_parameters(model).values()).item(), rel=1e-4)
    drawn = trained_on_lakes(ClusteredWeights(1e-2))
    penalties = [clustering_penalty(weight_parameters(net).values()).item() for net in (trained_on_lakes(), drawn)]
    assert penalties[1] < 0.5 * penalties[0]
    with pytest.raises(UsageError, match="strength: expected a number from 0 on, got -1"):
        seawall.build("objective", "clustered-weights", {"strength": -1})


def test_every_single_bit_of_a_file_is_noticed_and_located(tmp_path: Path, lakes: nn.Module) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lakes)
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    draw = np.random.default_rng(0)
    for at in draw.integers(start, len(data), 150).tolist():
        name, first = next(
            (key, entry["data_offsets"][0]) for key, entry in header.items()
            if key != "__metadata__" and entry["data_offsets"][0] <= at - start < entry["data_offsets"][1]
        )  # fmt: skip
        broken = bytearray(data)
        broken[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        with pytest.raises(ModelError) as bad:
            load_model(path)
        assert f"have changed in {name!r}, group {(at - start - first) // GROUP_BYTES} (bytes " in str(bad.value)
    flipped = bytearray(data)
    flipped[data.index(b'"land')] ^= 0  # the file as it is
    path.write_bytes(data.replace(b"land", b"lane", 1))
    with pytest.raises(ModelError, match="bytes of the file have changed in the metadata"):
        load_model(path)


def test_flips_of_the_search_are_noticed_in_a_file(tmp_path: Path, lakes: nn.Module) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lakes)
    tensors, meta = unpack_safetensors(path)
    with int8_weights(lakes) as weights:
        list(islice(SEARCH(weights, lake_chips(OPTICAL_CHIPS, 4, 48), 0), 5))
        now = {name: tensor.detach().clone() for name, tensor in lakes.state_dict().items()}
    stored = read_checksums(path)
    assert stored is not None and stored.changed_groups(now) and not stored.changed_groups(tensors)
    # only the bytes change, not the digest beside them
    data, _ = pack_safetensors(
        {name: now[name].contiguous() for name in now}, {k: v for k, v in meta.items() if k != "digest"}
    )
    path.write_bytes(data.replace(unpack_digest(data), meta["digest"].encode()))
    with pytest.raises(ModelError, match=r"have changed in '\S+weight', group \d+ \(bytes .* more group"):
        load_model(path)


def unpack_digest(data: bytes) -> bytes:
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["digest"].encode()


def test_a_file_of_an_earlier_version_has_no_checksums_and_loads(tmp_path: Path, lakes: nn.Module) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lakes)
    tensors, meta = unpack_safetensors(path)
    data, _ = pack_safetensors(tensors, {k: v for k, v in meta.items() if k not in ("digest", "checksums")})
    path.write_bytes(data)
    assert read_checksums(path) is None
    image = lake_chips(OPTICAL_CHIPS, 1, 48).image
    assert torch.equal(load_model(path)(image), lakes(image))
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    with pytest.raises(ModelError, match="bytes of the file have changed: copy"):
        load_model(path)


def test_the_guard_of_a_service_notices_a_flip_between_and_within_scenes(tmp_path: Path, lakes: nn.Module) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lakes)
    model = load_model(path)
    guard = WeightGuard.of(model, read_checksums(path))
    assert guard.checksums == read_checksums(path)
    guard.verify()
    rows = model.network.head.weight.data.view(torch.int32)
    for bit in range(32):
        rows.view(-1)[3] ^= -(1 << 31) if bit == 31 else 1 << bit
        with pytest.raises(ModelError, match=r"others in 'network.head.weight', group 0 \(bytes 0 to \d+\)"):
            guard.verify()
        rows.view(-1)[3] ^= -(1 << 31) if bit == 31 else 1 << bit
        guard.verify()
    with pytest.raises(ModelError, match=r"others in 'network\.head\.weight'"):
        rows.view(-1)[3] ^= 1
        WeightGuard.of(model, read_checksums(path)).verify()
    WeightGuard.of(model).verify()
    other = WeightGuard.of(UNet(4, 1)(SPEC), read_checksums(path))
    other.verify()  # a wrapped or other network has checksums of its own memory


@pytest.mark.parametrize(("every", "kept"), [(10**6, 0), (1, 0), (0, 1)])
def test_rows_of_damaged_weights_are_not_kept(
    every: int, kept: int, tmp_path: Path, lakes: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit flips while the first tiles are computed; without comparisons only the end of the scene tells."""
    path, written = tmp_path / "m.safetensors", []
    save_model(path, lakes)
    model = load_model(path)
    image = lake_chips(OPTICAL_CHIPS, 1, 48).image[0].repeat(1, 12, 3).clamp_min(1e-4).numpy()
    write_cog(
        tmp_path / "s.tif",
        np.rint(image * 10000).astype(np.uint16),
        Grid(576, 144),
        bands=OPTICAL_CHIPS.bands,
        nodata=0,
    )
    write = OutputBuffer.write
    monkeypatch.setattr(OutputBuffer, "write", lambda self, *given: (written.append(given[0]), write(self, *given))[1])

    def flip(*_: object) -> None:
        model.network.head.weight.data.view(torch.int32).view(-1)[0] ^= 1 << 20
        handle.remove()

    handle = model.network.head.register_forward_pre_hook(flip)
    says = "that stay as they are" if kept else r"as they were loaded, got others in 'network\.head\.weight', group 0"
    with pytest.raises(ModelError, match=f"expected weights {says}"):
        predict_scene(model, tmp_path / "s.tif", tmp_path / "maps", tile=128, verify_tiles=every, weights=path)
    assert bool(written) == bool(kept)
    assert not list((tmp_path / "maps").glob("*.tif"))


def test_a_flip_between_two_scenes_is_noticed_at_the_next(
    tmp_path: Path, lakes: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lakes)
    model = load_model(path)
    image = np.rint(lake_chips(OPTICAL_CHIPS, 1, 48).image[0].clamp_min(1e-4).numpy() * 10000).astype(np.uint16)
    for name in ("a", "b"):
        write_cog(tmp_path / f"{name}.tif", image, Grid(48, 48), bands=OPTICAL_CHIPS.bands, nodata=0)

    def export_and_flip(*given: object) -> object:
        result = export_products(*given)  # type: ignore[arg-type]
        model.network.head.weight.data.view(torch.int32).view(-1)[0] ^= 1 << 20
        return result

    monkeypatch.setattr("seawall.inference.predict.export_products", export_and_flip)
    report = predict_many(model, [tmp_path / "a.tif", tmp_path / "b.tif"], tmp_path / "maps", weights=path)
    assert [one.name for one in report.made] == ["a"]
    ((scene, reason),) = report.failed
    assert Path(scene).name == "b.tif" and "got others in 'network.head.weight', group 0" in reason


def test_weights_in_another_runtime_are_not_compared() -> None:
    assert PredictSettings().tiles_between_checks == 16 and PredictSettings(verify_tiles=3).tiles_between_checks == 3
    assert PredictSettings(runtime="onnx").tiles_between_checks == 0
    assert PredictSettings(verify_tiles=3).identity() == PredictSettings().identity(), "a check changes no map"
    with pytest.raises(UsageError, match="verify_tiles: expected 0 with the onnx runtime, which has its own copy"):
        PredictSettings(runtime="onnx", verify_tiles=3)


def test_flips_to_half_is_the_first_count_at_half() -> None:
    clean = ClassCounts(80, 100)
    rounds = [
        FaultRound((), n, ClassCounts(both, 100), 0.0, 0) for n, both in ((1, 79), (3, 55), (4, 41), (6, 40), (9, 2))
    ]
    assert fault_curve([clean, *rounds]).flips_to_half == 6
    assert fault_curve([clean, *rounds[:3]]).flips_to_half is None
    assert fault_curve([clean, FaultRound((), 1, ClassCounts(0, 0), 0.0, 0)]).flips_to_half == 1, (
        "nothing found is no water"
    )


def test_checksums_name_every_changed_group_and_a_missing_tensor() -> None:
    tensors = {"a": torch.arange(10, dtype=torch.int8), "b": torch.zeros(0), "c": torch.ones(3)}
    sums = WeightChecksums.of(tensors, group=4)
    assert WeightChecksums.from_json(sums.to_json()) == sums and sums.changed_groups(tensors) == ()
    tensors["a"][[0, 9]] += 1
    assert [str(one) for one in sums.changed_groups(tensors)] == [
        "'a', group 0 (bytes 0 to 3)",
        "'a', group 2 (bytes 8 to 9)",
    ]
    assert [one.tensor for one in sums.changed_groups({"a": tensors["a"][:4], "b": tensors["b"]})] == ["a"] * 3 + [
        "c"
    ] * 3
    for text in ("", "3", '{"hash": "crc32"}', '{"hash": "sha256/64", "group": 0, "tensors": {}}'):
        with pytest.raises(ValueError):
            WeightChecksums.from_json(text)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (
            WaterIndexThreshold("ndwi")(SPEC),
            ModelError,
            "expected a network with convolutions or linear layers, got none",
        ),
        (Linear([[float("nan"), 1], [1, 1]]), ModelError, "layer.weight: expected finite weights"),
        (nn.Conv2d(2, 2, 1), ModelError, "expected a model with a ModelSpec"),
    ],
)
def test_a_model_without_weights_is_refused(model: nn.Module, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says), int8_weights(model):
        raise AssertionError("it was taken")


def test_transposed_and_linear_layers_have_weights_and_shared_ones_count_once() -> None:
    model = UNet(4, 1)(SPEC)
    assert "network.rise.0.weight" in weight_parameters(model)
    twin = nn.Sequential(layer := nn.Linear(3, 3), layer, nn.LayerNorm(3))
    assert list(weight_parameters(twin)) == ["0.weight"]
    zero = Linear([[0.0, 0.0], [0.0, 0.0]])
    with int8_weights(zero) as weights:
        weights.flip("layer.weight", 0, 7)
        assert not zero.layer.weight.any(), "a layer of zeros has a step of 0"


def test_wrong_settings_and_batches_are_refused(lakes: nn.Module) -> None:
    for kind, name, setting, says in (
        ("fault", "progressive-bit-search", {"k_top": -1}, "k_top"),
        ("fault", "progressive-bit-search", {"objective": "miou"}, "objective"),
        ("fault", "random-flips", {"growth": 2}, r"growth: expected a share in \[0, 1\], got 2"),
        ("weight-defense", "clipping", {"group": 1}, "group: expected 0 or a number of weights from 2 on, got 1"),
        ("weight-defense", "reconstruction", {"group": -4}, "got -4"),
    ):
        with pytest.raises(UsageError, match=says):
            seawall.build(kind, name, setting)
    batch = lake_chips(OPTICAL_CHIPS, 2, 48)
    nothing = Batch(batch.image, batch.label, batch.seen, torch.zeros_like(batch.valid), batch.chips)
    with int8_weights(lakes) as weights:
        with pytest.raises(DataError, match="expected an attack batch with valid pixels, got none"):
            next(SEARCH(weights, nothing, 0))
        with pytest.raises(DataError, match="expected water that the network finds on the held-out chips, got none"):
            list(measure_fault(weights, SEARCH, batch, lambda: [nothing], seed=0, most=3))
        for layer, index, bit in (("none", 0, 0), ("network.head.weight", 10**6, 0), ("network.head.weight", 0, 8)):
            with pytest.raises(UsageError, match="flip: expected a layer, a weight and a bit from 0 to 7"):
                weights.flip(layer, index, bit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six places with a round lake each."""
    root = tmp_path_factory.mktemp("faults") / "chips"
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0))
    draw = np.random.default_rng(0)
    rows, cols = np.mgrid[:32, :32]
    for i in range(6):
        water = np.hypot(rows - draw.integers(8, 24), cols - draw.integers(8, 24)) < 9
        image = np.where(water, np.array([0.08, 0.05])[:, None, None], np.array([0.06, 0.1])[:, None, None])
        image = (image + draw.normal(0, 0.005, image.shape)).clip(0.001).astype(np.float32)
        writer.write(f"c{i}", f"g{i}", image, water.astype(np.uint8), seen=np.ones((32, 32), bool), source=f"made {i}")
    writer.finish()
    return root


@pytest.fixture(scope="module")
def weights_file(folder: Path) -> Path:
    """A linear network that finds the water of the chips, with a record of their split."""
    net = PixelClassifier()(SPEC)
    net.standardize.fit([0.0, 0.0], [1.0, 1.0])
    net.network.weight.data = torch.tensor([[-60.0, 70.0], [60.0, -70.0]])[:, :, None, None]
    net.network.bias.data = torch.tensor([0.3, -0.3])
    chips = ChipFolder.open(folder)
    set_split(net, record_split(chips, split_chips(chips)))
    save_model(folder.parent / "linear.safetensors", net)
    return folder.parent / "linear.safetensors"


def test_the_verb_prints_flips_to_half_for_every_fault_and_defense(folder: Path, weights_file: Path) -> None:
    out = folder.parent / "rows"
    done = seawall.flip_bits(weights_file, folder, defense=("reconstruction group=2",), most=5, images=2, out=out)
    rows = {(row["fault"], row["defense"]): row for row in done.table}
    assert list(rows) == [
        (f, d) for f in ("progressive-bit-search", "random-flips") for d in ("none", "reconstruction group=2")
    ]
    found = rows["progressive-bit-search", "none"]
    assert found["flips to half"] == 1 == found["flips"] and found["iou"] <= found["int8 iou"] / 2
    assert {row["detected"] for row in done.table} == {1.0}
    assert done.facts["bits"] == 32 and done.facts["float iou"] > 0.5
    lines = [json.loads(line) for line in (out / FAULT_ROWS).read_text().splitlines()]
    assert lines[0]["flips"][0][2] == 7 and [line["most"] for line in lines] == [5, 5, 50, 50]
    image = torch.rand(3, 2, 16, 16) * 0.2
    batch = Batch.of(image, load_model(weights_file)(image).argmax(1))
    again = seawall.flip_bits(load_model(weights_file), batch, chosen_on=batch, fault=("random-flips",), most=1)
    assert "rows" not in again.facts and again.table[0]["int8 iou"] > 0.9


def test_the_verb_refuses_what_it_cannot_do(folder: Path, weights_file: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "mndwi.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    plain = load_model(weights_file)
    set_split(plain, None)
    save_model(tmp_path / "unsplit.safetensors", plain)
    for words, code, says in (
        ((tmp_path / "mndwi.safetensors", folder), 1, "got none with weights"),
        ((tmp_path / "unsplit.safetensors", folder), 2, "chosen_on: expected chips to choose the bits on"),
        ((weights_file, folder, "--part", "all"), 2, "chosen_on: expected other chips than those that are measured"),
        ((weights_file, folder, "--fault", "progresive-bit-search"), 2, "did you mean 'progressive-bit-search'"),
        ((weights_file, folder, "--defense", "clipping", "--defense", "clipping"), 2, "got 'clipping' twice"),
        ((weights_file, folder, "--most", "0"), 2, "most: expected at least 1 flip, got 0"),
        ((weights_file, folder, "--images", "0"), 2, "images: expected at least 1 patch"),
        ((weights_file, folder, "--fault", "random-flips growth=3"), 2, "growth"),
    ):
        cli("flip-bits", *words, "--out", tmp_path / "rows").refused(code, says)
    with pytest.raises(UsageError, match="chosen_on: expected a batch to choose the bits on, got none"):
        seawall.flip_bits(plain, ground_batch())


FAULTS = [
    {"name": "progressive-bit-search", "settings": {"objective": "soft-iou"}, "most": 2, "images": 2, "defenses": ["clipping group=16"]},
    {"name": "random-flips", "most": 3, "images": 2},
]  # fmt: skip


def test_a_run_measures_faults_and_the_report_shows_them(folder: Path, tmp_path: Path) -> None:
    text = {"name": "flips", "data": {"source": str(folder), "kind": "chips"}, "faults": FAULTS}
    path = tmp_path / "flips.toml"
    path.write_text(make_recipe(text).to_toml())
    changes = (
        "model.settings.width=4", "model.settings.depth=1", "training.settings.epochs=4", "training.settings.steps_per_epoch=15",
        "training.settings.lr=0.02", "training.settings.patch=16", "training.settings.batch=2", "training.settings.tensorboard=false",
        "sanity_checks=false", "examples=0",
    )  # fmt: skip
    done = api.run(path, out=tmp_path / "runs", changes=changes)
    home = Path(str(done.facts["report"])).parent
    lines = read_run(home).weight_faults
    assert [(one.model, one.fault, one.defense) for one in lines] == [
        ("unet", "progressive-bit-search", "none"), ("unet", "progressive-bit-search", "clipping group=16"), ("unet", "random-flips", "none"),
    ]  # fmt: skip
    assert all(one.detected_share == 1 and len(one.flips) <= 3 and one.iou[0] > 0 for one in lines)
    page = (home / "report.html").read_text()
    assert 'id="weight-faults"' in page and "Under flipped weight bits" in page and "U-Net, random-flips" in page
    stamp = (home / FAULT_ROWS).read_bytes()
    (home / FAULT_ROWS).write_bytes(stamp[: stamp.index(b"\n") + 1] + b'{"model": "unet", "fa')
    again = api.run(path, out=tmp_path / "runs", changes=changes)
    kept = read_run(Path(str(again.facts["report"])).parent).weight_faults
    assert [one.flips for one in kept] == [one.flips for one in lines] and kept[0] == lines[0]


def test_a_network_that_finds_no_water_costs_no_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {
        "name": "dry",
        "data": {"source": str(folder), "kind": "chips"},
        "model": {"name": "linear"},
        "faults": FAULTS[1:],
    }
    settings = {"epochs": 1, "steps_per_epoch": 1, "patch": 16, "batch": 2, "lr": 1e-9, "tensorboard": False}
    (tmp_path / "dry.toml").write_text(
        make_recipe({**text, "training": {"settings": settings}, "sanity_checks": False}).to_toml()
    )
    monkeypatch.setattr("seawall.weight_faults.damage.count_class", lambda *_: ClassCounts(0, 10))
    done = api.run(tmp_path / "dry.toml", out=tmp_path / "runs")
    page = Path(str(done.facts["report"]))
    (line,) = read_run(page.parent).weight_faults
    assert line.refused.startswith("weight fault: expected water that the network finds") and not line.flips
    assert (
        "Under flipped weight bits" in page.read_text() and "expected water that the network finds" in page.read_text()
    )


def test_recipes_with_wrong_faults_are_refused_before_the_training(folder: Path, tmp_path: Path) -> None:
    base = {"name": "flips", "data": {"source": str(folder), "kind": "chips"}}
    assert make_recipe(base).id == make_recipe({**base, "faults": []}).id != make_recipe({**base, "faults": FAULTS}).id
    for faults, says in (
        ([FAULTS[1], FAULTS[1]], "fault random-flips once"),
        ([{"name": "random-flips", "mots": 3}], "mots"),
    ):
        with pytest.raises(RecipeError, match=says):
            make_recipe({**base, "faults": faults})
    for faults, model, says in (
        ([{"name": "random"}], "unet", "unknown name 'random'"),
        ([{"name": "random-flips", "defenses": ["clip"]}], "unet", "weight-defense: unknown name 'clip'"),
        (FAULTS, "threshold", "expected no such key for threshold"),
    ):
        path = tmp_path / "bad.toml"
        path.write_text(make_recipe({**base, "faults": faults, "model": {"name": model}}).to_toml())
        with pytest.raises((UsageError, ModelError), match=says):
            api.run(path, out=tmp_path / "runs")


def test_without_water_the_last_class_is_measured() -> None:
    spec = ModelSpec(("B03", "B08"), ("land", "ice", "snow"), "reflectance", 10.0)
    assert main_class(spec.classes) == "snow" and main_class(("land", "water", "ice")) == "water"
    model, batch = UNet(2, 1)(spec).eval(), ground_batch(images=2)
    with torch.no_grad():
        model.network.head.bias[2] += 100.0
    batch = replace(batch, label=torch.where(batch.valid, 2, batch.label))
    done = seawall.flip_bits(model, batch, chosen_on=batch, most=1)
    assert done.facts["class"] == "snow" and done.table
