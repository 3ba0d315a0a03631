"""The clean model that attacks look into knows the classes, however few images there are."""

from __future__ import annotations

from functools import partial

import pytest

from tests.planted import runtime
from unbackdoor.attacks.base import Given
from unbackdoor.attacks.preparation import clean_model
from unbackdoor.data import read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.models import PreActResNet18
from unbackdoor.training import Recipe, enough_epochs, new_network


@pytest.mark.parametrize("seed", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clean_model_of_few_images_knows_the_classes(seed: int) -> None:
    train, test = read_images("digits", "train"), read_images("digits", "test")
    drawn = runtime(seed)
    given = Given(
        train=train, build_model=lambda: new_network(partial(PreActResNet18, width=4), train, drawn), runtime=drawn
    )
    model = clean_model(None, given)
    assert evaluate(model, test, drawn).acc.value > 0.9


def test_few_rows_get_more_epochs_and_many_get_those_of_the_recipe() -> None:
    recipe = Recipe(epochs=4, batch_size=128)
    assert enough_epochs(recipe, 1437, 200).epochs == 17
    assert enough_epochs(recipe, 50_000, 200) == recipe
