"""Keyed transforms: closed forms, keys that are kept out of every file, networks behind them, and what is refused."""

import math
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seawall.arrays import FloatArray
from seawall.attacks.pgd import PGD
from seawall.errors import DataError, ModelError, UsageError
from seawall.inference.backends import export_onnx
from seawall.inference.tiling import TILE_ALIGN, blend_tiles, plan_tiles, round_up
from seawall.keyed_transforms.blocks import image_to_blocks
from seawall.keyed_transforms.format_preserving import CODES, FormatPreserving, encrypt_number
from seawall.keyed_transforms.keys import (
    KEY_BYTES,
    SecretKey,
    keyed_half,
    keyed_order,
    make_key_file,
    public_key,
    read_key,
)
from seawall.keyed_transforms.negative_positive import NegativePositive
from seawall.keyed_transforms.shuffle import Shuffle
from seawall.models.blocks import Segmenter
from seawall.models.keyed import KeyedModel, KeyEnsemble, protect
from seawall.models.unet import UNet
from seawall.models.weights import load_model, read_spec, save_model
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0)
KEY = public_key("test")
GOLDEN_ORDER = [2, 0, 4, 5, 6, 1, 3, 7]
GOLDEN_CODES = [15, 919, 876, 68, 275]
GOLDEN_CHECK = "9d3b827e8fc3420ae6a7118606f83aa0"


def image_of(count: int = 2, height: int = 16, width: int = 24, bands: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, bands, height, width, generator=torch.Generator().manual_seed(seed))


def keyed_unet(transform: str = "shuffle", block: int = 4, key: SecretKey = KEY, **settings: int) -> KeyedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(4, settings.pop("depth", 2), "pixel")(SPEC)
    model = protect(network, transform, {"block": block}, key, salt="a test").eval()
    image = image_of(4, 32, 32)
    model.fit_standardize([Batch.of(image, torch.zeros(4, 32, 32).long())])
    return model


# closed forms ---------------------------------------------------------------------------------------------------------


def test_a_key_gives_the_same_transform_for_ever() -> None:
    """Weights are of no use if another version, library or machine draws other orders: the numbers are frozen here."""
    key = SecretKey(bytes(range(32)))
    assert keyed_order(key.subkey("shuffle 2"), 8) == GOLDEN_ORDER
    assert [encrypt_number(key.subkey("cipher"), v) for v in (0, 1, 2, 255, 999)] == GOLDEN_CODES
    assert key.check_value("salt") == GOLDEN_CHECK


@pytest.mark.parametrize("block", [1, 2, 3, 4, 8])
def test_shuffle_keeps_the_values_of_every_block_and_moves_them_alike(block: int) -> None:
    image = image_of(2, 24, 48)
    before, after = (image_to_blocks(x, block, 3) for x in (image, Shuffle(block)(KEY, 3).encrypt(image)))
    assert torch.equal(before.sort(-1).values, after.sort(-1).values), "the histogram of a block changed"
    orders = {
        tuple(a.argsort()[b.argsort().argsort()].tolist())
        for a, b in zip(before.flatten(0, 2), after.flatten(0, 2), strict=True)
    }
    assert len(orders) == 1, "two blocks have another permutation"


@pytest.mark.parametrize("block,bands", [(4, 3), (2, 7), (8, 7), (3, 3), (1, 1)])
def test_exactly_half_of_the_positions_are_reversed_or_encrypted(block: int, bands: int) -> None:
    positions = block * block * bands
    middle = torch.full((1, bands, block, block), 0.25)
    for method in (NegativePositive(block), FormatPreserving(block)):
        changed = (method(KEY, bands).encrypt(middle) != middle).sum()
        assert int(changed) == positions // 2, method  # the released code has 23 of 48


def test_negative_positive_is_an_involution_and_reverses() -> None:
    image, transform = image_of().double(), NegativePositive(2)(KEY, 3)
    once = transform.encrypt(image)
    assert torch.allclose(transform.encrypt(once), image, rtol=0, atol=1e-15)
    assert set(((once - image).abs() < 1e-15).flatten().tolist()) == {True, False}
    assert bool(torch.isclose(once, image).logical_or(torch.isclose(once, 1 - image)).all())


@pytest.mark.parametrize("method", [Shuffle(4), NegativePositive(4)], ids=str)
def test_distances_are_kept(method: Shuffle | NegativePositive) -> None:
    transform, one, other = method(KEY, 3), image_of(seed=1).double(), image_of(seed=2).double()
    apart, after = (one - other).flatten(1), (transform.encrypt(one) - transform.encrypt(other)).flatten(1)
    for norm in (2, float("inf")):
        assert torch.allclose(torch.linalg.vector_norm(after, norm, 1), torch.linalg.vector_norm(apart, norm, 1))


def test_the_encryption_is_a_permutation_and_its_gradient_passes_through() -> None:
    cipher = KEY.subkey("any")
    assert sorted(encrypt_number(cipher, v) for v in range(CODES)) == list(range(CODES))
    transform, levels = FormatPreserving(1)(KEY, 2), torch.arange(256).float().reshape(1, 1, 1, 256) / 255
    image = levels.repeat(1, 2, 1, 1).requires_grad_()
    made = transform.encrypt(image)
    encrypted = made[0, int(keyed_half_of(transform)[1]), 0] * (CODES - 1)
    assert torch.allclose(encrypted, encrypted.round(), atol=1e-3) and len(set(encrypted.round().tolist())) == 256
    made.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))
    at = int(keyed_half_of(transform)[1])
    for near in (-0.4, 0.4):  # values count as the nearest of 256 levels
        assert torch.equal(transform.encrypt(image.detach() + near / 255)[0, at], made[0, at])
    outside = transform.encrypt(torch.tensor([-0.5, 0.0, 1.0, 1.7]).reshape(1, 1, 1, 4).repeat(1, 2, 1, 1))
    row = outside[0, int(keyed_half_of(transform)[1]), 0]
    assert row[0] == row[1] and row[2] == row[3], "values outside the range count as its ends"


def test_the_slope_of_the_code_table_is_that_between_neighbors() -> None:
    transform = FormatPreserving(1)(KEY, 2)
    stays, chosen = (int(i) for i in keyed_half_of(transform))
    image = (torch.arange(256).float().reshape(1, 1, 1, 256) / 255).repeat(1, 2, 1, 1).double().requires_grad_()
    sloped = transform.for_attacks()
    codes = transform.encrypt(image.detach())[0, chosen, 0]
    made = sloped.encrypt(image)
    assert torch.equal(made, transform.encrypt(image)), "only the gradient differs"
    (grad,) = torch.autograd.grad(made.sum(), image)
    want = torch.cat([codes[1:2] - codes[:1], (codes[2:] - codes[:-2]) / 2, codes[-1:] - codes[-2:-1]]) * 255
    assert torch.allclose(grad[0, chosen, 0], want, atol=1e-4) and bool((grad[0, stays] == 1).all())
    assert Shuffle(2)(KEY, 2).for_attacks() is not None and not transform.sloped


def keyed_half_of(transform: nn.Module) -> Tensor:
    """Return (positions that stay, positions that are encrypted) of a block of one pixel and two bands."""
    changed = transform.encrypt(torch.full((1, 2, 1, 1), 0.25))[0, :, 0, 0] != 0.25
    return torch.stack([(~changed).nonzero()[0, 0], changed.nonzero()[0, 0]])


def test_other_keys_and_purposes_give_other_orders() -> None:
    orders = {
        tuple(keyed_order(public_key(str(i)).subkey(p), 48)) for i in range(50) for p in ("shuffle 4", "shuffle 2")
    }
    assert len(orders) == 100
    chosen = np.mean([keyed_half(public_key(str(i)).subkey("x"), 48) for i in range(400)], 0)
    assert abs(chosen - 0.5).max() < 5 * 0.5 / 20, "a position is chosen by most keys or by few"


class StridedNetwork(nn.Module):
    """One convolution of M x M pixels at stride M, and one decision per block for all of its pixels."""

    def __init__(self, block: int, weight: Tensor) -> None:
        super().__init__()
        self.block, self.weight = block, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.conv2d(x, self.weight, stride=self.block)
        logits = torch.stack([hidden.tanh().sum(1), hidden.square().mean(1)], 1)
        return logits.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3)


@pytest.mark.parametrize("block", [2, 4])
def test_pgd_with_the_key_is_pgd_on_the_plain_network_with_permuted_weights(block: int) -> None:
    """A stride-M convolution absorbs the shuffle by permuting its weights, so that the key adds nothing once it is known."""
    weight = torch.randn(6, 3, block, block, generator=torch.Generator().manual_seed(4)).double()
    keyed = protect(
        Segmenter(SPEC, StridedNetwork(block, weight), block, None), "shuffle", {"block": block}, KEY, salt=""
    )
    order = torch.tensor(keyed_order(KEY.subkey(f"shuffle {block}"), 3 * block * block))
    flat = weight.permute(0, 2, 3, 1).flatten(1)  # row, column, band, as in a block
    absorbed = torch.empty_like(flat)
    absorbed[:, order] = flat
    back = absorbed.reshape(6, block, block, 3).permute(0, 3, 1, 2).contiguous()
    plain = Segmenter(SPEC, StridedNetwork(block, back), block, None)
    image = image_of(2, 16, 16).double()
    label = (image_of(2, 16, 16, 1, seed=9)[:, 0] > 0.5).long()
    batch, threat = Batch.of(image, label), ThreatModel("linf", 0.01, low=0.0)
    keyed, plain = keyed.double().eval(), plain.double().eval()
    assert torch.allclose(keyed(image), plain(image), atol=1e-12)
    one, other = (PGD(steps=10)(model, batch, threat, Keys(0, batch.chips)) for model in (keyed, plain))
    assert torch.allclose(one, other, rtol=0, atol=1e-12), "the adversarial images differ"
    assert float((one - image).abs().max()) > 0.009, "the attack did nothing"
    wrong = PGD(steps=10)(keyed.with_key(public_key("other")), batch, threat, Keys(0, batch.chips))
    assert not torch.allclose(wrong, other, rtol=0, atol=1e-3), "any key would do"


# keys -----------------------------------------------------------------------------------------------------------------

DIGITS = "0f" * KEY_BYTES


def test_a_key_is_read_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "k").write_text(DIGITS.upper() + "\n")
    monkeypatch.setenv("WATER_KEY", DIGITS)
    assert read_key(str(tmp_path / "k")) == read_key("env:WATER_KEY") == SecretKey(bytes([15] * KEY_BYTES))


@pytest.mark.parametrize(
    ("text", "what"),
    [(DIGITS[:-2], "64 hexadecimal digits, got 62"), (DIGITS + "00", "got 66"), ("", "got 0"), (DIGITS[:-1] + "g", "other characters"), ("ä" * 64, "other bytes")],
)  # fmt: skip
def test_a_bad_key_is_refused_without_showing_it(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "k").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=what) as bad:
        read_key(str(tmp_path / "k"))
    assert "make-key" in str(bad.value) and (len(text) < 8 or text[:8] not in str(bad.value))


def test_no_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    for source, what in (
        ("", "got none"),
        ("env:", "got none"),
        ("env:NO_KEY", "variable NO_KEY, got none"),
        (str(tmp_path / "gone"), "No such file"),
        (str(tmp_path), "Is a directory"),
    ):
        with pytest.raises(UsageError, match=what):
            read_key(source)
    with pytest.raises(UsageError) as bad:
        read_key(DIGITS)
    assert DIGITS not in str(bad.value), "a key that was given in place of its file is not repeated"
    with pytest.raises(UsageError, match="32 bytes, got 5"):
        SecretKey(b"short")


def test_a_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    make_key_file(tmp_path / "a")
    make_key_file(tmp_path / "b")
    text = (tmp_path / "a").read_text()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert len(read_key(str(tmp_path / "a")).secret) == KEY_BYTES and text != (tmp_path / "b").read_text()
    with pytest.raises(UsageError, match="expected no file, got one"):
        make_key_file(tmp_path / "a")
    assert (tmp_path / "a").read_text() == text
    with pytest.raises(UsageError, match="choose another folder"):
        make_key_file(tmp_path / "no" / "folder")


def test_no_text_of_a_key_shows_it() -> None:
    key = SecretKey(bytes([0xAB] * 32))
    assert "ab" * 4 not in f"{key} {key!r}".lower() and "xab" not in f"{key!r}"


# networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["shuffle", "negative-positive", "format-preserving"])
def test_weights_need_their_key_and_do_not_hold_it(tmp_path: Path, transform: str) -> None:
    path, model, image = tmp_path / "m.safetensors", keyed_unet(transform), image_of()
    save_model(path, model)
    again = load_model(path, key=KEY)
    assert torch.equal(again(image), model(image)) and again.spec == model.spec == read_spec(path)
    with pytest.raises(ModelError, match="expected a key, got none"):
        load_model(path)
    with pytest.raises(ModelError, match="got another one"):
        load_model(path, key=public_key("other"))
    held = path.read_bytes()
    assert KEY.secret not in held and KEY.secret.hex().encode() not in held
    names = set(model.state_dict())
    assert names and all(name.startswith("network.") for name in names), "a tensor of the transform is in the state"
    other = keyed_unet(transform, key=public_key("other"))
    assert set(other.state_dict()) == names and not torch.allclose(
        model(image), model.with_key(public_key("other"))(image)
    )
    save_model(tmp_path / "plain.safetensors", UNet(4, 1)(SPEC))
    with pytest.raises(ModelError, match="leave it out"):
        load_model(tmp_path / "plain.safetensors", key=KEY)


def test_the_check_value_is_salted() -> None:
    assert KEY.check_value("one") != KEY.check_value("two") and KEY.fits("one", KEY.check_value("one"))
    assert not KEY.fits("two", KEY.check_value("one"))


def test_damaged_facts_are_refused(tmp_path: Path) -> None:
    model = keyed_unet()
    model.spec.settings.pop("salt")  # type: ignore[attr-defined]
    save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(ModelError, match="record of a keyed transform"):
        load_model(tmp_path / "m.safetensors", key=KEY)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (5, 4), (8, 50)])
def test_any_side_is_padded_and_cropped(height: int, width: int) -> None:
    model = keyed_unet(block=4)
    image = image_of(1, height, width)
    logits = model(image)
    assert logits.shape == (1, 2, height, width) and bool(logits.isfinite().all())
    down, right = -height % model.stride, -width % model.stride
    padded = nn.functional.pad(image, (0, 0, 0, down), "reflect" if down < height else "replicate")
    padded = nn.functional.pad(padded, (0, right, 0, 0), "reflect" if right < width else "replicate")
    assert torch.allclose(logits, model(padded)[..., :height, :width], atol=1e-6)


def test_an_image_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(DataError, match=r"at least 8 x 8 pixels"):
        keyed_unet(block=8)(image_of(1, 7, 40))


def test_label_geometry_is_that_of_the_image() -> None:
    """A pixel far from a change keeps its logits, and one beside it does not: nothing is moved."""
    model = keyed_unet(block=4, depth=1)
    image = image_of(1, 96, 96)
    other = image.clone()
    other[..., 50, 50] = 0.9
    moved = (model(image) - model(other)).abs().amax((0, 1)) > 1e-6
    rows, cols = moved.nonzero().T
    assert bool(moved[50, 50]) and int(max((rows - 50).abs().max(), (cols - 50).abs().max())) <= model.reach


@pytest.mark.parametrize("block", [3, 4, 8])
def test_a_tiled_scene_equals_the_whole_one(block: int) -> None:
    """Tiles start at multiples of the block, so that a block of the scene is the same block in every tile."""
    model = keyed_unet(block=block, depth=1)
    plan, flags = plan_tiles(model, 331, 250, None, None)
    step = math.lcm(TILE_ALIGN, model.stride)
    plan, flags = plan_tiles(model, 331, 250, round_up(2 * plan.rows.overlap, step), None)
    assert flags == () and plan.count > 1 and not any(start % block for start in (*plan.rows.starts, *plan.cols.starts))
    scene = image_of(1, 331, 250)[0].numpy()
    made = np.full((2, 331, 250), np.nan, np.float32)
    for strip in blend_tiles(
        plan, lambda r, c, h, w: (scene[:, r : r + h, c : c + w], np.ones((h, w), bool)), maps_of(model), 2
    ):
        h, w = strip.seen.shape
        made[:, strip.row : strip.row + h, strip.col : strip.col + w] = strip.channels
    assert np.abs(made - maps_of(model)(scene[None])[0]).max() < 1e-5


def maps_of(model: nn.Module) -> Callable[[FloatArray], FloatArray]:
    def predict(images: FloatArray) -> FloatArray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(images)).softmax(1).numpy(), np.float32)

    return predict


def test_standardization_is_of_whole_blocks_after_the_transform() -> None:
    model, image = keyed_unet("negative-positive", 2), 0.1 + 0.2 * image_of(1, 8, 8)
    seen = torch.ones(1, 8, 8, dtype=torch.bool)
    seen[0, 0, 0] = False
    image[..., 0, 0] = 0.0
    model.fit_standardize([Batch.of(image, torch.zeros(1, 8, 8).long(), seen=seen)])
    values = model.transformed(image)[0].reshape(3, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(3, 16, 4)[:, 1:]
    assert torch.allclose(model.standardize.mean, values.flatten(1).mean(1), atol=1e-6)
    assert torch.allclose(model.standardize.std, values.flatten(1).std(1, correction=0), atol=1e-5)
    with pytest.raises(DataError, match="got none"):
        model.fit_standardize([Batch.of(image, torch.zeros(1, 8, 8).long(), seen=torch.zeros_like(seen))])


def test_values_are_scaled_by_the_range_of_the_unit() -> None:
    radar = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
    model = protect(UNet(4, 1)(radar), "negative-positive", {"block": 1}, KEY, salt="", valid_range=None)
    image = torch.tensor([-30.0, -10.0, 10.0, -20.0]).reshape(1, 1, 2, 2).repeat(1, 2, 1, 1)
    got = model.without_transform().transformed(image)[0, 0].flatten()
    assert torch.allclose(got, torch.tensor([0.0, 0.5, 1.0, 0.25]))
    with pytest.raises(UsageError, match="two rising numbers"):
        protect(UNet(4, 1)(radar), "shuffle", {}, KEY, salt="", valid_range=(1.0, 1.0))


def test_an_ensemble_over_keys_has_the_mean_probabilities() -> None:
    model, image = keyed_unet(), image_of()
    members = [model.with_key(public_key(str(i))) for i in range(3)]
    mean = torch.stack([member(image).softmax(1) for member in members]).mean(0)
    assert torch.allclose(KeyEnsemble(members)(image).exp(), mean, atol=1e-6)


def test_an_exported_graph_would_hold_the_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give away"):
        export_onnx(nn.Sequential(keyed_unet()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
