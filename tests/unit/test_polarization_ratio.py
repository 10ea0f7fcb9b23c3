"""The ratio of two polarizations as a band."""

import pytest
import torch

from seawall.errors import ModelError
from seawall.models.polarization_ratio import PolarizationRatio, RatioUNet, RatioUNetPlusPlus
from seawall.types import FILL, ModelSpec

CLASSES = ("land", "water")


def test_the_ratio_is_one_minus_the_clipped_quotient_of_powers() -> None:
    decibels = torch.tensor([[-10.0, -10.0, -10.0, FILL["sigma0_db"]], [-20.0, -13.0103, -5.0, FILL["sigma0_db"]]])
    found = PolarizationRatio(ModelSpec(("VV", "VH"), CLASSES, "sigma0_db", 10.0))(decibels[None, :, None])
    assert found.flatten().tolist() == pytest.approx([0.9, 0.5, 0.0, 0.0], abs=1e-5)
    swapped = PolarizationRatio(ModelSpec(("VH", "VV"), CLASSES, "sigma0_db", 10.0))(decibels.flip(0)[None, :, None])
    assert torch.equal(swapped, found), "bands are found by their names"
    picture = torch.tensor([[200.0, 100.0, 0.0], [50.0, 200.0, 0.0]]) / 255
    found = PolarizationRatio(ModelSpec(("VV", "VH"), CLASSES, "stretched", 10.0))(picture[None, :, None])
    assert found.flatten().tolist() == pytest.approx([0.75, 0.0, 1.0], abs=1e-5), (
        "8-bit numbers are divided as they are"
    )


@pytest.mark.parametrize("make", [RatioUNet(4, 2), RatioUNetPlusPlus("plain", 4, 2)])
def test_networks_see_it_beside_both_bands(make) -> None:
    spec = ModelSpec(("VV", "VH"), CLASSES, "sigma0_db", 10.0)
    torch.manual_seed(0)
    model = make(spec).eval()
    assert next(weight for weight in model.network.parameters()).shape[1] == 3
    image = torch.full((1, 2, 8, 8), -12.0)
    model.standardize.fit([-12.0, -12.0], [1.0, 1.0])
    seen = []
    hook = model.network.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    model(image - torch.tensor([0.0, 3.0103])[:, None, None])
    hook.remove()
    assert torch.allclose(seen[0][0, :, 0, 0], torch.tensor([0.0, -3.0103, 0.5]), atol=1e-4)
    with pytest.raises(ModelError, match="expected the bands VV and VH, got B03, B08; use unet"):
        make(ModelSpec(("B03", "B08"), CLASSES, "reflectance", 10.0))
