"""RGB composites of images: which bands, which stretch, and how unseen pixels look."""

import numpy as np

from seawall.geo.preview import Stretch, rgb_channels, rgb_composite

BANDS = ("B02", "B03", "B04")
IMAGE = np.random.default_rng(0).uniform(0, 0.4, (3, 8, 8)).astype(np.float32)
SEEN = np.arange(64).reshape(8, 8) > 7


def test_a_composite_is_the_stretch_of_its_bands() -> None:
    rgb = IMAGE[rgb_channels(BANDS)]
    assert (rgb_composite(IMAGE, SEEN, BANDS) == Stretch.of(rgb, SEEN)(rgb, SEEN)).all()
    assert (rgb[0] == IMAGE[2]).all() and (rgb[2] == IMAGE[0]).all()


def test_two_images_may_share_a_stretch() -> None:
    stretch = Stretch.of(IMAGE[rgb_channels(BANDS)], SEEN)
    brighter = rgb_composite(IMAGE + 0.05, SEEN, BANDS, stretch=stretch)
    assert brighter[SEEN].mean() > rgb_composite(IMAGE, SEEN, BANDS, stretch=stretch)[SEEN].mean()
    assert (rgb_composite(IMAGE + 0.05, SEEN, BANDS)[SEEN].mean() - rgb_composite(IMAGE, SEEN, BANDS)[SEEN].mean()) < 1


def test_unseen_pixels_have_the_gray_value_that_is_asked_for() -> None:
    assert (rgb_composite(IMAGE, SEEN, BANDS, unseen=128)[~SEEN] == 128).all()
    assert (rgb_composite(IMAGE, np.zeros((8, 8), bool), ("VV", "VH", "HH"), unseen=128) == 128).all()
