"""Hide's target against brute force, and goals as text."""

from dataclasses import make_dataclass

import pytest
import torch

from seawall import registry
from seawall.attacks.target import Hide, nearest_other, parse_goal
from seawall.testing.fixtures import linear_model
from seawall.types import Batch


def test_nearest_other_against_brute_force() -> None:
    draw = torch.Generator().manual_seed(3)
    for seed in range(5):
        prediction = torch.randint(0, 3, (2, 12, 12), generator=draw)
        prediction[0, 2:10, 2:10] = 2
        seen = torch.rand(2, 12, 12, generator=draw) > 0.2
        filled = nearest_other(prediction, seen, 2)
        for image in range(2):
            source = ((prediction[image] != 2) & seen[image]).nonzero().float()
            for row, col in (prediction[image] == 2).nonzero().tolist():
                away = (source - torch.tensor([row, col])).norm(dim=1)
                klass = int(filled[image, row, col])
                mine = prediction[image][tuple(source.long().T)] == klass
                # among equally near pixels any is right: compare distances
                assert float(away[mine].min()) == float(away.min()), (seed, row, col)


def test_hide_leaves_other_pixels_and_falls_back_to_the_runner_up() -> None:
    spec = linear_model(classes=3).spec
    logits = torch.zeros(2, 3, 1, 3)
    logits[:, 1] = 5.0  # all water
    logits[:, 2, 0, 0] = 1.0  # whose runner-up is cloud at the left
    logits[1, 0, 0, 2] = 9.0  # but the second image has land at the right
    label = torch.zeros(2, 1, 3, dtype=torch.long)
    batch = Batch.of(torch.zeros(2, 2, 1, 3), label)
    assert Hide("water").class_map(spec, batch, logits).tolist() == [[[2, 0, 0]], [[0, 0, 0]]]
    two = Hide("water").class_map(linear_model().spec, batch, logits[:, :2])
    assert not two.any()  # with two classes the target is all land
    dark = Batch.of(batch.image, label, seen=torch.tensor([[[True, True, False]]] * 2))
    assert Hide("water").class_map(spec, dark, logits)[1].tolist() == [[2, 0, 0]]  # an unseen pixel lends no class


def test_a_switch_is_known_whether_annotations_are_text_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for annotation in (bool, "bool"):
        made = make_dataclass(
            "Turned", [("klass", str), ("all", annotation, False)], frozen=True,
            namespace={
                "targeted": True, "moving": False, "needs_logits": False, "class_map": lambda self, spec, batch, logits: batch.label,
                "__module__": "seawall.attacks.target", "__doc__": "A goal.",
            },
        )  # fmt: skip
        registry._entries["goal", "turned"] = registry.Entry("goal", "turned", made)
        assert parse_goal("turned water all") == made("water", True)
        assert parse_goal("turned water") == made("water", False)
