"""NAD distils attention of feature maps from a fine-tuned copy, in one pass of each network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import CLASSES, network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.purify.test_ft import Nothing
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Network
from unbackdoor.purify import NAD
from unbackdoor.purify.nad import _Distillation, attention, attention_loss
from unbackdoor.testing.samples import hooks_on, same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime


def features(seed: int, channels: int = 5) -> Tensor:
    return torch.randn(3, channels, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_the_loss_equals_the_formula_in_numpy_for_maps_of_unequal_channels(power: float) -> None:
    ours, theirs = features(0), features(1, channels=7)
    maps = []
    for values in (ours, theirs):
        total = (np.abs(values.double().numpy()) ** power).sum(1)
        norms = np.array([np.sqrt((image**2).sum()) for image in total])
        maps.append(total / (norms[:, None, None] + 1e-6))
    np.testing.assert_allclose(attention(ours, power).numpy(), maps[0], rtol=1e-5)
    expected = ((maps[0] - maps[1]) ** 2).mean()
    assert float(attention_loss(ours, theirs, power)) == pytest.approx(expected, rel=1e-5)


def test_attention_does_not_depend_on_sign_or_scale() -> None:
    torch.testing.assert_close(attention(-3 * features(0), 2.0), attention(features(0), 2.0))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_dead_map_has_no_attention_and_finite_gradients(power: float) -> None:
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_loss(dead, features(0)[:2, :, :, :4], power)
    loss.backward()
    assert attention(dead, power).abs().max() == 0
    assert dead.grad is not None
    assert bool(dead.grad.isfinite().all())


def test_the_attention_of_one_pixel_is_always_one_which_is_why_pooled_maps_are_left_out() -> None:
    assert attention(torch.rand(4, 3, 1, 1) + 0.1, 2.0).flatten().tolist() == pytest.approx([1.0] * 4, abs=1e-3)


def scene(**options: Any) -> tuple[_Distillation, Network, Network, Batch]:
    """Return the hook of a student and another teacher, both, and a batch."""
    student, teacher = network(0), network(1)
    clean = pictures(16, 3)
    batch = Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(16))
    hook = _Distillation(NAD(**options), teacher, ["2", "5", "8"])
    hook.begin(student, Recipe(), runtime())
    return hook, student, teacher, batch


def test_loss_and_gradient_equal_a_plain_computation() -> None:
    hook, student, teacher, batch = scene(betas=(5.0, 0.0, 70.0))
    plain = copy.deepcopy(student).train()
    loss = hook.loss(student.train(), batch)

    def parts(model: Network) -> list[Tensor]:
        found, x = [], model.normalize(batch.images)
        for number, layer in enumerate(model.body.children()):
            x = layer(x)
            found += [x] if number in (2, 8) else []
        return [*found, x]

    early, late, logits = parts(plain)
    wanted_early, wanted_late, _ = parts(copy.deepcopy(teacher).eval())
    expected = F.cross_entropy(logits, batch.targets)
    for beta, pair in ((5.0, (early, wanted_early)), (70.0, (late, wanted_late))):
        totals = [maps.square().sum(1).flatten(1) for maps in pair]
        a, b = (total / (total.norm(dim=1, keepdim=True) + 1e-6) for total in totals)
        expected = expected + beta * ((a - b) ** 2).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(student.parameters(), plain.parameters()):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_each_network_runs_once_a_batch_and_the_teacher_stays_as_it_is() -> None:
    hook, student, teacher, batch = scene()
    counts = {"student": 0, "teacher": 0}

    def counted(name: str) -> Any:
        def count(*_: object) -> None:
            counts[name] += 1

        return count

    handles = [
        model.body[0].register_forward_hook(counted(name))  # type: ignore[index, operator]
        for name, model in (("student", student), ("teacher", teacher))
    ]
    before = state_of(teacher)
    hook.loss(student.train(), batch).backward()
    for handle in handles:
        handle.remove()
    assert counts == {"student": 1, "teacher": 1}
    assert int(student.get_buffer("body.1.num_batches_tracked")) == 1, "statistics move once a step"
    assert same_state(before, state_of(teacher))
    assert all(p.grad is None for p in teacher.parameters())
    assert hooks_on(student) == hooks_on(teacher) == 0


@pytest.mark.parametrize(
    ("maps", "betas", "expected"),
    [
        (["a", "b", "c", "d"], (1.0, 2.0, 3.0), {"b": 1.0, "c": 2.0, "d": 3.0}),
        (["a", "b"], (1.0, 2.0, 3.0), {"a": 2.0, "b": 3.0}),
        (["a"], (1.0, 2.0, 3.0), {"a": 3.0}),
        (["a", "b"], (9.0,), {"b": 9.0}),
    ],
)
def test_the_last_weights_belong_to_the_last_maps(
    maps: list[str], betas: tuple[float, ...], expected: dict[str, float]
) -> None:
    assert _Distillation(NAD(betas=betas), network(0), maps).betas == expected


def test_with_weights_of_zero_the_student_is_fine_tuned_as_its_teacher_was() -> None:
    """Which also shows that the teacher is fine-tuned, from the suspect, with the same options."""
    data, suspect = DefenderData(clean=pictures(24, 3)), planted(1).suspect
    # In whole batches without crops, as each stage has draws of its own.
    method = NAD(teacher_epochs=3, epochs=3, batch_size=24, betas=(0.0,), augmentation="none")
    teachers: list[nn.Module] = []

    original = _Distillation.begin

    def begin(self: _Distillation, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        teachers.append(self.teacher)
        original(self, model, recipe, runtime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Distillation, "begin", begin)
        student, history = method.purify(suspect, data, runtime())
    assert len(teachers) == 1
    assert not same_state(state_of(teachers[0]), state_of(suspect))
    ours, theirs = state_of(student), state_of(teachers[0])
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)
    assert not same_state(ours, state_of(suspect))
    assert history.epochs == 3


def test_defaults_are_those_of_the_benchmark() -> None:
    expected = NAD(
        teacher_epochs=10,
        epochs=10,
        batch_size=256,
        learning_rate=0.01,
        betas=(500.0, 1000.0, 1000.0),
        power=2.0,
        augmentation="crop-flip",
    )
    assert NAD() == expected


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_weakened_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = NAD(teacher_epochs=20, epochs=40, batch_size=16, augmentation="crop")
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.3
    assert after.acc.value > 0.95
    assert defense_effectiveness(before, nothing) == 0.5


def test_the_clean_twin_keeps_its_accuracy() -> None:
    models = planted(1)
    repaired, _ = NAD(batch_size=32, augmentation="crop").purify(models.twin, models.data, runtime())
    assert evaluate(repaired, models.test, runtime()).acc.value > 0.95


@pytest.mark.parametrize("where", ["NAD's teacher", "NAD"])
def test_an_interrupted_repair_goes_on_in_either_stage(where: str, tmp_path: Path) -> None:
    suspect, path, data = network(0), tmp_path / "resume.pt", DefenderData(clean=pictures(24, 3))
    method = NAD(teacher_epochs=3, epochs=3, batch_size=12)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    assert path.exists() == (where == "NAD")
    progress = StopsIn("nothing", 0)
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again, history = method.purify(suspect, data, going, resume=path)
    assert progress.totals == ([2, 6] if where == "NAD's teacher" else [0, 2]), "finished epochs are not done again"
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_a_network_without_feature_maps_is_refused_before_any_training(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, CLASSES))
    flat = Network(body, network(0).description)
    with pytest.raises(InputError, match="NAD compares feature maps, and this network has none"):
        NAD().purify(flat, DefenderData(clean=pictures(24, 3)), runtime(), resume=tmp_path / "resume.pt")
    assert list(tmp_path.iterdir()) == []


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"NAD needs clean samples.*--clean"):
        NAD().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize(
    "options",
    [{"teacher_epochs": 0}, {"betas": ()}, {"betas": (1.0, -1.0)}, {"betas": (float("nan"),)}, {"power": 0.5}],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^NAD: .* found "):
        NAD(**options)
