"""The threat set by hand: what text means, where projections land, what may not be touched."""

import pytest
import torch

from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.threat.region import Clouds, Everywhere, Patch
from seawall.types import ModelSpec

OPTICAL = ModelSpec(("B02", "B03", "B08"), ("land", "water"), "reflectance", 10.0)
RADAR = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
PICTURE = ModelSpec(("B04", "B03"), ("land", "water"), "stretched", 10.0)


@pytest.mark.parametrize(
    ("text", "spec", "eps"),
    [
        ("linf 1% reflectance", OPTICAL, 0.01),
        ("linf 1 % reflectance", OPTICAL, 0.01),
        ("linf 0.25% reflectance", OPTICAL, 0.0025),
        ("linf 8/255 reflectance", OPTICAL, 8 / 255),
        ("linf 0.01,0.02,0.03 reflectance", OPTICAL, (0.01, 0.02, 0.03)),
        ("l2 0.5 reflectance", OPTICAL, 0.5),
        ("linf 0.5 dB", RADAR, 0.5),
        ("speckle 2dB", RADAR, 2.0),
        ("linf 8/255 stretched", PICTURE, 8 / 255),
        ("linf 0 reflectance", OPTICAL, 0.0),
    ],
)
def test_text_says_eps_in_data_units(text: str, spec: ModelSpec, eps: float | tuple[float, ...]) -> None:
    threat = parse_threat(text, spec)
    assert threat.eps == eps and threat.unit == spec.unit


def test_multiples_of_noise_and_shares_of_range() -> None:
    noise = {"B02": 0.001, "B03": 0.002, "B08": 0.003}
    assert parse_threat("linf 2x noise", OPTICAL, noise=noise).eps == pytest.approx((0.002, 0.004, 0.006))
    assert parse_threat("linf 1% range", OPTICAL, ranges=dict.fromkeys(noise, 0.5)).eps == pytest.approx((0.005,) * 3)


@pytest.mark.parametrize(
    ("text", "spec", "says"),
    [
        ("linf 0.01", OPTICAL, "expected eps with a unit"),
        ("linf 1%", OPTICAL, "expected eps with a unit"),
        ("linf 8/255", OPTICAL, "expected eps with a unit"),
        ("linf -1% reflectance", OPTICAL, "eps >= 0"),
        ("linf 0.5 dB", OPTICAL, "the model's unit"),
        ("linf 1% reflectance", RADAR, "the model's unit"),
        ("linf 1% dB", RADAR, "percentage"),
        ("l3 1% reflectance", OPTICAL, "unknown norm 'l3'"),
        ("linf 1% reflectance band=B03", OPTICAL, "did you mean 'bands'?"),
        ("linf 1% reflectance bands=B04", OPTICAL, "got 'B04'"),
        ("linf 1%,2% reflectance", OPTICAL, "1 or 3 values"),
        ("linf 2x noise", RADAR, "noise of every band"),
        ("linf 2 noise", OPTICAL, "2x noise"),
        ("linf 1% range", OPTICAL, "range of every band"),
        ("haze 1% reflectance", OPTICAL, "haze spectrum"),
        ("speckle 1% reflectance", OPTICAL, "model in dB"),
        ("linf 1% reflectance region=cloud", OPTICAL, "did you mean 'clouds'?"),
        ("linf 1% reflectance region=patch:1,2", OPTICAL, "patch:row,col,height,width"),
        ("linf 0.5 dB region=clouds", RADAR, "expected reflectance"),
        ("linf 1% reflectance sign=left", OPTICAL, "both, up or down"),
        ("linf inf reflectance", OPTICAL, "expected"),
        ("linf 1e400 reflectance", OPTICAL, "finite"),
        ("linf 1/0 reflectance", OPTICAL, "expected a number"),
        ("nonsense", OPTICAL, "'<norm> <eps> <unit>'"),
        ("", OPTICAL, "'<norm> <eps> <unit>'"),
    ],
)
def test_bad_text_is_one_clear_line(text: str, spec: ModelSpec, says: str) -> None:
    with pytest.raises(UsageError, match=r"threat|region") as caught:
        parse_threat(text, spec)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "linf 1% reflectance",
        "l2 0.5% reflectance low=none",
        "linf 0.3%,0.4%,0.5% reflectance",
        "linf 1% reflectance bands=B03,B08",
        "linf 1% reflectance region=patch:1,2,3,4",
        "linf 1% reflectance region=clouds:0.25,#0,#1",
        "linf 2% reflectance sign=up spectrum=1,0.8,0.1",
        "linf 1% reflectance low=0.01 high=1",
    ],
)
def test_canonical_text_parses_back(text: str) -> None:
    threat = parse_threat(text, OPTICAL)
    assert str(threat) == text
    assert parse_threat(str(threat), OPTICAL) == threat


def test_text_of_awkward_numbers_parses_back_to_the_bit() -> None:
    for eps in (8 / 255, 1 / 3, 0.1 + 0.2, 1e-9):
        threat = ThreatModel("linf", eps, low=0.0)
        assert parse_threat(str(threat), OPTICAL) == threat
    assert parse_threat(str(parse_threat("linf 0.5 dB", RADAR)), RADAR).low is None
    assert str(parse_threat("linf 3% stretched", PICTURE)) == "linf 3% stretched"


def test_project_by_hand() -> None:
    x = torch.tensor([[[[0.005, 0.5]]]])
    seen = torch.ones(1, 1, 2, dtype=torch.bool)
    threat = ThreatModel("linf", 0.01, low=0.0, high=0.4)
    # 0.5 is above the bound already: it is widened to hold it, and only downwards is free
    assert torch.allclose(threat.project(x - 1, x, seen), torch.tensor([[[[0.0, 0.49]]]]))
    assert torch.allclose(threat.project(x + 1, x, seen), torch.tensor([[[[0.015, 0.5]]]]))
    assert torch.equal(threat.project(x, x, seen), x)


def test_l2_by_hand() -> None:
    x = torch.zeros(1, 1, 1, 2)
    seen = torch.ones(1, 1, 2, dtype=torch.bool)
    threat = ThreatModel("l2", 1.0)
    there = threat.project(torch.tensor([[[[3.0, 4.0]]]]), x, seen)
    assert torch.allclose(there, torch.tensor([[[[0.6, 0.8]]]]), atol=1e-5)
    assert threat.distance(there, x).item() <= 1.0
    assert torch.allclose(threat.ascend(torch.tensor([[[[3e-25, 4e-25]]]])), torch.tensor([[[[0.6, 0.8]]]]))


def test_haze_is_a_multiple_of_its_spectrum_and_only_brightens() -> None:
    threat = parse_threat("haze 4% reflectance spectrum=2,1,0", OPTICAL)
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    adv = threat.start(x, torch.ones(1, 4, 4, dtype=torch.bool), Keys(0, ("a",)))
    noise = adv - x
    assert torch.allclose(noise[:, 0], 2 * noise[:, 1], atol=1e-6) and not noise[:, 2].any()
    assert noise.min() >= 0 and noise.max() <= 0.04 + 1e-6 and noise.max() > 0.02
    assert parse_threat("haze 4% reflectance", OPTICAL, haze={"B02": 2.0, "B03": 1.0, "B08": 0.0}) == threat


def test_bands_regions_and_unseen_pixels_are_frozen() -> None:
    x = torch.full((1, 3, 3, 3), 0.2)
    x[..., 0] = 0.5
    seen = torch.ones(1, 3, 3, dtype=torch.bool)
    seen[0, 2] = False
    for region, touched in ((Patch(1, 1, 5, 5), 2), (Clouds(0.3), 2), (Everywhere(), 6), (None, 6)):
        threat = ThreatModel("linf", 0.1, bands=(1,), region=region)
        moved = threat.project(x + 1, x, seen) != x
        assert int(moved.sum()) == touched and int(moved[:, 1].sum()) == touched


def test_a_start_is_inside_and_belongs_to_its_chip() -> None:
    x, seen = torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    for threat in (ThreatModel("linf", 0.1), ThreatModel("l2", 0.1), ThreatModel("l2", 0.1, spectrum=(1.0, 0.5, 0.2))):
        both = threat.start(x, seen, Keys(0, ("a", "b")))
        assert torch.equal(both[1:], threat.start(x[1:], seen[1:], Keys(0, ("b",))))
        far = threat.distance(both, x)
        assert bool((far <= 0.1 + 1e-6).all() and (far > 0.05).all())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"norm": "l1", "eps": 0.1}, "linf or l2"),
        ({"norm": "linf", "eps": -0.1}, "eps >= 0"),
        ({"norm": "linf", "eps": float("nan")}, "finite"),
        ({"norm": "linf", "eps": 0.1, "bands": ()}, "at least one"),
        ({"norm": "linf", "eps": (0.1, 0.2), "spectrum": (1.0, 1.0)}, "one eps"),
        ({"norm": "linf", "eps": 0.1, "spectrum": (0.0, 0.0)}, "not all zero"),
    ],
)
def test_bad_settings(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ThreatModel(**settings)  # type: ignore[arg-type]


def test_wrong_number_of_bands() -> None:
    x, seen = torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool)
    with pytest.raises(UsageError, match="expected 2 values of eps, got 3"):
        ThreatModel("linf", (0.1, 0.1, 0.1)).project(x, x, seen)
    with pytest.raises(UsageError, match="expected bands below 2"):
        ThreatModel("linf", 0.1, bands=(2,)).project(x, x, seen)
