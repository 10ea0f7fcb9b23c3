"""Water indices by hand, against spyndex, and where they must be refused or undefined."""

import numpy as np
import pytest

from seawall.errors import DataError, RadiometryError, UsageError
from seawall.labels.rules import REPORT_RULE, OtsuRule, ThresholdRule, parse_rule
from seawall.labels.water_indices import parse_index

BANDS = ("B02", "B03", "B08", "B11", "B12")
ndwi, mndwi, awei_nsh, awei_sh = (parse_index(name) for name in ("ndwi", "mndwi", "awei_nsh", "awei_sh"))


def pixel(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, np.float32).reshape(-1, 1, 1), np.ones((1, 1), bool)


def test_formulas_by_hand():
    image, seen = pixel(0.1, 0.2, 0.05, 0.04, 0.02)
    assert ndwi(image, seen, BANDS)[0].item() == pytest.approx(0.15 / 0.25)
    assert mndwi(image, seen, BANDS)[0].item() == pytest.approx(0.16 / 0.24)
    assert awei_nsh(image, seen, BANDS)[0].item() == pytest.approx(4 * 0.16 - (0.25 * 0.05 + 2.75 * 0.02))
    assert awei_sh(image, seen, BANDS)[0].item() == pytest.approx(0.1 + 0.5 - 1.5 * 0.09 - 0.25 * 0.02)


@pytest.mark.parametrize(
    "name,theirs", [("ndwi", "NDWI"), ("mndwi", "MNDWI"), ("awei_nsh", "AWEInsh"), ("awei_sh", "AWEIsh")]
)
def test_same_as_spyndex(name, theirs):
    spyndex = pytest.importorskip("spyndex")
    image = np.random.default_rng(0).uniform(0.01, 0.6, (5, 40, 50)).astype(np.float32)
    b, g, n, s1, s2 = image.astype(np.float64)
    want = spyndex.computeIndex([theirs], params={"B": b, "G": g, "N": n, "S1": s1, "S2": s2})
    if name == "awei_nsh":
        want = (
            want - 5.5 * s2
        )  # spyndex 0.12 lost the paper's parenthesis: it adds 2.75 swir2 instead of taking it away
    index, defined = parse_index(name)(image, np.ones((40, 50), bool), BANDS)
    assert defined.all() and index.dtype == np.float32
    np.testing.assert_allclose(index, want, rtol=1e-5, atol=1e-6)


def test_unseen_and_zero_over_zero_are_undefined_and_never_water():
    image = np.zeros((5, 2, 2), np.float32)
    image[1] = 0.5
    image[:, 0, 0] = 0.0  # 0/0
    image[1, 0, 1] = np.nan
    seen = np.array([[True, True], [False, True]])
    for rule in ("ndwi >= -0.25", "mndwi > -9", "mndwi otsu else -9"):
        label = parse_rule(rule)(image, seen, BANDS, "reflectance").label
        assert label.tolist() == [[255, 255], [255, 1]]
    index, defined = awei_sh(image, seen, BANDS)
    assert np.isfinite(index[defined]).all() and np.isnan(index[~defined]).all()


def test_negative_total_is_undefined_but_dark_water_with_negative_nir_is_water():
    image, seen = pixel(0, -0.002, 0.001, 0, 0)
    assert not ndwi(image, seen, BANDS)[1].any()
    image, seen = pixel(0, 0.02, -0.01, 0, 0)
    index, defined = ndwi(image, seen, BANDS)
    assert defined.all() and index.item() > 1


@pytest.mark.parametrize("unit", ["stretched", "sigma0_db", "gamma0_db"])
def test_other_units_are_refused(unit):
    with pytest.raises(RadiometryError, match="expected reflectance"):
        ndwi(*pixel(*[0.1] * 5), BANDS, unit)


def test_missing_band_shapes_and_names_are_refused():
    image, seen = pixel(0.1, 0.2)
    with pytest.raises(DataError, match="swir1"):
        mndwi(image, seen, ("B03", "B08"))
    with pytest.raises(DataError, match="name every channel"):
        ndwi(image, seen, BANDS)
    with pytest.raises(DataError, match="seen of shape"):
        ndwi(image, np.ones((2, 2), bool), ("B03", "B08"))
    with pytest.raises(UsageError, match="did you mean 'mndwi'"):
        parse_index("mndvi")
    with pytest.raises(UsageError, match="for example"):
        parse_rule("ndwi about 0")
    with pytest.raises(UsageError, match="unknown name"):
        parse_rule("nope > 0")


def test_narrow_near_infrared_stands_in():
    image, seen = pixel(0.2, 0.1)
    assert ndwi(image, seen, ("B03", "B8A"))[0].item() == pytest.approx(1 / 3)


def test_batches_and_the_inputs_stay_untouched():
    image = np.random.default_rng(1).uniform(0.01, 0.5, (3, 5, 4, 4)).astype(np.float32)
    kept = image.copy()
    index, _ = mndwi(image, np.ones((3, 4, 4), bool), BANDS)
    one, _ = mndwi(image[1], np.ones((4, 4), bool), BANDS)
    assert np.array_equal(index[1], one) and np.array_equal(image, kept)


def test_the_reports_rule_is_one_line():
    rule = parse_rule(REPORT_RULE)
    assert (
        rule == parse_rule("NDWI >= -0.25") == ThresholdRule("ndwi", -0.25, inclusive=True) and str(rule) == REPORT_RULE
    )
    image, seen = pixel(0, 0.375, 0.625, 0, 0)  # ndwi exactly -0.25, in binary too
    assert rule(image, seen, BANDS, "reflectance").label.item() == 1
    assert parse_rule("ndwi > -0.25")(image, seen, BANDS, "reflectance").label.item() == 0


def test_radar_is_water_below_its_threshold():
    image = np.float32([[[-20.0, -15.0, -14.9, -3.0]]])
    seen = np.array([[True, True, True, False]])
    for text, want in (("vv < -15", [1, 0, 0, 255]), ("VV <= -15", [1, 1, 0, 255])):
        rule = parse_rule(text)
        assert rule(image, seen, ("VV",), "sigma0_db").label.tolist() == [want] and parse_rule(str(rule)) == rule
    lake = np.random.default_rng(0).normal(np.repeat([-22.0, -8.0], 2000), 1.0).astype(np.float32).reshape(1, 40, 100)
    found = parse_rule("vv otsu")(lake, np.ones((40, 100), bool), ("VV",), "gamma0_db")
    assert found.threshold.method == "otsu" and np.array_equal(found.label == 1, lake[0] < -15)
    flat = np.full((1, 2, 2), -14.0, np.float32)  # no two modes: the published -13.45 dB, not 0
    assert (parse_rule("vv otsu")(flat, np.ones((2, 2), bool), ("VV",), "sigma0_db").label == 1).all()


@pytest.mark.parametrize("text", ["vv > -15", "vh >= -20", "ndwi < 0", "mndwi <= 0"])
def test_a_comparison_away_from_water_is_refused(text):
    with pytest.raises(UsageError, match="turn it around"):
        parse_rule(text)


def test_a_difference_of_any_two_bands_is_an_index_by_its_text():
    image, seen = pixel(0.1, 0.2, 0.05, 0.04, 0.02)
    rule = parse_rule("normalized-difference first=blue second=B12 > 0.6")
    assert rule.index(image, seen, BANDS)[0].item() == pytest.approx(0.08 / 0.12)
    assert rule(image, seen, BANDS, "reflectance").label.item() == 1 and parse_rule(str(rule)) == rule
    with pytest.raises(UsageError, match="B99"):
        parse_index("normalized-difference first=B99 second=nir")
    with pytest.raises(UsageError, match="second"):
        parse_index("normalized-difference first=green")


def test_rules_of_an_index_have_one_spelling():
    assert OtsuRule("mndwi", 0.1) == parse_rule("mndwi OTSU else 0.1")
    for text in ("threshold index=ndwi at=0", "otsu index=ndwi fallback=0", "otsu", "ndwi", ""):
        with pytest.raises(UsageError, match="for example 'ndwi"):
            parse_rule(text)
    with pytest.raises(UsageError, match="finite"):
        parse_rule("ndwi > 1e999")
