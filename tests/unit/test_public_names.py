"""The public names are listed where people look for them, and each can be had."""

import subprocess
import sys

import seawall


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    assert set(dir(seawall)) == {*seawall.__all__, "__version__"}


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(seawall, name) is not None for name in seawall.__all__)


def test_every_verb_whose_name_is_no_package_is_public() -> None:
    from seawall import api

    missing = {verb.__name__ for verb in api.VERBS} - set(seawall.__all__)
    assert missing == {"report"}
    assert seawall.train is api.train and seawall.evaluate is api.evaluate


def test_listing_them_loads_nothing_heavy() -> None:
    code = "import sys, seawall; dir(seawall); assert not {'torch', 'numpy', 'rasterio'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
