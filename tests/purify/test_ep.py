"""EP takes the entropy of what comes into channels on the poisoned training data, and prunes where it is least."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import nn

from tests.planted import network, pictures, planted, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.purify import EP
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.ep import entropies, largest_values
from unbackdoor.testing.samples import hooks_on, same_state, state_of


@pytest.mark.parametrize("width", [0.1, 0.37])
def test_entropies_are_those_of_a_histogram_a_channel(width: float) -> None:
    values = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1], [9], [0.1], [3], [2]])
    values[3] = values[3].exp()
    standard = ((values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)).double().numpy()
    edges = standard.min() + width * np.arange(int((standard.max() - standard.min()) / width) + 2)
    expected = [scipy_entropy(np.histogram(row, edges)[0]) for row in standard]
    # One value in 400 on the other side of an edge, for rounding, moves the entropy by less.
    np.testing.assert_allclose(entropies(values, width).numpy(), expected, atol=0.02)


def test_a_mixture_of_two_far_apart_has_less_entropy_than_a_single_cluster() -> None:
    """The paper's observation, and the reason why the method works."""
    single = torch.randn(1, 2000, generator=torch.Generator().manual_seed(1))
    mixture = torch.where(torch.arange(2000) < 200, single + 20, single)
    found = entropies(torch.cat([single, mixture]), 0.1)
    assert found[1] < found[0] - 0.5


def test_a_channel_that_does_not_vary_says_nothing_about_the_others() -> None:
    values = torch.randn(3, 100, generator=torch.Generator().manual_seed(2))
    alone = entropies(values, 0.1)
    beside = entropies(torch.cat([values, torch.full((1, 100), 7.3)]), 0.1)
    assert torch.equal(beside[:3], alone)
    assert float(beside[3]) == pytest.approx(float(alone.mean()))
    assert entropies(torch.full((2, 100), 1.0), 0.1).tolist() == [0, 0]


def test_largest_values_are_those_of_each_image_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.purify.ep.BATCH", 7)
    model, images = planted(1).suspect, pictures(20, 5).images
    layers = list(norm_layers(model, "Test").values())
    found = largest_values(model, layers, images, runtime())
    body = model.body
    assert isinstance(body, nn.Sequential)
    with torch.no_grad():
        expected = body[:3](model.normalize(images.float() / 255))
        second = body[3](expected).amax((2, 3)).T
    torch.testing.assert_close(found[layers[1]], second, rtol=1e-4, atol=1e-5)
    assert hooks_on(model) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_planted_backdoor_is_pruned_and_a_clean_twin_keeps_its_accuracy(seed: int) -> None:
    models = planted(seed)
    data = DefenderData(clean=models.data.clean, untrusted=models.fitted.train)
    unpoisoned = DefenderData(clean=models.data.clean, untrusted=pictures(800, 10 * seed))
    repaired, history = EP().purify(models.suspect, data, runtime(seed))
    twin, _ = EP().purify(models.twin, unpoisoned, runtime(seed))
    before, after, unharmed = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, twin)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.2
    assert after.acc.value > 0.95
    assert unharmed.acc.value > 0.95
    (sweep,) = history.sweeps
    assert sweep.chosen in sweep.values


def test_without_clean_samples_the_authors_u_is_used() -> None:
    models = planted(1)
    given = DefenderData(untrusted=models.fitted.train)
    repaired, history = EP().purify(models.suspect, given, runtime())
    both = DefenderData(clean=models.data.clean, untrusted=models.fitted.train)
    fixed, _ = EP(u=3.0, choose=False).purify(models.suspect, both, runtime())
    assert same_state(state_of(repaired), state_of(fixed))
    assert history.sweeps == ()


def test_biases_stay() -> None:
    models = planted(1)
    repaired, _ = EP(u=0.0, choose=False).purify(models.suspect, DefenderData(untrusted=models.fitted.train), runtime())
    before, after = state_of(models.suspect), state_of(repaired)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"body.1.weight", "body.4.weight", "body.7.weight"}


def test_missing_training_data_are_said() -> None:
    models = planted(1)
    with pytest.raises(InputError, match=r"^EP needs .* --untrusted"):
        EP().purify(models.suspect, models.data, runtime())
    one = models.fitted.train.subset(torch.tensor([0]))
    with pytest.raises(InputError, match="2 images or more"):
        EP().purify(network(0), DefenderData(untrusted=one), runtime())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"u": -1.0}, "u must"), ({"images": 1}, "2 images"), ({"width": 0.0}, "bars"), ({"allowance": 2.0}, "allowance")],
)
def test_bad_options_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        EP(**options)  # type: ignore[arg-type]
