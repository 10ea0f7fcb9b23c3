"""Band tables and the many spellings of band names."""

import math

import pytest

from seawall.errors import ImageryError
from seawall.geo.sensors import SENSORS, are_sentinel_bands, find_sensor, resolve_bands


def test_tables_have_their_bands() -> None:
    assert SENSORS["sentinel-2-l1c"].ids == (
        *("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
    )
    assert set(SENSORS["sentinel-2-l1c"].ids) - set(SENSORS["sentinel-2-l2a"].ids) == {"B10"}
    assert SENSORS["hls"].ids == ("B01", "B02", "B03", "B04", "B8A", "B11", "B12")
    assert SENSORS["sentinel-1-grd"].ids == ("VV", "VH", "HH", "HV")
    assert SENSORS["sentinel-1-grd"].looks == 4.4


def test_noise_follows_from_the_published_signal_to_noise_ratio() -> None:
    (green,) = (band for band in SENSORS["sentinel-2-l2a"].bands if band.common_name == "green")
    assert (green.id, green.gsd_m, green.center_nm) == ("B03", 10, 559.8)
    assert green.noise == pytest.approx(math.pi * 128 / 168 / 1823.24)
    assert all(0.0003 < (band.noise or 0) < 0.003 for band in SENSORS["sentinel-2-l1c"].bands)
    assert {band.noise for band in SENSORS["sentinel-1-grd"].bands} == {-22}


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("B1", "B02", "b8", "B8A", "B12"), ("B01", "B02", "B08", "B8A", "B12")),
        (
            ("CoastalAerosol", "Blue", "Green", "Red", "NIR", "SWIR1", "SWIR2"),
            ("B01", "B02", "B03", "B04", "B08", "B11", "B12"),
        ),
        (("coastal", "nir", "nir08", "nir09", "cirrus", "swir16"), ("B01", "B08", "B8A", "B09", "B10", "B11")),
        (("S2_B03_10m", "Sentinel-2 B8", "Band 4", "rededge1"), ("B03", "B08", "B04", "B05")),
        (("VV", "sigma0_VH"), ("VV", "VH")),
        (("Gamma0_VV_db", "vh"), ("VV", "VH")),
    ],
)
def test_names_resolve(names: tuple[str, ...], ids: tuple[str, ...]) -> None:
    assert resolve_bands(names) == ids
    assert resolve_bands(ids) == ids
    assert are_sentinel_bands(names)


def test_near_infrared_of_hls_is_the_narrow_band() -> None:
    assert resolve_bands(("NIR", "Green"), sensor="hls") == ("B8A", "B03")


@pytest.mark.parametrize("name", ["pol?", "SWIR?", "VIS?", "R", "band1x", "B13", "B00", "rededge", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ImageryError, match="expected names of Sentinel bands, got"):
        resolve_bands(("B03", name))
    assert not are_sentinel_bands((name,))


def test_one_band_twice_is_refused() -> None:
    with pytest.raises(ImageryError, match="'B3' and 'green' for B03"):
        resolve_bands(("B3", "green"))


def test_a_mistyped_sensor_gets_a_guess() -> None:
    with pytest.raises(ImageryError, match="did you mean 'sentinel-2-l2a'"):
        find_sensor("sentinel-2-l2")
