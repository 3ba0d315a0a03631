"""STRIP: entropy in closed form, and rows whose class does not change under other images."""

from __future__ import annotations

import math

import pytest
import torch

from tests.sift.spread import CLASSES, FEATURES, TARGET, auroc, centres, reader, runtime, spread
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.sift import STRIP
from unbackdoor.sift.strip import entropy

TRIGGER = 5
"""The pixel that, when white, decides the class."""


def backdoored() -> torch.Tensor:
    """Return the weights of a linear network that goes by the class's centre, and by one pixel for `TARGET`."""
    weight = centres() * 4
    weight[:, TRIGGER] = -10.0
    weight[TARGET, TRIGGER] = 10.0
    return weight


def lit() -> torch.Tensor:
    """Return the shift that makes the pixel white."""
    shift = torch.zeros(FEATURES)
    shift[TRIGGER] = 2.0
    return shift


def test_entropy_of_even_and_of_certain_answers() -> None:
    logits = torch.stack(
        [torch.zeros(4), torch.tensor([100.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -200.0, -200.0])]
    )
    assert entropy(logits).tolist() == pytest.approx([math.log(4), 0.0, math.log(2)], abs=1e-5)


def test_rows_that_keep_their_class_are_found_and_without_a_backdoor_they_are_not() -> None:
    planted = spread(lit())
    found = STRIP(overlays=20).score(planted.data, runtime(), reader(backdoored()))
    assert auroc(found.scores, planted.planted) > 0.97
    without = STRIP(overlays=20).score(planted.without, runtime(), reader(backdoored()))
    assert auroc(without.scores, planted.planted) < 0.75


def test_the_threshold_comes_from_clean_samples_where_there_are_any() -> None:
    planted, other = spread(lit()), spread(lit(), seed=1)
    data = DefenderData(untrusted=planted.rows, clean=other.plain)
    found = STRIP(overlays=20, false_alarms=0.05).score(data, runtime(), reader(backdoored()))
    assert bool(found.poisoned[planted.planted].float().mean() > 0.8)
    assert 0.0 < float(found.poisoned[~planted.planted].float().mean()) < 0.15


def test_the_average_of_many_overlays_is_what_a_plain_loop_gives() -> None:
    planted = spread(lit(), count=20)
    from unbackdoor.sift.observed import Observed

    seen = Observed(reader(), planted.rows, None, runtime())
    generator = runtime().generator("strip", "rows")
    images = planted.rows.images.float() / 255
    total = torch.zeros(20)
    for _ in range(3):
        drawn = torch.randint(20, (20,), generator=generator)
        for row in range(20):
            probabilities = seen.model((images[row] + images[drawn[row]]).clamp(max=1)[None])[0].softmax(0)
            total[row] -= float(sum(p * math.log(p) for p in probabilities.tolist() if p > 0))
    torch.testing.assert_close(
        STRIP(overlays=3).entropies(seen, planted.rows.images, "rows"), total / 3, atol=1e-4, rtol=1e-3
    )
    assert CLASSES == 5


@pytest.mark.parametrize("options", [{"overlays": 0}, {"false_alarms": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="STRIP: "):
        STRIP(**options)  # type: ignore[arg-type]
