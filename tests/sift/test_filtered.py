"""P-values are ranks among clean images, and what chance explains is what counting every case finds."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.planted import planted, runtime
from unbackdoor.errors import InputError
from unbackdoor.models import Description, Network
from unbackdoor.sift import ScaleUp, TeCo
from unbackdoor.sift.filtered import Filtered, chance_of, filter_images, standardised
from unbackdoor.sift.filtered import compared_with_clean as compared
from unbackdoor.training import Runtime


def compared_with_clean(scores: torch.Tensor, clean: torch.Tensor, rate: float, *tops: float) -> Filtered:
    return compared(scores, torch.zeros(len(scores), dtype=torch.long), clean, rate, torch.tensor(tops or (9.0,)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 6).map(float), min_size=19, max_size=40),
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=20),
    st.sampled_from([0.05, 0.1, 0.5]),
)
def test_p_values_are_ranks_among_the_clean_ones_ties_included(
    clean: list[float], scores: list[float], rate: float
) -> None:
    found = compared_with_clean(torch.tensor(scores), torch.tensor(clean), rate)
    plain = [(1 + sum(one >= score for one in clean)) / (1 + len(clean)) for score in scores]
    assert found.p_values.tolist() == pytest.approx(plain)
    assert found.triggered.tolist() == [p_value <= rate + 1e-12 for p_value in plain]


@pytest.mark.parametrize("levels", [0, 6])
def test_clean_images_are_called_triggered_no_more_often_than_once_in_a_hundred_times(levels: int) -> None:
    draws = torch.Generator().manual_seed(0)

    def some(count: int) -> torch.Tensor:
        drawn = torch.rand(count, generator=draws)
        return (levels * drawn).floor() if levels else drawn

    chances = torch.tensor([chance_of(some(50), some(39), 0.2) for _ in range(4000)])
    for level in (0.01, 0.05, 0.2):
        share = float((chances <= level).float().mean())
        assert share <= level + 3 * (level * (1 - level) / 4000) ** 0.5
    assert float((chances <= 0.2).float().mean()) > 0.1, "it is no refusal to say anything"


def test_chance_is_that_of_every_way_to_deal_out_the_scores() -> None:
    scores, clean = [3.0, 3.0, 1.0], [3.0, 2.0, 1.0, 0.0]
    dealt = list(itertools.combinations(scores + clean, 3))

    def chance(least: float) -> float:
        came = sum(score >= least for score in scores)
        return sum(sum(score >= least for score in one) >= came for one in dealt) / len(dealt)

    for share, least in ((0.43, 3.0), (0.6, 2.0), (0.1, 3.0)):
        found = chance_of(torch.tensor(scores), torch.tensor(clean), share)
        assert found == pytest.approx(chance(least)), "not even the highest score is as rare as the last share"
    assert chance_of(torch.zeros(5), torch.zeros(9), 0.2) == 1.0


def test_triggered_ones_are_more_than_chance_explains() -> None:
    draws = torch.Generator().manual_seed(1)
    scores = torch.randn(100, generator=draws)
    scores[:15] += 6
    found = compared_with_clean(scores, torch.randn(200, generator=draws), 0.05)
    assert bool(found.triggered[:15].all())
    assert found.verdict is True


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        compared_with_clean(torch.zeros(1), torch.zeros(50), rate)


def test_too_few_clean_images_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"18 clean images to compare with allow a share of false alarms of 0\.0526 or more"
    ):
        compared_with_clean(torch.zeros(1), torch.zeros(18), 0.05)
    assert compared_with_clean(torch.ones(1), torch.zeros(19), 0.05).triggered.tolist() == [True]


def test_where_too_many_clean_images_have_the_highest_score_nothing_can_be_told() -> None:
    clean = torch.tensor([0.0] * 90 + [1.0] * 10)
    blind, finer = (compared_with_clean(torch.ones(30), clean, rate, 1.0) for rate in (0.05, 0.2))
    assert (blind.verdict, int(blind.triggered.sum())) == (None, 0)
    assert (finer.verdict, int(finer.triggered.sum())) == (True, 30)
    # Where there are higher scores that none of them has, none is held, but all 30 are as few clean ones are.
    together = compared_with_clean(torch.ones(30), clean, 0.05, 1.5)
    assert (together.verdict, int(together.triggered.sum())) == (True, 0)
    assert compared_with_clean(torch.zeros(30), clean, 0.05, 1.5).verdict is False
    # Of one class there are, of the other there are not.
    half = compared_with_clean(torch.full((30,), 1.5), clean, 0.05, 1.0, 1.5)
    assert (half.blind.tolist(), half.verdict) == ([True, False], True)
    assert half.least.tolist() == pytest.approx([11 / 101, 1 / 101])


def test_standardised_scores_are_those_of_a_plain_loop_and_classes_without_images_are_as_all() -> None:
    draws = torch.Generator().manual_seed(2)
    clean, scores = torch.rand(40, generator=draws), torch.rand(12, generator=draws)
    known, answers = torch.randint(0, 3, (40,), generator=draws), torch.arange(12) % 4
    found = standardised(scores, answers, clean, known)
    overall = clean.double()
    for score, answer, value in zip(scores.double(), answers, found):
        same = overall[known == answer]
        mean = (same.sum() + overall.mean()) / (len(same) + 1)
        variance = ((same - mean).square().sum() + overall.var(correction=0)) / (len(same) + 1)
        assert float(value) == pytest.approx(float((score - mean) / variance.sqrt()))
        if answer == 3:
            assert float(value) == pytest.approx(float((score - overall.mean()) / overall.std(correction=0)))
    assert bool(standardised(torch.ones(1), torch.zeros(1).long(), torch.zeros(5), torch.zeros(5).long()) > 1e6)


class Bright(TeCo):
    """Scores by light; triggered images are no lighter than clean ones of the other class."""

    def inspect(self, model: Network, images: torch.Tensor, runtime: Runtime) -> torch.Tensor:
        return images.float().mean((1, 2, 3)).cpu()


class BrightForItsClass(Bright):
    standardised = True  # type: ignore[assignment]


class UpTo245(BrightForItsClass):
    highest = 245.0


def test_scores_that_differ_by_class_are_read_beside_those_of_the_same_answer() -> None:
    """Of two classes, one white, a dark image that is lighter than the dark ones stands out only beside these."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        body[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        body[1].bias.copy_(torch.tensor([2.0, -2.0]))
    model = Network(
        body,
        Description(
            architecture="none",
            arguments={},
            class_names=("dark", "white"),
            image_shape=(1, 2, 2),
            mean=(0.0,),
            std=(1.0,),
        ),
    )
    draws = torch.Generator().manual_seed(3)

    def images(light: int, count: int) -> torch.Tensor:
        shape = (count, 1, 2, 2)
        return (light + torch.randint(0, 10, shape, generator=draws)).to(torch.uint8)

    clean = torch.cat([images(20, 200), images(240, 200)])[torch.randperm(400, generator=draws)]
    came = torch.cat([images(60, 10), images(20, 45), images(240, 45)])
    found = [filter_images(way(), model, came, clean, runtime(), 0.05) for way in (Bright, BrightForItsClass)]
    assert [one.clean for one in found] == [400, 200]
    assert [int(one.triggered[:10].sum()) for one in found] == [0, 10]
    assert found[1].verdict is True
    assert found[1].answers.tolist() == [0] * 55 + [1] * 45
    assert not found[1].blind.any()
    assert filter_images(UpTo245(), model, came, clean, runtime(), 0.05).blind.tolist() == [False, True]
    with pytest.raises(InputError, match="18 clean images to compare with"):
        filter_images(BrightForItsClass(), model, came, clean[:37], runtime(), 0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_answers_on_a_gpu_are_those_of_a_processor() -> None:
    models = planted(0)
    came, clean = models.test.images[:40], models.test.images[40:]
    found, expected = (
        filter_images(ScaleUp(), models.suspect, came, clean, Runtime(device=device, precision="fp32", seed=0), 0.2)
        for device in ("cuda", "cpu")
    )
    # An answer may hang on rounding.
    assert float((found.answers == expected.answers).float().mean()) > 0.9
    assert found.p_values.device.type == "cpu"
    assert next(models.suspect.parameters()).device.type == "cpu", "the model stays where it was"
