"""SAR helped by optical: closed forms of each term, what the gradient reaches, exact resume, and what is refused."""

import math
import signal
from _thread import interrupt_main
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.index import ChipHeader
from seawall.data.splits import Split, record_split
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, ModelError, StoppedError, UsageError
from seawall.losses.segmentation import CrossEntropyLoss
from seawall.models.band_adaptation import adapt_bands, band_layers
from seawall.models.encoder_levels import encoder_levels, kept_levels, level_channels
from seawall.models.weights import load_model, save_model, set_split, unpack_safetensors
from seawall.pipeline.context import RunContext
from seawall.pipeline.other_weights import check_held_out, guided
from seawall.pipeline.training import train_network
from seawall.recipe.recipe import make_recipe
from seawall.registry import build, find
from seawall.rng import Keys
from seawall.training.configuration import Training
from seawall.training.loop import fit
from seawall.training.objectives.distillation import Distillation, softened_divergence
from seawall.training.objectives.moment_matching import (
    BANDWIDTHS,
    MomentMatching,
    covariance_distance,
    kernel_discrepancy,
)
from seawall.training.objectives.source_dropout import SourceDropout
from seawall.training.protocols import LayeredObjective
from seawall.types import Batch, ModelSpec, wants_all_bands

RADAR = ModelSpec(("s1.VV", "s1.VH"), ("land", "water"), "sigma0_db", 10.0)
OPTICAL = ModelSpec(("s2.B03", "s2.B08", "s2.B11"), ("land", "water"), "reflectance", 10.0)
BANDS = (*RADAR.bands, *OPTICAL.bands)
QUICK = Training(epochs=3, steps_per_epoch=4, batch=4, patch=16, lr=1e-2, warmup=0.0, save_s=1e-9, tensorboard=False)
CE = CrossEntropyLoss()


def network(spec: ModelSpec, seed: int = 0, name: str = "unet", **settings: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build("model", name, {"width": 4, "depth": 2} | settings)(spec)
    bands = len(spec.bands)
    made.standardize.fit([-15.0] * bands if spec is RADAR else [0.2] * bands, [5.0 if spec is RADAR else 0.1] * bands)
    return made.eval()


def pairs(size: int = 3, side: int = 16, seed: int = 0) -> Batch:
    """Radar and optical images of the same ground, each with holes of its own."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(size, 5, side, side, generator=draw)
    seen = torch.ones(size, 5, side, side, dtype=torch.bool)
    seen[:, :2, :4], seen[:, 2:, :, :4] = False, False
    scaled = torch.cat([20 * image[:, :2] - 25, 0.4 * image[:, 2:]], 1)
    label = (image[:, 0] > 0.5).long()
    valid = seen.any(1) & (torch.rand(label.shape, generator=draw) > 0.2)
    chips = tuple(f"c{i}@{seed}" for i in range(size))
    return Batch(torch.where(seen, scaled, 0.0), label, seen.any(1), valid, chips, seen, BANDS)


def keys(batch: Batch) -> Keys:
    return Keys(0, batch.chips)


def test_equal_networks_have_exactly_the_loss_on_labels() -> None:
    batch, student = pairs(), network(RADAR)
    objective = Distillation("t", weight=3.0, kd_weight=2.0).guided_by(network(RADAR))
    objective = objective.with_layers(objective.new_layers(student))
    own = batch.with_bands(RADAR.bands)
    wanted = CE(student(own.image), own.label, own.valid)
    assert torch.equal(objective(student, batch, keys(batch)), wanted)
    assert torch.equal(objective.with_layers(None)(student, batch, keys(batch)), wanted)  # type: ignore[arg-type]


def test_the_terms_are_those_of_loops_over_pixels() -> None:
    batch, student, teacher = pairs(), network(RADAR, 1), network(OPTICAL, 2)
    own, other = batch.with_bands(RADAR.bands), batch.with_bands(OPTICAL.bands)
    both = (own.seen & other.seen).numpy()
    levels: list[list[np.ndarray]] = []
    for model, view in ((student, own), (teacher, other)):
        with kept_levels(model) as kept, torch.no_grad():
            model(view.image)
        levels.append([maps[0].numpy() for maps in kept])
    distance = 0.0
    for level, (mine, theirs) in enumerate(zip(*levels, strict=True)):
        cell, found = 2**level, []
        for i, r, c in np.ndindex(len(mine), *mine.shape[2:]):
            if both[i, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell].all():
                a, b = mine[i, :, r, c].astype(float), theirs[i, :, r, c].astype(float)
                lengths = [max(float(np.linalg.norm(part)), 1e-12) for part in (a, b)]
                found.append(((a / lengths[0] - b / lengths[1]) ** 2).sum())
        distance += float(np.mean(found))
    with torch.no_grad():
        z, w = ((m(v.image) / 3.0).softmax(1).double().numpy() for m, v in ((student, own), (teacher, other)))
        divergence = 9.0 * (w * np.log(w / z)).sum(1)[both].mean()
        plain = float(CE(student(own.image), own.label, own.valid))
        for weights, want in (((0.5, 0.0), 0.5 * distance), ((0.0, 0.7), 0.7 * divergence)):
            objective = Distillation("t", *weights, temperature=3.0).guided_by(teacher)
            assert float(objective(student, batch, keys(batch))) == pytest.approx(plain + want, rel=1e-5)


def test_the_divergence_is_that_of_hand() -> None:
    one = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    there = torch.ones(1, 1, 1, dtype=torch.bool)
    want = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # KL((1/4, 3/4), (1/2, 1/2))
    assert softened_divergence(0 * one, one, there, 1.0).item() == pytest.approx(want, rel=1e-5)
    assert softened_divergence(0 * one, 2 * one, there, 2.0).item() == pytest.approx(4 * want, rel=1e-5)


def test_gradients_reach_the_student_and_its_alignments_alone() -> None:
    batch, student, teacher = pairs(), network(RADAR, 1), network(OPTICAL, 2, width=6)
    objective = Distillation("t").guided_by(teacher)
    layers = objective.new_layers(student)
    assert [tuple(layer.weight.shape[:2]) for layer in layers] == [(6, 4), (12, 8), (24, 16)]
    objective.with_layers(layers)(student, replace(batch, valid=torch.zeros_like(batch.valid)), keys(batch)).backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(bool((layer.weight.grad != 0).any()) for layer in layers)
    assert all(bool((weight.grad != 0).any()) for name, weight in student.named_parameters() if "down" in name)
    with pytest.raises(ModelError, match="expected 6 features, got 4"):
        objective(student, batch, keys(batch))


def test_pixels_that_only_one_of_them_sees_mean_nothing() -> None:
    batch, student, dot = pairs(), network(RADAR, 1), build("model", "linear", {})(OPTICAL)
    own, other = batch.with_bands(RADAR.bands), batch.with_bands(OPTICAL.bands)
    both = (own.seen & other.seen)[:, None]
    odd = torch.where(both, batch.image, 7.0)
    changed = replace(batch, image=torch.cat([batch.image[:, :2], odd[:, 2:]], 1))
    objective = Distillation("t", weight=0.0).guided_by(dot)
    with torch.no_grad():
        values = [float(objective(student, one, keys(batch))) for one in (batch, changed)]
        assert values[0] == values[1] > float(CE(student(own.image), own.label, own.valid))
        alone = torch.zeros_like(batch.seen_bands).index_fill(1, torch.tensor([0, 1]), True)
        none = replace(batch, seen_bands=alone, valid=torch.zeros_like(batch.valid))
        guided_both = Distillation("t").guided_by(network(OPTICAL, 2))
        assert float(guided_both(student, none, keys(batch))) == 0.0, "there is no optical image"


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("unet", {}, 3), ("dense-unet", {"width": 4, "depth": 2}, 4), ("unet", {"encoder": "resnet18", "width": 8, "depth": 5}, 5),
        ("linknet", {"encoder": "resnet18", "width": 8}, 5), ("deeplabv3+", {"encoder": "mobilenetv2", "width": 8}, 5),
        ("unet++", {}, 4),
    ],
)  # fmt: skip
def test_levels_of_encoders_are_found_from_fine_to_coarse(name: str, settings: dict[str, object], count: int) -> None:
    given = {**find("model", name).smoke, **settings}
    model = build("model", name, given)(OPTICAL).eval()
    levels = encoder_levels(model)
    assert len(levels) == count and all(model.get_submodule(key) is layer for key, layer in levels.items())
    with kept_levels(model) as kept, torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    grids = [maps[0].shape[-1] for maps in kept]
    assert grids == sorted(grids, reverse=True) and all(len(maps) == 1 for maps in kept)
    assert level_channels(model) == [maps[0].shape[1] for maps in kept]


def test_what_has_no_levels_or_other_classes_is_refused() -> None:
    batch, linear = pairs(), build("model", "linear", {})(RADAR)
    with pytest.raises(ModelError, match="expected a network with an encoder"):
        Distillation("t").guided_by(network(OPTICAL))(linear, batch, keys(batch))
    other = network(replace(OPTICAL, classes=("dry", "wet")))
    with pytest.raises(ModelError, match="expected the classes land, water, got dry, wet"):
        Distillation("t").guided_by(other)(network(RADAR), batch, keys(batch))
    with pytest.raises(ModelError, match="expected an encoder with levels of 16x16, 8x8, 4x4, got 16x16, 8x8"):
        Distillation("t").guided_by(network(OPTICAL, depth=1))(network(RADAR), batch, keys(batch))
    with pytest.raises(DataError, match=r"without s2\.B03"):
        Distillation("t").guided_by(network(OPTICAL))(network(RADAR), batch.with_bands(RADAR.bands), keys(batch))
    with pytest.raises(UsageError, match="call guided_by"):
        Distillation("t")(network(RADAR), batch, keys(batch))
    with pytest.raises(UsageError, match="expected one without a teacher"):
        SourceDropout(objective="distillation", objective_settings={"teacher": "t"})
    for settings in (
        {"weight": -1.0},
        {"kd_weight": math.nan},
        {"weight": 0.0, "kd_weight": 0.0},
        {"temperature": 0.0},
    ):
        with pytest.raises(UsageError, match="distillation"):
            Distillation("t", **settings)


def feed(epoch: int) -> Iterator[Batch]:
    for index in range(4):
        yield pairs(4, 16, 10 * epoch + index)


def test_a_stopped_distillation_goes_on_to_the_same_bits_and_its_layers_stay_out_of_the_weights(tmp_path: Path) -> None:
    """The alignments and their optimizer states come from the checkpoint: with fresh ones the weights differ."""
    teacher = network(OPTICAL, 2, width=6)
    objective = Distillation("t").guided_by(teacher)
    assert isinstance(objective, LayeredObjective) and wants_all_bands(objective)

    def stopping(epoch: int) -> Iterator[Batch]:
        for index, batch in enumerate(feed(epoch)):
            if (epoch, index) == (1, 2):
                interrupt_main(signal.SIGTERM)
            yield batch

    training = replace(QUICK, ema=0.9)
    fit(network(RADAR, 1), objective, feed, None, training, tmp_path / "whole")
    with pytest.raises(StoppedError):
        fit(network(RADAR, 1), objective, stopping, None, training, tmp_path / "cut")
    fit(network(RADAR, 1), objective, feed, None, training, tmp_path / "cut")
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    assert load_model(whole).state_dict().keys() == network(RADAR).state_dict().keys()
    kept = unpack_safetensors(max((tmp_path / "whole/checkpoints").glob("*.safetensors")))[0]
    first = objective.new_layers(network(RADAR)).state_dict()
    assert all(not torch.equal(kept[f"model.1.{name}"], weight) for name, weight in first.items()), "it is trained"
    frozen = fit(network(RADAR, 1), replace(objective, alignments=None, method=replace(objective.method, weight=0.0)),
                 feed, None, training, tmp_path / "other")  # fmt: skip
    assert frozen.weights.read_bytes() != whole.read_bytes()


def test_covariances_and_kernels_have_their_closed_forms() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=draw), 2 * torch.randn(5, 3, generator=draw)
    want = np.square(np.cov(x.numpy().T) - np.cov(y.numpy().T)).sum() / (4 * 9)
    assert covariance_distance(x, y).item() == pytest.approx(want, rel=1e-5)
    assert covariance_distance(x, x + 5).item() == pytest.approx(0.0, abs=1e-9)
    both = np.concatenate([x.numpy(), y.numpy()]).astype(float)
    square = np.square(both[:, None] - both[None]).sum(2)
    # torch takes the lower of the two middle values
    apart = np.sort(square[~np.eye(12, dtype=bool)])
    width = apart[(len(apart) - 1) // 2]
    kernel = np.mean([np.exp(-square / (factor * width)) for factor in BANDWIDTHS], 0)
    want = kernel[:7, :7].mean() + kernel[7:, 7:].mean() - 2 * kernel[:7, 7:].mean()
    assert kernel_discrepancy(x, y).item() == pytest.approx(want, rel=1e-4)
    assert kernel_discrepancy(x, x).item() == 0.0
    leaf = x.clone().requires_grad_()
    kernel_discrepancy(leaf, y).backward()
    assert bool(leaf.grad.isfinite().all()) and bool((leaf.grad != 0).any())


@pytest.mark.parametrize("distance", ["coral", "mmd"])
def test_moments_are_matched_without_pairs(distance: str) -> None:
    """Chips with one image alone: the radar ones have no optical image and the other way round."""
    batch, student, teacher = pairs(4), network(RADAR, 1), network(OPTICAL, 2)
    seen = torch.ones_like(batch.image, dtype=torch.bool)
    seen[:2, 2:], seen[2:, :2] = False, False
    apart = replace(batch, seen=seen.any(1), seen_bands=seen, valid=torch.zeros_like(batch.valid))
    objective = MomentMatching("t", distance, cells=1000).guided_by(teacher)
    with kept_levels(student) as mine, kept_levels(teacher) as theirs, torch.no_grad():
        student(batch.with_bands(RADAR.bands).image[:2]), teacher(batch.with_bands(OPTICAL.bands).image[2:])
    sets = [maps[-1][0].movedim(1, -1).flatten(0, 2) for maps in (mine, theirs)]
    want = (covariance_distance if distance == "coral" else kernel_discrepancy)(*sets)
    value = objective(student, apart, keys(batch))
    assert float(value) == pytest.approx(float(want), rel=1e-4)
    value.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert any(bool((weight.grad != 0).any()) for weight in student.parameters() if weight.grad is not None)
    none = replace(apart, seen_bands=torch.zeros_like(seen).index_fill(1, torch.tensor([0, 1]), True))
    assert float(objective(student, none, keys(batch))) == 0.0, "no optical cell"
    with pytest.raises(ModelError, match="expected 16 features in the coarsest level, got 24"):
        MomentMatching("t").guided_by(network(OPTICAL, width=6))(student, apart, keys(batch))


@pytest.mark.parametrize("name", ["unet", "unet++", "segformer", "deeplabv3+"])
def test_adapted_weights_give_a_gray_image_the_logits_that_it_had(name: str) -> None:
    settings = find("model", name).smoke
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source, target = (build("model", name, settings)(spec).eval() for spec in (OPTICAL, RADAR))
    source.standardize.fit([0.2] * 3, [0.1] * 3)
    target.standardize.fit([-15.0] * 2, [5.0] * 2)
    gray = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    adapt_bands(source, target)
    with torch.no_grad():
        want, got = source(0.2 + 0.1 * gray.expand(-1, 3, -1, -1)), target(-15 + 5 * gray.expand(-1, 2, -1, -1))
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert target.standardize.mean.tolist() == [-15.0] * 2 and len(band_layers(target)) == 1


def test_as_many_other_bands_are_averaged_too_and_the_same_ones_refused() -> None:
    two = replace(OPTICAL, bands=OPTICAL.bands[:2])
    source, target = network(two, 3), network(RADAR)
    adapt_bands(source, target)
    layer = f"{band_layers(target)[0]}.weight"
    kernels = target.state_dict()[layer]
    torch.testing.assert_close(kernels[:, 0], source.state_dict()[layer].mean(1))
    assert torch.equal(kernels[:, 0], kernels[:, 1])
    with pytest.raises(ModelError, match="got the same"):
        adapt_bands(network(RADAR, 1), target)
    with pytest.raises(ModelError, match="use the settings"):
        adapt_bands(network(OPTICAL, width=6), target)


def folder_of(root: Path, missing: tuple[str, ...] = ()) -> ChipFolder:
    writer = ChipWriter(root, ChipHeader(BANDS, ("sigma0_db",) * 2 + ("reflectance",) * 3, RADAR.classes, 10.0))
    for i in range(4):
        batch = pairs(1, 32, i)
        flags = ("missing-s2",) if f"c{i}" in missing else ()
        writer.write(f"c{i}", f"g{i}", batch.image[0].numpy(), batch.label[0].numpy().astype(np.uint8),
                     seen=batch.seen_bands[0].numpy(), flags=flags)  # fmt: skip
    return writer.finish()


def teacher_file(path: Path, chips: ChipFolder, split: Split, spec: ModelSpec = OPTICAL) -> str:
    model = network(spec, 2)
    set_split(model, record_split(chips, split))
    save_model(path, model)
    return str(path)


def test_a_teacher_must_fit_the_chips_and_not_have_seen_the_held_out_ones(tmp_path: Path) -> None:
    chips, split = folder_of(tmp_path / "chips", missing=("c0",)), Split(("c0", "c1"), ("c2",), ("c3",), "by hand")
    path = teacher_file(tmp_path / "t.safetensors", chips.with_bands(["s2"]), split)
    matching = guided(MomentMatching(path), chips, split)
    assert wants_all_bands(matching) and all(not w.requires_grad for w in matching.teacher.parameters())
    with pytest.raises(UsageError, match="expected pairs of images, got 1 training chips with one alone, such as c0"):
        guided(Distillation(path), chips, split)
    guided(Distillation(path), chips, Split(("c1",), ("c2",), ("c3",), "x"))
    with pytest.raises(
        UsageError, match=r"teacher: expected weights that have not seen the held-out chips.*train part has c1"
    ):
        guided(MomentMatching(path), chips, Split(("c0",), ("c2",), ("c1",), "x"))
    with pytest.raises(UsageError, match=r"got none of s2\.B03, s2\.B08, s2\.B11; curate both"):
        guided(MomentMatching(path), chips.with_bands(["s1"]), split)
    wrong = teacher_file(tmp_path / "w.safetensors", chips, split, replace(OPTICAL, unit="stretched"))
    with pytest.raises(ModelError, match="got one for stretched"):
        guided(MomentMatching(wrong), chips, split)


@pytest.mark.parametrize("way", ["distillation", "moment-matching", "adapt"])
def test_a_recipe_trains_a_radar_network_with_an_optical_one(tmp_path: Path, way: str) -> None:
    chips, split = folder_of(tmp_path / "chips"), Split(("c0", "c1"), ("c2",), ("c3",), "by hand")
    path = teacher_file(tmp_path / "t.safetensors", chips.with_bands(["s2"]), split)
    quick = {"epochs": 1, "steps_per_epoch": 2, "patch": 16, "batch": 2, "tensorboard": False}
    keys = (
        {"start": path, "adapt_bands": True}
        if way == "adapt"
        else {"objective": {"name": way, "settings": {"teacher": path}}}
    )
    tree = {"name": "x", "inputs": ["s1"], "model": {"name": "unet", "settings": {"width": 4, "depth": 2}},
            "training": {"settings": quick, **keys}}  # fmt: skip
    run = RunContext(make_recipe(tree), tmp_path / "run", "cpu", True, lambda *_: None)
    model = train_network(run, chips, split, run.recipe.networks[0])
    assert model.spec.bands == RADAR.bands
    assert bool((model.standardize.mean < -5).all()), "the normalization is that of the radar chips"
    with torch.no_grad():
        assert model(pairs().with_bands(RADAR.bands).image).shape == (3, 2, 16, 16)


def test_adapted_bands_need_a_start_and_keep_the_ids_of_other_recipes() -> None:
    plain = make_recipe({"name": "x"})
    assert "adapt_bands" not in plain.deciding["training"]
    assert make_recipe({"name": "x", "training": {"start": "a", "adapt_bands": True}}).id != plain.id
    with pytest.raises(Exception, match="start beside adapt_bands"):
        make_recipe({"name": "x", "training": {"adapt_bands": True}})


def test_masks_of_optical_chips_become_radar_chips_of_their_ids_and_groups(tmp_path: Path) -> None:
    """So the rule of held-out chips holds for what is pre-trained on them."""
    chips = folder_of(tmp_path / "chips")
    made = curate_chips(tmp_path / "chips", tmp_path / "radar", kind="radar-of-masks seed=3")
    radar = made.folder
    assert not made.failed and radar.bands == ("VV", "VH") and radar.unit == "sigma0_db"
    assert [(row.id, row.group) for row in radar.rows] == [(row.id, row.group) for row in chips.rows]
    for id_ in chips.ids:
        stored, own = chips.stored(id_)[1], radar.read(id_)
        assert np.array_equal(own.valid, stored != 255) and np.array_equal(own.label[own.valid], stored[own.valid])
        assert own.seen.all()
    split = Split(("c0", "c1"), ("c2",), ("c3",), "by hand")
    path = teacher_file(tmp_path / "t.safetensors", radar, Split(("c0", "c3"), ("c2",), ("c1",), "x"))
    with pytest.raises(UsageError, match="train part has c3"):
        check_held_out("training.start", path, chips, split)
