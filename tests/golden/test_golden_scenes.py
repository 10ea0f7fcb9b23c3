"""What simulated scenes look like in numbers: a change here changes every table made with them."""

import json
from pathlib import Path

import numpy as np

from seawall.simulate.scene import simulate_s1, simulate_s2

GOLDEN = Path(__file__).with_name("scenes.json")
NAMES = ("golden-0", "golden-1", "golden-2", "golden-3")


def measure(name: str) -> dict[str, object]:
    optical, radar = simulate_s2(name, 128), simulate_s1(name, 128)
    return {
        "kind": optical.facts["kind"],
        "water": int(optical.water.sum()),
        "cover": np.bincount(optical.cover.ravel(), minlength=8).tolist(),
        "mean": optical.image.mean((1, 2)).round(5).tolist(),
        "deviation": optical.image.std((1, 2)).round(5).tolist(),
        "radar": radar.image.mean((1, 2)).round(3).tolist(),
    }


def test_scenes_are_as_they_were() -> None:
    """Tolerances: 8 pixels of a class (rounding of transforms on other machines), 1e-3 reflectance, 0.05 dB."""
    golden = json.loads(GOLDEN.read_text())
    for name in NAMES:
        now, then = measure(name), golden[name]
        assert now["kind"] == then["kind"]
        np.testing.assert_allclose(now["water"], then["water"], atol=8)
        np.testing.assert_allclose(now["cover"], then["cover"], atol=8)
        np.testing.assert_allclose(now["mean"], then["mean"], atol=1e-3)
        np.testing.assert_allclose(now["deviation"], then["deviation"], atol=1e-3)
        np.testing.assert_allclose(now["radar"], then["radar"], atol=0.05)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: measure(name) for name in NAMES}, indent=1) + "\n")
