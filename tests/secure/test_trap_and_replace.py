"""Trap-and-Replace: its losses, its two stages, its decoder, and whether it keeps a backdoor out."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planted import CLASSES, network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.refusals import refused
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import WRN16x1
from unbackdoor.secure import Decoder, TrapAndReplace
from unbackdoor.secure.decoder import decoder_for
from unbackdoor.secure.trap_and_replace import Baited, _Bait, _Patch, total_variation
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime, new_network

SHORT = {"epochs": 2, "batch_size": 40, "head_epochs": 2, "head_batch_size": 12}


def data(count: int = 80) -> DefenderData:
    return DefenderData(untrusted=pictures(count, 0), clean=pictures(48, 2))


# ---- the losses


def test_total_variation_is_the_sum_of_squared_differences_by_the_number_of_values() -> None:
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for image in images.double().numpy():
        for channel in image:
            for row in range(5):
                for column in range(4):
                    if row:
                        total += (channel[row, column] - channel[row - 1, column]) ** 2
                    if column:
                        total += (channel[row, column] - channel[row, column - 1]) ** 2
    assert float(total_variation(images)) == pytest.approx(total / images.numel(), rel=1e-5)
    assert float(total_variation(torch.full((2, 3, 5, 4), 0.3))) == 0


def scene(reconstruction: float, variation: float) -> tuple[_Bait, Baited, Batch]:
    baited = Baited(network(0).train(), "6", 5)
    clean = pictures(16, 3)
    batch = Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(16))
    hook = _Bait(reconstruction, variation)
    hook.begin(baited, Recipe(), runtime())
    return hook, baited, batch


def test_loss_and_gradient_of_the_first_stage_equal_a_plain_computation() -> None:
    hook, baited, batch = scene(10.0, 2.0)
    plain = copy.deepcopy(baited)
    loss = hook.loss(baited, batch)
    features = plain.stem(batch.images)
    images = plain.decoder(features)
    error = sum(((one - other) ** 2).mean() for one, other in zip(images, batch.images)) / 16
    smooth = sum(((image[:, 1:] - image[:, :-1]) ** 2).sum() + (image.diff(dim=2) ** 2).sum() for image in images)
    expected = F.cross_entropy(plain.head(features), batch.targets) + 10 * error + 2 * smooth / images.numel()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(baited.parameters(), plain.parameters()):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_without_weights_the_decoder_learns_nothing_and_the_network_what_it_would_alone() -> None:
    hook, baited, batch = scene(0.0, 0.0)
    loss = hook.loss(baited, batch)
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(baited(batch.images), batch.targets).detach()))
    loss.backward()
    assert all(float(value.grad.abs().max()) == 0 for value in baited.decoder.parameters() if value.grad is not None)


def test_in_the_second_stage_every_image_has_a_box_and_its_target_that_share() -> None:
    clean = pictures(40, 3)
    images = clean.images.float() / 255
    batch = Batch(images=images, targets=clean.labels, rows=torch.arange(40))
    mixed = _Patch(1.0, CLASSES).batch(nn.Identity(), batch, torch.Generator().manual_seed(0))
    changed = (mixed.images != images).any(1).float().mean((1, 2))
    own = mixed.targets[torch.arange(40), clean.labels]
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(40))
    others = own < 1
    assert float(others.float().mean()) > 0.6, "most boxes show another class"
    # Noise differs everywhere, but for a value that happens to be the same in both images.
    torch.testing.assert_close(1 - own[others], changed[others], atol=0.03, rtol=0)
    same = _Patch(0.0, CLASSES).batch(nn.Identity(), batch, torch.Generator().manual_seed(0))
    assert torch.equal(same.images, images)
    assert torch.equal(same.targets.argmax(1), clean.labels)


# ---- the networks


def test_the_decoder_of_wrn_16_1_is_the_published_one() -> None:
    images = replace(pictures(8, 0), images=torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    wide = new_network(partial(WRN16x1), images, runtime())
    decoder = Baited(wide, wide.last_block(), 0).decoder
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    assert shapes == {
        "layers.0.weight": (64, 32, 4, 4),
        "layers.0.bias": (32,),
        "layers.2.weight": (32, 3, 4, 4),
        "layers.2.bias": (3,),
    }
    kinds = [type(layer).__name__ for layer in decoder.layers]
    assert kinds == ["ConvTranspose2d", "ReLU", "ConvTranspose2d", "Sigmoid"]
    assert decoder.facts() == {"at": "block3.layer.1"}


@pytest.mark.parametrize(
    ("features", "image"),
    [
        ((64, 8, 8), (3, 32, 32)),
        ((12, 4, 4), (1, 28, 28)),
        ((8, 7, 3), (3, 13, 5)),
        ((16, 9, 9), (3, 9, 9)),
        ((512, 2, 2), (3, 32, 32)),
    ],
    ids=str,
)
def test_a_decoder_makes_images_of_the_right_shape_in_range(
    features: tuple[int, int, int], image: tuple[int, int, int]
) -> None:
    decoder = decoder_for("somewhere", features, image, 3)
    images = decoder(5 * torch.randn(2, *features)).detach()
    assert images.shape == (2, *image)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert same_state(state_of(decoder), state_of(decoder_for("somewhere", features, image, 3)))
    assert not same_state(state_of(decoder), state_of(decoder_for("somewhere", features, image, 4)))


def test_a_head_that_begins_after_the_pooling_is_refused() -> None:
    with pytest.raises(InputError, match="no image can be reconstructed from features of shape"):
        TrapAndReplace(head="11", **SHORT).train(lambda: network(0), data(), runtime())
    with pytest.raises(InputError, match="no stage 'layer9'"):
        TrapAndReplace(head="layer9", **SHORT).train(lambda: network(0), data(), runtime())


def test_the_result_has_the_stem_of_the_first_stage_and_a_head_that_never_saw_untrusted_data() -> None:
    """Other untrusted labels leave the new head's training as it is, but for the stem before it."""
    trained = TrapAndReplace(**SHORT).train(lambda: network(0), data(), runtime())
    stem, head = trained.network.split("6")
    untrained, fresh = network(0).split("6")
    assert not same_state(state_of(stem), state_of(untrained))
    assert not same_state(state_of(head), state_of(fresh))
    still = TrapAndReplace(**{**SHORT, "head_epochs": 1, "head_learning_rate": 1e-12})
    lazy = still.train(lambda: network(0), data(), runtime()).network.split("6")
    assert same_state(state_of(lazy[0]), state_of(stem)), "the stem is not changed by the second stage"
    for ours, begun in zip(lazy[1].parameters(), fresh.parameters()):
        torch.testing.assert_close(ours, begun, atol=1e-6, rtol=0)


def test_the_decoder_reconstructs_what_the_stem_of_the_result_tells_it() -> None:
    method = TrapAndReplace(epochs=20, batch_size=32, head_epochs=1, augmentation="none")
    trained = method.train(lambda: network(0), data(count=800), runtime())
    decoder = trained.parts["decoder"]
    assert isinstance(decoder, Decoder)
    images = pictures(32, 9).images.float() / 255
    with torch.no_grad():
        error = F.mse_loss(decoder(trained.network.split(decoder.at)[0](images)), images)
        blind = (images - images.mean()).square().mean()
    assert float(error) < 0.4 * float(blind)


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_model_trained_on_poisoned_data_has_the_backdoor_without_the_method_and_not_with_it(seed: int) -> None:
    models = planted(seed)
    method = TrapAndReplace(epochs=10, batch_size=32, head_epochs=20, head_batch_size=32, augmentation="none")
    given = DefenderData(untrusted=models.fitted.train, clean=models.data.clean)
    trained = method.train(lambda: network(seed), given, runtime(seed))
    plain, secure = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, trained.network)
    )
    assert plain.asr is not None
    assert secure.asr is not None
    assert plain.asr.value > 0.95
    assert secure.asr.value < 0.05
    assert secure.acc.value > 0.95


# ---- as a whole


@pytest.mark.parametrize("where", ["trap", "replace"])
def test_an_interrupted_run_goes_on_in_either_stage(where: str, tmp_path: Path) -> None:
    path, method = tmp_path / "resume.pt", TrapAndReplace(**SHORT)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 3))
    with pytest.raises(KeyboardInterrupt):
        method.train(lambda: network(0), data(), stopping, resume=path)
    progress = StopsIn("nothing", 0)
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again = method.train(lambda: network(0), data(), going, resume=path)
    assert progress.totals == ([2, 8] if where == "trap" else [0, 8]), "finished epochs are not done again"
    whole = method.train(lambda: network(0), data(), runtime())
    assert same_state(state_of(again.network), state_of(whole.network))
    assert same_state(state_of(again.parts["decoder"]), state_of(whole.parts["decoder"]))


def test_missing_data_are_said() -> None:
    with pytest.raises(InputError, match="TrapAndReplace needs clean samples"):
        TrapAndReplace().train(lambda: network(0), DefenderData(untrusted=pictures(24, 3)), runtime())
    with pytest.raises(InputError, match="TrapAndReplace needs the data that"):
        TrapAndReplace().train(lambda: network(0), DefenderData(clean=pictures(24, 3)), runtime())


@pytest.mark.parametrize(
    "options",
    [
        {"reconstruction": -1.0},
        {"variation": float("nan")},
        {"dropout": 1.0},
        {"cutmix": 1.5},
        {"epochs": 0},
        {"head_learning_rate": 0.0},
        {"augmentation": "cutmix"},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    refused(TrapAndReplace, options)


def test_defaults_are_those_of_the_paper() -> None:
    expected = TrapAndReplace(
        head="",
        epochs=200,
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=5e-4,
        reconstruction=10.0,
        variation=1.0,
        head_epochs=100,
        head_batch_size=64,
        head_learning_rate=0.03,
        label_smoothing=0.1,
        dropout=0.5,
        cutmix=1.0,
        augmentation="crop-flip",
    )
    assert TrapAndReplace() == expected
