"""How sure a model is, against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.inspect.known import material
from tests.planted import planted, runtime
from unbackdoor.errors import InputError
from unbackdoor.inspect import INSPECTIONS, Confidence
from unbackdoor.inspect.confidence import shares_by_bin
from unbackdoor.training import logits_of


def test_shares_are_numpy_s_histogram() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    counts, _ = np.histogram(values.numpy(), bins=7, range=(0, 1))
    assert shares_by_bin(values, 7).tolist() == pytest.approx((counts / 1000).tolist())
    assert shares_by_bin(torch.tensor([0.0, 1.0, 1.0000001]), 2).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_the_figures_are_those_of_softmax_image_by_image() -> None:
    given = material()
    seen = Confidence(bins=5).inspect(planted(1).suspect, given, runtime()).measured["suspect"]["clean"]
    sure, right = [], 0
    for image, label in zip(given.clean.images, given.clean.labels.tolist(), strict=True):
        probabilities = logits_of(planted(1).suspect, image[None], runtime())[0].softmax(0).tolist()
        sure.append(max(probabilities))
        right += probabilities.index(max(probabilities)) == label
    assert seen["images"] == len(sure) == 240
    assert seen["mean"] == pytest.approx(sum(sure) / 240, rel=1e-4)
    assert seen["median"] == pytest.approx(sorted(sure)[119], rel=1e-4)
    assert seen["as_labelled"] == pytest.approx(right / 240)
    assert sum(seen["histogram"]) == pytest.approx(1)
    assert seen["histogram"][4] == pytest.approx(sum(value >= 0.8 for value in sure) / 240)


def test_a_backdoored_model_is_sure_of_triggered_images_and_its_twin_gives_them_other_answers() -> None:
    assert INSPECTIONS["Confidence"] is Confidence
    found = Confidence().inspect(planted(1).suspect, material(), runtime())
    suspect, twin = found.measured["suspect"]["triggered"], found.measured["reference"]["triggered"]
    assert suspect["as_labelled"] > 0.9
    assert suspect["mean"] > 0.8
    assert twin["as_labelled"] < 0.2
    assert f"triggered images {suspect['mean']:.2f}" in found.headline
    assert [list(figure.series) for figure in found.figures] == [["clean", "triggered"]] * 2  # type: ignore[union-attr]


def test_without_an_attack_only_clean_images_are_counted() -> None:
    found = Confidence().inspect(planted(1).suspect, material(attack=None, reference=None), runtime())
    assert list(found.measured) == ["suspect"]
    assert list(found.measured["suspect"]) == ["clean"]


def test_a_histogram_without_bins_is_refused() -> None:
    with pytest.raises(InputError, match="1 bin or more, found 0"):
        Confidence(bins=0)
