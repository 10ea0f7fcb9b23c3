"""What every segmentation model must keep."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import ModelError, UsageError
from seawall.models.weights import load_model, save_model, spec_of
from seawall.registry import Entry
from seawall.testing.assertions import made, quiet_random, same_bits, same_snapshot, snapshot
from seawall.testing.fixtures import BANDS
from seawall.types import Architecture, Batch, FittedModel, ModelSpec, fill_of, per_channel, units_of

MODEL_SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
RADAR_SPEC = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
OTHER_SPECS = (
    ModelSpec(("B03",), ("land", "water"), "reflectance", 10.0),
    ModelSpec((*BANDS, "B01", "B8A"), ("land", "water", "snow"), "reflectance", 10.0),
    RADAR_SPEC,
    ModelSpec(("VH",), ("land", "water", "flood", "wetland"), "gamma0_db", 20.0),
    ModelSpec(("s1.VV", "s2.B03", "s2.B08"), ("land", "water"), ("sigma0_db", "reflectance", "reflectance"), 10.0),
)
SIZES = ((1, 1), (7, 5), (16, 16), (17, 33))


def check_logits_of_any_size(entry: Entry) -> None:
    """Images of every size give finite logits (B, K, H, W), and the module has the specification that it was built for."""
    model = _model(entry)
    spec = spec_of(model)
    own = _own_spec(entry)
    assert (spec.bands, spec.classes, spec.unit) == (own.bands, own.classes, own.unit)
    for height, width in SIZES:
        logits = model(_image(2, height, width, _own_spec(entry)))
        assert logits.shape == (2, 2, height, width), f"expected {(2, 2, height, width)}, got {tuple(logits.shape)}"
        assert bool(logits.isfinite().all()), f"the logits of {height} x {width} pixels are not finite"


def check_images_are_alone_in_evaluation(entry: Entry) -> None:
    """In evaluation mode an image has the same logits alone and in a batch."""
    model, image = _model(entry), _image(3, 16, 16, _own_spec(entry))
    whole = model(image)
    for i in range(3):
        assert torch.allclose(whole[i : i + 1], model(image[i : i + 1]), atol=1e-5), "logits depend on the batch"


def check_evaluation_is_deterministic(entry: Entry) -> None:
    """Two passes are equal to the bit, draw nothing, and leave the image as it is."""
    model, image = _model(entry), _image(2, 16, 16, _own_spec(entry))
    before = image.clone()
    with quiet_random():
        first = model(image)
    assert same_bits(first, model(image)), "two passes differ"
    assert same_bits(image, before), "the model wrote to its image"


def check_any_bands_and_classes(entry: Entry) -> None:
    """One band or many, reflectance or decibels, two classes or more: finite logits of every class, or one line that says what does not fit."""
    for spec in OTHER_SPECS:
        try:
            model = _model(entry, spec)
        except (ModelError, UsageError) as bad:
            assert "expected" in str(bad) and "\n" not in str(bad), (
                f"{spec.bands}: no line that says what fits, but {bad}"
            )
            continue
        image = _image(1, 9, 7, spec)
        logits = model(image)
        assert logits.shape == (1, len(spec.classes), 9, 7), (
            f"{spec.bands}, {spec.classes}: logits {tuple(logits.shape)}"
        )
        assert bool(logits.isfinite().all()), f"the logits of {spec.unit} are not finite"


def check_gradient_reaches_the_image(entry: Entry) -> None:
    """The logits have a finite gradient to the image that is not zero everywhere, so that gradients can attack the model; with the trait
    `no-gradient` they have none."""
    image = _image(2, 16, 16, _own_spec(entry)).requires_grad_()
    logits = _model(entry)(image)
    if "no-gradient" in entry.traits:
        assert not logits.requires_grad, "it has a gradient; leave out the trait no-gradient"
        return
    (grad,) = torch.autograd.grad(logits[:, 1].sum(), image)
    assert bool(grad.isfinite().all()) and bool((grad != 0).any()), "the gradient is not finite or zero everywhere"


def check_nothing_beyond_the_receptive_field(entry: Entry) -> None:
    """A pixel farther away than `reach` changes no logit, so that tiles that overlap by it give the whole scene."""
    model = _model(entry)
    reach = getattr(model, "reach", None)
    if reach is None:
        return
    size = 4 * (reach // 4 + 2)
    image = _image(1, size, size, _own_spec(entry))
    other = image.clone()
    other[..., -1, -1] = 0.9
    apart = (model(image) - model(other)).abs().amax(1)[0]
    far = size - 1 - reach
    apart = apart.detach()
    assert float(apart[:far].max()) <= 1e-6 and float(apart[:, :far].max()) <= 1e-6, (
        f"it sees farther than {reach} pixels"
    )


def check_unseen_pixels_change_nothing_elsewhere(entry: Entry) -> None:
    """Unseen pixels beside an image, as in a padded chip, change no logit farther away than `reach`; with the trait `ignores-unseen` none at all.

    A network reads the fill of unseen pixels as it reads the padding of a convolution, so within its receptive field they count.
    """
    model = _model(entry)
    reach = 0 if "ignores-unseen" in entry.traits else getattr(model, "reach", None)
    if reach is None:
        return
    size = max(4 * (reach // 4 + 2), 22)
    patches = _image(1, size // 5 + 1, size // 5 + 1, _own_spec(entry)).repeat_interleave(5, 2).repeat_interleave(5, 3)
    image = patches[..., :size, :size] + 0.1 * _image(1, size, size, _own_spec(entry))
    # widths that are no multiples of a block or of a stride
    around = functional.pad(image, (0, 11, 0, 7), value=fill_of(_own_spec(entry).unit, 1)[0])
    alone, beside = model(image), model(around)
    far = size - reach
    apart = (alone - beside[..., :size, :size])[..., :far, :far].abs().amax().detach()
    assert float(apart) <= 1e-5, (
        f"unseen pixels change logits that are more than {reach} pixels away, by {float(apart):.2g}"
    )


def check_fit_is_reproducible(entry: Entry) -> None:
    """A model that is fitted to chips says so before, draws from its own seed alone, and is the same for any order of the batches."""
    models = [made(entry, Architecture)(_own_spec(entry)).eval() for _ in range(2)]
    if not isinstance(models[0], FittedModel) or models[0].fitted:
        return
    try:
        models[0](_image(1, 4, 4, _own_spec(entry)))
        raise AssertionError("it gives logits before it is fitted")
    except ModelError as bad:
        assert "fit" in str(bad), f"expected a line that says to fit it, got {bad}"
    chips = _training_chips(_own_spec(entry))
    with quiet_random():
        models[0].fit([chips], seed=3)
    models[1].fit([chips.select([i]) for i in (2, 0, 3, 1)], seed=3)  # type: ignore[operator]
    assert models[0].fitted, "it does not say that it is fitted"
    assert same_snapshot(snapshot(models[0]), snapshot(models[1])), "the order of the chips changes the fit"


def check_weights_travel(entry: Entry) -> None:
    """Saved and loaded again, the model has the same specification and the same logits to the bit."""
    model, image = _model(entry), _image(1, 16, 16, _own_spec(entry))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, model)
        again = load_model(path)
    assert again.spec == model.spec, f"expected {model.spec}, got {again.spec}"
    assert same_bits(model(image), again.eval()(image)), "the loaded model has other logits"


def _own_spec(entry: Entry) -> ModelSpec:
    """Return what a model is checked on: optical bands, or with the trait `radar` both polarizations in decibels."""
    return RADAR_SPEC if "radar" in entry.traits else MODEL_SPEC


def _model(entry: Entry, spec: ModelSpec | None = None) -> nn.Module:
    spec = spec or _own_spec(entry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = made(entry, Architecture)(spec).eval()
    if isinstance(model, FittedModel) and not model.fitted:
        model.fit([_training_chips(spec)])
    return model


def _image(count: int, height: int, width: int, spec: ModelSpec) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    image = 0.05 + 0.3 * torch.rand(count, len(spec.bands), height, width, generator=draw)
    decibels = per_channel([float(unit != "reflectance") for unit in units_of(spec.unit, len(spec.bands))], image)
    return torch.where(decibels == 1, 100 * image - 40, image)


def _training_chips(spec: ModelSpec) -> Batch:
    """Return four chips of all classes, which differ in their first band."""
    image = _image(4, 16, 16, spec)
    label = (image[:, 0].argsort(-1).argsort(-1) * len(spec.classes)) // 16
    return Batch.of(image, label)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
