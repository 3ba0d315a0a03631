"""FCT: its loss and its distance against slow plain versions, what it guards against, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.planted import pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.sift.spread import auroc
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift import FCT
from unbackdoor.sift import fct as module
from unbackdoor.sift.fct import PushApart, closeness, movement, shifts, spread, turned
from unbackdoor.sift.lots import lots
from unbackdoor.sift.observed import Observed
from unbackdoor.testing.samples import same_state, state_of


def test_closeness_is_the_mean_over_the_whole_matrix_with_its_diagonal_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 6, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    labels[labels == 3] = 1  # a class that is absent
    means = {c: features[labels == c].mean(0) for c in labels.unique().tolist()}
    total = sum(float(a @ b / (a.norm() * b.norm())) for i, a in means.items() for j, b in means.items() if i != j)
    assert float(closeness(features, labels, 7)) == pytest.approx(total / 49, rel=1e-4)


def test_closeness_pulls_on_features_of_every_row() -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)
    labels = torch.arange(12) % 3
    assert torch.autograd.gradcheck(lambda x: closeness(x, labels, 3), (features,))


def test_movement_is_the_mean_squared_difference_over_the_features() -> None:
    before, after = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 1.0], [1.0, 0.0]])
    assert movement(before, after).tolist() == pytest.approx([5.0, 0.0])


def test_the_spread_does_not_depend_on_the_scale_and_is_nothing_where_nothing_moves() -> None:
    scores = torch.arange(101.0)
    assert spread(scores) == pytest.approx((95 - 50) / 50)
    assert spread(1e-3 * scores) == pytest.approx(spread(scores))
    assert spread(torch.zeros(10)) == 0.0


def test_nothing_moves_under_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "turned", lambda images, chance: images)
    seen = Observed(planted(0).suspect, pictures(60, 1), None, runtime())
    scores, counts = FCT(draws=2).measure(seen, seen.model)
    assert scores.tolist() == [0.0] * 60
    assert counts == {"rows_without_features": 0}


@pytest.mark.parametrize(
    ("chance", "wanted"),
    [
        ((0.5, 0.5, 0.5), lambda images: images),
        ((0.75, 0.5, 0.5), lambda images: images.rot90(1, (2, 3))),
        ((0.0, 0.5, 0.5), lambda images: images.flip(2, 3)),
        ((0.5, 0.0, 0.5), lambda images: torch.cat([torch.zeros(1, 3, 2, 10), images[:, :, :-2]], 2)),
        ((0.5, 0.999, 0.5), lambda images: torch.cat([images[:, :, 2:], torch.zeros(1, 3, 2, 10)], 2)),
        ((0.5, 0.5, 0.7), lambda images: torch.cat([images[:, :, :, 1:], torch.zeros(1, 3, 10, 1)], 3)),
    ],
)
def test_the_transform_turns_and_shifts_as_was_drawn(
    chance: tuple[float, float, float], wanted: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    images = torch.rand(1, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    moved = turned(images, torch.tensor([chance], dtype=torch.float64))
    torch.testing.assert_close(moved.contiguous(), wanted(images).contiguous(), atol=1e-4, rtol=0)


def test_any_shift_up_to_a_fifth_of_the_side_is_as_likely_as_another() -> None:
    assert [shifts(side) for side in (4, 5, 10, 32)] == [1, 3, 5, 13]
    chance = lots(pictures(2000, 1).images, runtime(), "shifts", 1)[:, 0]
    counts = torch.bincount((chance * shifts(10)).long(), minlength=5)
    assert len(counts) == 5
    assert int(counts.min()) > 340


def test_a_score_does_not_depend_on_the_company_that_a_row_is_in() -> None:
    model, rows = planted(0).suspect, planted(0).fitted.train
    whole = Observed(model, rows, None, runtime())
    some = torch.arange(790, 3, -7)
    part = whole.over(rows.subset(some))
    scores, _ = FCT(draws=2).measure(whole, whole.model)
    # Rounding, which differs with the size of a batch, is all that is left of the company.
    torch.testing.assert_close(FCT(draws=2).measure(part, part.model)[0], scores[some], atol=0, rtol=1e-4)


def test_more_draws_rank_more_steadily() -> None:
    steady = {}
    for draws in (1, 8):
        ranks = []
        for seed in (1, 2):
            seen = Observed(planted(0).suspect, planted(0).fitted.train, None, runtime(seed))
            ranks.append(FCT(draws=draws).measure(seen, seen.model)[0].argsort().argsort().double())
        steady[draws] = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    assert steady[8] > steady[1] + 0.05


def features(model: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = nn.Sequential(model.normalize, model.body[:-1])(images.float() / 255)
    return found


def test_fine_tuning_pushes_a_copy_apart_and_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    models = planted(0)
    before = state_of(models.suspect)
    seen = Observed(models.suspect, models.fitted.train, None, runtime())
    # As if each epoch spread the scores more than the last.
    spreads = iter(range(10))
    monkeypatch.setattr(module, "spread", lambda scores: float(next(spreads)))
    pushed, measured = FCT(epochs=2).push_apart(seen)
    assert measured == [0.0, 1.0, 2.0]
    labels = seen.rows.labels
    after = closeness(features(pushed, seen.rows.images), labels, 8)
    assert float(after) < float(closeness(seen.features, labels, 8)) - 0.02
    assert same_state(before, state_of(models.suspect))


def test_the_weights_with_the_largest_spread_are_kept_and_fine_tuning_ends_two_epochs_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = planted(0)
    seen = Observed(models.suspect, models.fitted.train, None, runtime())
    spreads = iter([1.0, 3.0, 2.0, 2.0, 9.0])
    monkeypatch.setattr(module, "spread", lambda scores: next(spreads))
    kept, measured = FCT(epochs=8).push_apart(seen)
    assert measured == [1.0, 3.0, 2.0, 2.0]
    spreads = iter([1.0, 3.0])
    once, _ = FCT(epochs=1).push_apart(seen)
    assert same_state(state_of(kept), state_of(once))


def test_features_that_collapse_are_not_kept() -> None:
    """Weight decay so strong that every feature goes to 0, as users of the published code saw."""
    models = planted(0)
    seen = Observed(models.suspect, models.fitted.train, None, runtime())
    collapsed, spreads = FCT(epochs=3, learning_rate=5.0).push_apart(seen)
    assert max(spreads) >= spreads[0] > 0
    assert float(features(collapsed, seen.rows.images).norm(dim=1).median()) > 0


def test_the_split_has_the_shares_asked_for_and_reports_rows_without_features() -> None:
    models = planted(0)
    data = DefenderData(untrusted=models.fitted.train)
    found = FCT(epochs=1, draws=2).score(data, runtime(), models.suspect)
    assert int(found.clean.sum()) == 160
    assert int(found.poisoned.sum()) == 40
    assert float(found.scores[found.clean].max()) <= float(found.scores[~found.clean].min())
    dead = nn.Sequential(*models.suspect.body[:-1], nn.Threshold(1e9, 0.0), models.suspect.body[-1])
    found = FCT(epochs=0, draws=1).score(data, runtime(), Network(dead, models.suspect.description).eval())
    assert found.evidence["rows_without_features"] == 800
    assert found.evidence["ties_at_the_clean_threshold"] == 800


def test_rows_with_a_patch_move_more_and_without_a_backdoor_they_hardly_do() -> None:
    models = planted(1)
    mask = models.fitted.kinds == 1
    data = DefenderData(untrusted=models.fitted.train)
    backdoored = auroc(FCT(epochs=1, draws=4).score(data, runtime(), models.suspect).scores, mask)
    twin = auroc(FCT(epochs=1, draws=4).score(data, runtime(), models.twin).scores, mask)
    assert backdoored > 0.75
    assert backdoored > twin + 0.1


def test_interrupted_fine_tuning_goes_on(tmp_path: Path) -> None:
    """To the same scores, the best epoch so far being kept with the weights."""
    models = planted(0)
    data = DefenderData(untrusted=models.fitted.train)
    sifter = FCT(epochs=3, draws=1)
    whole = sifter.score(data, runtime(), models.suspect)
    stopping = replace(runtime(), progress=StopsIn("FCT: pushing classes apart", 10))
    with pytest.raises(KeyboardInterrupt):
        sifter.score(data, stopping, models.suspect, tmp_path / "resume.pt")
    assert (tmp_path / "resume-fct.pt").exists()
    again = sifter.score(data, runtime(), models.suspect, tmp_path / "resume.pt")
    assert torch.equal(again.scores, whole.scores)
    assert again.evidence == whole.evidence


@pytest.mark.parametrize("options", [{"draws": 0}, {"epochs": -1}, {"clean_share": 0.0}, {"poisoned_share": 1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="FCT: "):
        FCT(**options)  # type: ignore[arg-type]


def test_an_epoch_in_which_more_rows_lie_still_is_not_kept_whatever_its_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the second, two rows in five do not move at all, so that a middle near 0 makes the spread huge."""
    model, probe = nn.Linear(2, 2), torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    hook = PushApart("", 2, probe)
    hook.model, hook.head, hook.runtime = model, model, runtime()
    steps = [torch.linspace(1, 2, 10), torch.tensor([0.0] * 4 + [1e-3] * 2 + [9.0] * 4), torch.linspace(1, 3, 10)]
    features = iter([one[:, None] for step in steps for one in (torch.zeros(10), step)])
    monkeypatch.setattr("unbackdoor.sift.fct.run_over", lambda *_, **__: (next(features), None))
    kept = []
    for number in range(3):
        with torch.no_grad():
            model.bias.fill_(number)
        hook._note()
        kept.append(float(hook.best["bias"][0]))
    assert kept == [0.0, 0.0, 2.0]
    assert hook.spreads[1] == 0.0
    assert hook.spreads[2] > hook.spreads[0] > 0
