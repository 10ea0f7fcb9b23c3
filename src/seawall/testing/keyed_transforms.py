"""What every keyed transform must keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from seawall.errors import DataError, UsageError
from seawall.keyed_transforms.blocks import BlockTransform, KeyedTransform, blocks_to_image
from seawall.keyed_transforms.keys import public_key
from seawall.registry import Entry, build
from seawall.testing.assertions import made, quiet_random, same_bits

BAND_COUNTS = (1, 2, 3, 7)
SIDES = (1, 2, 3, 4)


def check_decryption_is_exact_on_8_bit(entry: Entry) -> None:
    """decrypt(encrypt(v)) is v for every 8-bit value at every position of a block."""
    for block in SIDES:
        for bands in BAND_COUNTS:
            transform = _bound(entry, block, bands)
            image = _every_value(block, bands)
            back = transform.decrypt(transform.encrypt(image.float() / 255))
            assert torch.equal((back * 255).round().to(torch.uint8), image), f"block {block}, {bands} bands"


def check_blocks_do_not_see_each_other(entry: Entry) -> None:
    """Every block is transformed alike wherever it is, alone and beside others, and the image is not written to."""
    transform, image = _bound(entry, 2, 3), _uniform_image(2, 3, 8, 6)
    before, whole = image.clone(), transform.encrypt(image)
    assert same_bits(image, before) and whole.shape == image.shape
    for row in range(0, 8, 2):
        for col in range(0, 6, 2):
            here = (..., slice(row, row + 2), slice(col, col + 2))
            assert same_bits(whole[here], transform.encrypt(image[here])), f"block at {row}, {col}"


def check_the_key_decides(entry: Entry) -> None:
    """One key gives one transform, other keys and other block sizes give others; no random numbers are drawn."""
    image = _uniform_image(1, 3, 12, 12)
    with quiet_random():
        first = _bound(entry, 2, 3, "a").encrypt(image)
    assert same_bits(first, _bound(entry, 2, 3, "a").encrypt(image)), "the same key gave another transform"
    others = [_bound(entry, 2, 3, "b"), _bound(entry, 2, 3, "c"), _bound(entry, 4, 3, "a")]
    assert not any(torch.equal(first, other.encrypt(image)) for other in others), "another key, the same transform"
    assert not torch.equal(first, image), "the transform did nothing"


def check_gradient_reaches_the_image(entry: Entry) -> None:
    """Every value has a gradient: the transform's own where it is differentiable, else that of the identity."""
    method = made(entry, KeyedTransform)
    transform, image = _bound(entry, 2, 3), (0.2 + 0.6 * _uniform_image(1, 3, 4, 4)).double().requires_grad_()
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).double()
    (grad,) = torch.autograd.grad((weight * transform.encrypt(image)).sum(), image)
    assert bool(grad.isfinite().all()) and bool((grad != 0).all()), "a value has no gradient"
    if method.differentiable:
        assert torch.autograd.gradcheck(transform.encrypt, (image,)), "the gradient is not that of the transform"
    else:
        assert torch.equal(grad, weight), "the gradient does not pass straight through"


def check_nothing_is_in_the_state(entry: Entry) -> None:
    """No tensor that follows from the key is in the state, which weights files and checkpoints are made of."""
    assert not _bound(entry, 2, 3).state_dict() and not list(_bound(entry, 2, 3).parameters())


def check_bad_sizes_are_refused(entry: Entry) -> None:
    """Blocks below 1 pixel, images of other bands, and sides that are no multiples of the block are refused."""
    for block in (0, -1, 65):
        _assert_refused(UsageError, partial(build, entry.kind, entry.name, {"block": block}))
    transform = _bound(entry, 2, 3)
    for bands, height, width in ((2, 4, 4), (3, 5, 4), (3, 4, 1)):
        _assert_refused(DataError, partial(transform.encrypt, _uniform_image(1, bands, height, width)))


def _assert_refused(kind: type[Exception], refuse: Callable[[], object]) -> None:
    try:
        refuse()
    except kind:
        return
    raise AssertionError(f"{refuse} was taken")


def _bound(entry: Entry, block: int, bands: int, key: str = "contract") -> BlockTransform:
    method = build(entry.kind, entry.name, {**entry.smoke, "block": block})
    return cast(KeyedTransform, method)(public_key(key), bands)


def _every_value(block: int, bands: int) -> Tensor:
    """Return an image of 256 blocks in a row, so that every position holds every value once, and no two positions of a block the same."""
    positions = block * block * bands
    blocks = (torch.arange(256)[:, None] + 37 * torch.arange(positions)) % 256
    return blocks_to_image(blocks[None, None], block).to(torch.uint8)


def _uniform_image(count: int, bands: int, height: int, width: int) -> Tensor:
    return torch.rand(count, bands, height, width, generator=torch.Generator().manual_seed(3))


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
