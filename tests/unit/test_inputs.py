"""What callers pass is converted where its meaning is certain, and refused with what to do where it is not."""

import pytest
import torch
from torch import nn

from seawall.errors import DataError, ModelError
from seawall.inputs import as_batch, as_model
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
RADAR = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
IMAGE = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3
LABEL = torch.arange(3 * 64).reshape(3, 8, 8) % 2


def same(found: Batch) -> bool:
    return torch.equal(found.image, IMAGE) and torch.equal(found.label, LABEL) and bool(found.valid.all())


@pytest.mark.parametrize(
    "given",
    [
        {"image": IMAGE, "mask": LABEL},
        {"image": IMAGE, "label": LABEL, "crs": None},
        {"image": IMAGE, "mask": LABEL[:, None]},
        (IMAGE, LABEL),
        [IMAGE, LABEL.bool()],
        (IMAGE, LABEL.to(torch.uint8)),
        (IMAGE, LABEL.float()),
        Batch.of(IMAGE, LABEL.to(torch.int32)),
    ],
)
def test_samples_of_other_libraries_become_a_batch(given: object) -> None:
    found = as_batch(given, SPEC)  # type: ignore[arg-type]
    assert same(found)
    assert found.label.dtype == torch.int64
    assert len(set(found.chips)) == 3


def test_an_unbatched_chip_and_double_precision_are_converted() -> None:
    found = as_batch((IMAGE[0].double(), LABEL[0]), SPEC)
    assert found.image.dtype == torch.float32
    assert torch.equal(found.image, IMAGE[:1])


def test_pixels_that_are_not_finite_become_unseen_and_only_they() -> None:
    image = IMAGE.clone()
    image[1, 0, 2, 3] = torch.nan
    image[2, 1, 0, 0] = torch.inf
    found = as_batch((image, LABEL), SPEC)
    assert (~found.seen).nonzero().tolist() == [[1, 2, 3], [2, 0, 0]]
    assert torch.equal(found.valid, found.seen)
    assert found.image.isfinite().all()
    assert torch.equal(found.image[found.seen[:, None].expand_as(image)], IMAGE[found.seen[:, None].expand_as(image)])


def test_fractions_under_labels_that_do_not_count_are_nobodys_business() -> None:
    label = LABEL.float()
    label[0, 0, 0] = torch.nan
    valid = torch.ones_like(LABEL, dtype=torch.bool)
    valid[0, 0, 0] = False
    assert int(as_batch(Batch.of(IMAGE, label, valid=valid), SPEC).valid.sum()) == LABEL.numel() - 1


@pytest.mark.parametrize(
    ("given", "spec", "says"),
    [
        ((IMAGE * 10000, LABEL), SPEC, "digital numbers; divide by 10000"),
        (((IMAGE * 10000).to(torch.int16), LABEL), SPEC, "got integers"),
        (((IMAGE * 255).to(torch.uint8), LABEL), SPEC, "got integers"),
        ((IMAGE, LABEL), RADAR, "convert linear power"),
        ((IMAGE * 1e4 - 2e3, LABEL), RADAR, "in dB"),
        ((IMAGE, LABEL.float() + 0.5), SPEC, "whole numbers"),
        ((IMAGE, LABEL * 255), SPEC, r"valid=label != 255"),
        ((IMAGE, LABEL - 1), SPEC, r"valid=label != -1"),
        ((IMAGE[:, :1], LABEL), SPEC, "2 bands"),
        ((IMAGE[0, 0], LABEL), SPEC, "add or drop axes"),
        ({"image": IMAGE, "target": LABEL}, SPEC, "dict with image, target"),
        (IMAGE, SPEC, "got Tensor"),
        (7, SPEC, "got int"),
    ],
)
def test_what_is_not_certain_is_refused_with_what_to_do(given: object, spec: ModelSpec, says: str) -> None:
    with pytest.raises(DataError, match=says):
        as_batch(given, spec)  # type: ignore[arg-type]


def test_decibel_passes_and_so_do_bright_clouds_in_part_of_the_image() -> None:
    assert as_batch((-12 + 6 * IMAGE, LABEL), RADAR).image.min() < -10
    bright = IMAGE.clone()
    bright[:, :, :3] = 1.6
    assert as_batch((bright, LABEL), SPEC).image.max() > 1.5


def test_a_stretched_model_takes_bytes() -> None:
    spec = ModelSpec(("R", "G"), ("land", "water"), "stretched", 10.0)
    assert as_batch(((IMAGE * 255).to(torch.uint8), LABEL), spec).image.dtype == torch.float32


@pytest.mark.parametrize("given", [nn.Conv2d(2, 2, 1), "weights", None, lambda image: image])
def test_a_model_without_a_specification_is_told_how_to_get_one(given: object) -> None:
    with pytest.raises(ModelError, match="adapt"):
        as_model(given)
