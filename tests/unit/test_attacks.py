"""Attacks by hand: goals as text, what leaves the batch, what each pass is for, and bad input."""

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seawall import attacks, registry
from seawall.attacks.apgd import APGD
from seawall.attacks.ascent import Adam, Momentum
from seawall.attacks.cost import count_passes
from seawall.attacks.fgsm import BIM, FGSM
from seawall.attacks.fischer import IFGSM, Fischer, grey_steps
from seawall.attacks.losses import JensenShannon, MaskedCrossEntropy, TsallisCrossEntropy
from seawall.attacks.pgd import PGD
from seawall.attacks.square import Random
from seawall.attacks.target import Hide, LeastLikely, Towards, Untargeted, parse_goal
from seawall.errors import DataError, ModelError, UsageError
from seawall.registry import Entry, build, entries
from seawall.rng import Keys
from seawall.testing.contract import checks
from seawall.testing.fixtures import ground_batch, linear_model, uneven_model
from seawall.threat.model import ThreatModel
from seawall.types import Batch

EPS = ThreatModel("linf", 0.03, low=0.0)


def run(attack: object, model: object = None, batch: Batch | None = None, threat: ThreatModel = EPS) -> Tensor:
    batch = ground_batch() if batch is None else batch
    return attack(linear_model() if model is None else model, batch, threat, Keys(0, batch.chips))  # type: ignore[no-any-return,operator]


@pytest.mark.parametrize(
    "goal",
    [Untargeted(), Untargeted("prediction"), Towards("land"), Hide("open water"), LeastLikely(), LeastLikely(True)],
)
def test_goals_are_text_in_recipes(goal: object) -> None:
    assert parse_goal(str(goal)) == goal
    assert build("attack", "pgd", {"goal": str(goal)}) == PGD(goal=goal)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["hide", "hidden water", "towards ", "least likely", "", 3])
def test_text_that_is_no_goal(text: object) -> None:
    with pytest.raises(UsageError, match="goal"):
        build("attack", "pgd", {"goal": text})  # type: ignore[dict-item]


def test_losses_are_names_in_recipes() -> None:
    assert build("attack", "apgd", {"loss": "masked-ce", "steps": 10}) == replace(
        APGD(steps=10), loss=MaskedCrossEntropy()
    )
    with pytest.raises(UsageError, match="did you mean 'masked-ce'"):
        build("attack", "apgd", {"loss": "maskedce"})


def test_targets_are_reached_on_a_linear_model() -> None:
    model, batch, wide = linear_model(classes=3), ground_batch(classes=3), ThreatModel("linf", 1.0)
    for goal, klass in ((Towards("land"), 0), (Towards("cloud"), 2)):
        adv = run(PGD(goal=goal, steps=60, step=0.04), model, batch, wide)
        assert bool((model(adv).argmax(1) == klass)[batch.valid].all())


def test_least_likely_follows_or_stays() -> None:
    model, batch, wide = linear_model(classes=3), ground_batch(classes=3), ThreatModel("linf", 1.0)
    least = model(batch.image).argmin(1)
    adv = run(BIM(goal=LeastLikely(), steps=20), model, batch, wide)
    assert ((model(adv).argmax(1) == least)[batch.valid]).float().mean() > 0.9
    moving = run(BIM(goal=LeastLikely(moving=True), steps=20), model, batch, wide)
    assert not torch.equal(moving, adv)
    assert (model(moving).argmax(1) != batch.label)[batch.valid].float().mean() > 0.3


def test_own_prediction_as_truth_reads_no_label() -> None:
    batch = ground_batch()
    other = replace(batch, label=torch.where(batch.valid, 1 - batch.label.clamp(0, 1), batch.label))
    attack = BIM(goal=Untargeted("prediction"), steps=3)
    assert torch.equal(run(attack, batch=batch), run(attack, batch=other))


def test_passes_are_one_forward_and_one_backward_per_step() -> None:
    model, batch = uneven_model(), ground_batch()
    narrow = ThreatModel("linf", 1e-4)
    for attack, forward, backward in (
        (FGSM(), 3, 3),
        (BIM(steps=5, keep="last"), 15, 15),
        (BIM(steps=5), 18, 15),
        (PGD(steps=5, restarts=2), 36, 30),
        (APGD(steps=10), 39, 30),
        (Fischer("water", level=4e-5), 3 + 12, 12),
        (Random(), 0, 0),
    ):
        with count_passes(model) as passes:
            run(attack, model, batch, narrow)
        assert (passes.forward, passes.backward) == (forward, backward), attack


def test_broken_chips_leave_the_batch() -> None:
    model, batch, wide = linear_model(), ground_batch(), ThreatModel("linf", 1.0)
    with count_passes(model) as passes:
        adv = run(PGD(steps=50, restarts=3), model, batch, wide)
    assert bool((model(adv).argmax(1) != batch.label)[batch.valid].all())
    assert passes.forward < 3 * 12
    easy = replace(batch, valid=batch.valid & torch.tensor([True, False, False])[:, None, None])
    with count_passes(model) as passes:
        adv = run(BIM(steps=4), model, easy)
    assert passes.forward == 5  # chips with nothing valid never enter it
    assert torch.equal(adv[1:], batch.image[1:])


def test_more_starts_never_hurt_the_adversary() -> None:
    model, batch = uneven_model(), ground_batch(size=20)
    model.eval()

    def wrong(adv: Tensor) -> Tensor:
        return ((model(adv).argmax(1) != batch.label) & batch.valid).flatten(1).sum(1)

    few, many = (wrong(run(PGD(steps=4, restarts=r), model, batch)) for r in (1, 4))
    assert bool((many >= few).all())
    assert bool((few >= wrong(batch.image)).all())


def test_best_is_never_worse_than_last() -> None:
    model, batch = uneven_model().eval(), ground_batch(size=20)
    for threat in (EPS, ThreatModel("l2", 0.5)):
        best, last = (
            ((model(run(BIM(steps=12, step=1.0, keep=k), model, batch, threat)).argmax(1) != batch.label) & batch.valid)
            for k in ("best", "last")
        )
        assert bool((best.flatten(1).sum(1) >= last.flatten(1).sum(1)).all())


def test_grey_steps() -> None:
    assert [grey_steps(ThreatModel("linf", eps / 255), 1 / 255) for eps in (0.25, 1, 4, 8, 10, 16, 32)] == [
        1,
        2,
        5,
        10,
        13,
        20,
        36,
    ]


def test_fischer_whole_restricted_and_inside() -> None:
    model, batch = linear_model(classes=3), ground_batch(classes=3, size=20)
    threat = ThreatModel("linf", 0.05)
    prediction = model(batch.image).argmax(1)
    hidden = prediction == 1
    noise = {
        kind: run(Fischer("water", noise=kind), model, batch, threat) - batch.image
        for kind in ("whole", "restricted", "inside")
    }  # type: ignore[arg-type]
    assert (noise["whole"] != 0).any(1)[~hidden & batch.valid].any()
    for kind in ("restricted", "inside"):
        assert not noise[kind][~hidden[:, None].expand_as(batch.image)].any(), kind
    # pixels are independent in this model, so that masking after equals masking in the loop
    assert torch.allclose(noise["restricted"], noise["inside"], atol=1e-6)
    whole = model(batch.image + noise["whole"]).argmax(1)
    assert (whole != 1)[hidden & batch.valid].float().mean() > 0.2
    assert (whole == prediction)[~hidden & batch.valid].float().mean() > 0.9


def test_fischer_every_pixel_with_a_gradient_reaches_min_of_steps_and_eps() -> None:
    model, batch = linear_model(), ground_batch()
    water = (model(batch.image).argmax(1) == 1) & batch.valid
    for eps in (1.0, 8.0):
        threat = ThreatModel("linf", eps / 255)
        noise = (run(Fischer("water"), model, batch, threat) - batch.image).abs().amax(1)
        assert torch.allclose(noise[water], torch.full_like(noise[water], eps / 255), atol=1e-6)


def test_fischer_chip_without_the_class_comes_back_clean() -> None:
    model, batch = linear_model(), ground_batch()
    model.bias.data[1] = -100.0
    assert torch.equal(run(Fischer("water"), model, batch), batch.image)


class Blind(nn.Module):
    """Predicts without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear_model()
        self.spec = self.inner.spec

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image).detach()


GRADIENT = [entry.name for entry in entries("attack") if "black-box" not in entry.traits]


def cheap(name: str) -> object:
    return next(build("attack", name, dict(entry.smoke)) for entry in entries("attack") if entry.name == name)


@pytest.mark.parametrize("name", GRADIENT)
def test_model_without_gradients_is_a_clear_error(name: str) -> None:
    with pytest.raises(ModelError, match="black-box attack"):
        run(cheap(name), Blind())


@pytest.mark.parametrize("name", [entry.name for entry in entries("attack")])
def test_bad_input_is_a_clear_error(name: str) -> None:
    attack, batch = cheap(name), ground_batch()
    with pytest.raises(UsageError, match="the model's unit"):
        run(attack, threat=ThreatModel("linf", 0.5, unit="sigma0_db"))
    with pytest.raises(DataError, match="expected 2 bands"):
        run(attack, batch=ground_batch(bands=3))
    for label in (2, 255, -1):
        with pytest.raises(DataError, match="expected labels from 0 to 1"):
            run(attack, batch=replace(batch, label=torch.where(batch.valid, label, 0)))


@pytest.mark.parametrize("name", ["pgd", "apgd", "segpgd", "fischer"])
def test_a_class_that_the_model_lacks(name: str) -> None:
    attack = Fischer("ice") if name == "fischer" else build("attack", name, {"steps": 10, "goal": "hide ice"})
    with pytest.raises(UsageError, match="expected one of land, water, got 'ice'"):
        run(attack)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": -3}])
@pytest.mark.parametrize("name", [e.name for e in entries("attack") if "steps" in e.make.__dataclass_fields__])
def test_no_steps_is_a_clear_error(name: str, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected steps >= 1"):
        build("attack", name, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PGD(step=0.0), "step > 0"),
        (lambda: PGD(restarts=0), "restarts >= 1"),
        (lambda: PGD(restarts=2, random_start=False), "one restart"),
        (lambda: PGD(restarts=2, keep="last"), "keep = 'best'"),
        (lambda: APGD(steps=2), "take more steps"),
        (lambda: APGD(radii=(2.0, 1.5)), "end at 1"),
        (lambda: APGD(radii=(2.0, 1.0), shares=(0.5, 0.6)), "sum to 1"),
        (lambda: IFGSM(level=0.0), "level > 0"),
        (lambda: Fischer("water", level=float("inf")), "level > 0"),
    ],
)
def test_settings_that_mean_nothing(make: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()  # type: ignore[operator]


def test_wrong_logits_are_a_clear_error() -> None:
    class Small(nn.Module):
        spec = linear_model().spec

        def forward(self, image: Tensor) -> Tensor:
            return image[:, :, ::2, ::2]

    with pytest.raises(ModelError, match="expected logits of shape"):
        run(FGSM(), Small())


def test_a_model_whose_gradient_is_not_finite_gives_a_finite_image() -> None:
    class Rough(nn.Module):
        spec = linear_model().spec

        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([image[:, :1].clamp_min(0).sqrt(), image[:, 1:]], 1)

    for threat in (EPS, ThreatModel("l2", 0.3)):
        assert bool(run(PGD(steps=3), Rough(), threat=threat).isfinite().all())


DROPPED = """
from dataclasses import dataclass
from seawall.registry import register

@register("attack", "dropped", traits=("weak", "black-box"))
@dataclass(frozen=True)
class Dropped:
    \"\"\"Brighten everything as far as the threat allows.\"\"\"

    share: float = 1.0

    def __call__(self, model, batch, threat, keys):
        return threat.project(batch.image + self.share * threat.radius, batch.image, batch.image_seen)
"""


def test_one_file_adds_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropped.py").write_text(DROPPED)
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_loaded", set())
    entry = registry.find("attack", "dropped")
    for check in checks("attack"):
        check(entry)
    sys.modules.pop("seawall.attacks.dropped")


def test_a_careless_attack_fails_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropped.py").write_text(DROPPED.replace("threat.project(", "(lambda adv, x, seen: adv)("))
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_loaded", set())
    entry = registry.find("attack", "dropped")
    failed = set()
    for check in checks("attack"):
        try:
            check(entry)
        except AssertionError:
            failed.add(check.__name__)
    sys.modules.pop("seawall.attacks.dropped")
    assert {"check_stays_in_the_threat_set", "check_unseen_pixels_never_touched"} <= failed


def test_every_restart_starts_elsewhere_and_on_both_sides() -> None:
    class Sure(nn.Module):
        """Nothing ever falls, so no restart is spared; the images that it sees are kept."""

        spec = linear_model().spec

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, image: Tensor) -> Tensor:
            self.seen.append(image.detach().clone())
            return torch.stack([image.sum(1) + 100, -image.sum(1)], 1)

    batch = ground_batch(images=1, size=32)
    batch = replace(batch, label=torch.zeros_like(batch.label))
    model, threat = Sure(), ThreatModel("linf", 0.01)
    PGD(steps=1, restarts=3)(model, batch, threat, Keys(0, batch.chips))
    starts = [model.seen[i] for i in (0, 2, 4)]
    assert len(model.seen) == 6
    for i, one in enumerate(starts):
        moved = (one - batch.image)[batch.seen[:, None].expand_as(one)]
        assert abs(float((moved < 0).float().mean()) - 0.5) < 0.05, "the start is uniform in the box, not in one half"
        assert float(moved.min()) < -0.009 and float(moved.max()) > 0.009
        assert all(not torch.equal(one, other) for other in starts[:i])


def test_momentum_is_normalized_image_by_image() -> None:
    x = torch.zeros(2, 1, 1, 1)
    ball = ThreatModel("linf", 1.0).around(x, torch.ones(2, 1, 1, dtype=torch.bool))
    rule, alone = Momentum(0.1, 0.9), Momentum(0.1, 0.9)
    own = ball.select(torch.tensor([0]))
    adv, one = x, x[:1]
    for grad in ((1.0, 1e-3), (-1.0, 1e3)):  # the other image's gradients grow a million times
        both = torch.tensor(grad).view(2, 1, 1, 1)
        adv, one = rule.update(ball, adv, both), alone.update(own, one, both[:1])
    # 0.9 * (1 / 1) - 1 / 1 is negative: up by 0.1, then down by 0.1
    assert float(one) == pytest.approx(0.0, abs=1e-7) and torch.equal(adv[:1], one)


def test_projected_adam_is_torch_s_amsgrad() -> None:
    x = torch.zeros(1, 1, 1, 3)
    ball = ThreatModel("linf", 100.0).around(x, torch.ones(1, 1, 3, dtype=torch.bool))
    rule = Adam(0.01, betas=(0.9, 0.5))
    free = torch.nn.Parameter(x.clone())
    oracle = torch.optim.Adam([free], lr=1.0, betas=(0.9, 0.5), eps=1e-8, amsgrad=True, maximize=True)
    adv = x
    for scale in (1.0, 10.0, 0.1, 0.1, -0.3):  # after a large gradient plain Adam would speed up again
        grad = scale * torch.tensor([1.0, -2.0, 0.5]).view_as(x)
        adv = rule.update(ball, adv, grad)
        free.grad = grad.clone()
        oracle.step()
    assert torch.allclose(adv, free.detach(), atol=1e-5), (adv, free)


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda: PGD(loss="js"), PGD(loss=JensenShannon())),  # type: ignore[arg-type]
        (lambda: PGD(goal="hide water"), PGD(goal=Hide("water"))),  # type: ignore[arg-type]
        (lambda: APGD(loss="masked-ce", steps=20), build("attack", "apgd", {"loss": "masked-ce", "steps": 20})),  # type: ignore[arg-type]
        (lambda: PGD(steps=3.0), PGD(steps=3)),  # type: ignore[arg-type]
        (lambda: APGD(radii=[2, 1.0], shares=[0.5, 0.5]), APGD(radii=(2.0, 1.0), shares=(0.5, 0.5))),  # type: ignore[arg-type]
        (lambda: replace(PGD(), loss="js"), PGD(loss=JensenShannon())),
    ],
)
def test_python_takes_the_words_of_a_recipe(make: Callable[[], object], same: object) -> None:
    made = make()
    assert made == same and repr(made) == repr(same)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PGD(steps=2.5), r"pgd\.steps: expected .*got 2\.5"),  # type: ignore[arg-type]
        (lambda: PGD(loss="jss"), "attack-loss: unknown name 'jss'; did you mean 'js'"),  # type: ignore[arg-type]
        (lambda: PGD(goal="hide"), r"hide\.klass: expected a value"),  # type: ignore[arg-type]
        (lambda: PGD(goal=Hide), r"pgd\.goal: expected"),  # type: ignore[arg-type]
        (lambda: BIM(loss=3), r"bim\.loss: expected"),  # type: ignore[arg-type]
        (lambda: PGD(keep="first"), r"pgd\.keep: expected"),  # type: ignore[arg-type]
        (lambda: PGD(random_start="perhaps"), r"pgd\.random_start: expected"),  # type: ignore[arg-type]
        (lambda: PGD(steps=-1), "pgd: expected steps >= 1"),
    ],
)
def test_python_refuses_what_a_recipe_refuses(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize("entry", list(entries("attack")), ids=lambda entry: entry.name)
def test_no_attack_is_made_of_settings_that_its_fields_do_not_hold(entry: Entry) -> None:
    settings = dict(entry.smoke)
    names = ("steps", "level", "attack_settings", "goal")
    name = next((f.name for f in fields(entry.make) if f.name in names), None)
    if name is None:
        assert not fields(entry.make), "an attack without settings"
        return
    with pytest.raises(UsageError, match=f"{entry.name}.*{name}: expected"):
        entry.make(**(settings | {name: object()}))


def test_a_preset_is_its_method_with_other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.preset("attack", "pgd-js", PGD(loss="js", steps=4), paper="none", summary="PGD on JS.", differs="nothing", smoke={"steps": 3})  # type: ignore[arg-type]  # fmt: skip
    entry = registry.find("attack", "pgd-js")
    assert entry.summary == "PGD on JS." and entry.smoke == {"steps": 3} and not entry.traits
    assert "Differs: nothing." in str(entry.make.__doc__)
    made = build("attack", "pgd-js", {"restarts": 2})
    assert isinstance(made, PGD) and (made.steps, made.restarts, made.loss) == (4, 2, JensenShannon())
    assert torch.equal(run(build("attack", "pgd-js")), run(PGD(loss=JensenShannon(), steps=4)))
    assert replace(made, steps=5) == build("attack", "pgd-js", {"restarts": 2, "steps": 5})
    with pytest.raises(UsageError, match="pgd-js: expected steps >= 1"):
        entry.make(steps=0)
    with pytest.raises(UsageError, match="taken"):
        registry.preset("attack", "bim", PGD(), paper="", summary="PGD.")


def test_a_loss_takes_its_settings_in_a_table() -> None:
    made = build("attack", "tsallis", {"loss": {"name": "tsallis", "first": -1, "last": 0.5}})
    assert isinstance(made, APGD) and made.loss == TsallisCrossEntropy(-1.0, 0.5)
    with pytest.raises(UsageError, match="unknown setting 'frist'; did you mean 'first'"):
        build("attack", "tsallis", {"loss": {"name": "tsallis", "frist": -1}})
    with pytest.raises(UsageError, match=r"loss tsallis\.first: expected .*got 'low'"):
        build("attack", "tsallis", {"loss": {"name": "tsallis", "first": "low"}})
    with pytest.raises(UsageError, match=r"pgd\.loss: expected"):
        build("attack", "pgd", {"loss": {"first": 1.0}})
