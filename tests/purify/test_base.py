"""What all purifiers share: data and model are compared before the work begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.planted import CLASSES, network, pictures, planted, runtime
from tests.test_conformance import LIGHT, shortened
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify import PURIFIERS, Purifier
from unbackdoor.purify.doubt import doubts_about
from unbackdoor.training import History, Runtime


@dataclass(frozen=True, kw_only=True)
class Untouched(Purifier):
    """A purifier whose work must not begin."""

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        pytest.fail("the work has begun")


@pytest.mark.parametrize("field", ["clean", "untrusted"])
def test_data_that_do_not_fit_the_model_are_refused_before_the_work(field: str) -> None:
    good = pictures(20, 0)
    data = DefenderData(**{"clean": good, field: replace(good, images=good.images[..., :11], name="narrow")})
    with pytest.raises(InputError, match="narrow has images of 3 x 12 x 11"):
        Untouched().purify(network(0), data, runtime())


def mislabelled(count: int, share: float) -> ImageSet:
    """Return clean pictures of which a share has wrong labels."""
    images = pictures(count, 12)
    wrong = torch.arange(count) < share * count
    return replace(images, labels=torch.where(wrong, (images.labels + 1) % CLASSES, images.labels))


def unlike(count: int) -> ImageSet:
    """Return pictures whose colours are turned around: the classes of another distribution."""
    images = pictures(count, 12)
    return replace(images, images=255 - images.images)


@pytest.mark.parametrize("count", [50, 1000])
def test_samples_that_the_model_does_not_know_are_doubted_and_others_not(count: int) -> None:
    model = planted(1).suspect
    assert doubts_about(pictures(count, 12), model, runtime()) == ()
    assert doubts_about(mislabelled(count, 0.05), model, runtime()) == ()
    for strange in (mislabelled(count, 0.5), unlike(count)):
        (sentence,) = doubts_about(strange, model, runtime())
        assert "agree with the labels" in sentence


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_purifier_warns_of_them_and_goes_on(name: str) -> None:
    models = planted(1)
    data = DefenderData(clean=mislabelled(50, 0.5), untrusted=models.fitted.train)
    _, history = shortened(LIGHT.get(name, PURIFIERS[name])()).purify(models.suspect, data, runtime())
    assert "agree with the labels" in history.notes[0]


@pytest.mark.parametrize("name", ["TSBD", "RNP", "DBR"])
def test_methods_that_count_right_answers_refuse_mixed_labels(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} needs images that are not mixed with others, and cutmix mixes them"):
        PURIFIERS[name](augmentation="cutmix")
