"""Running a network over many images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.planted import runtime
from unbackdoor.training import logits_of
from unbackdoor.training.inference import BATCH


class Pixels(nn.Module):
    """Returns each image's mean and first pixel, and notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[tuple[int, float, bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((len(images), float(images.max()), self.training, torch.is_grad_enabled()))
        self.norm(images)
        return torch.stack([images.mean((1, 2, 3)), images[:, 0, 0, 0]], 1)


def _images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 7])
def test_every_image_gets_its_own_logits_in_order_whatever_the_number(count: int) -> None:
    images, model = _images(count), Pixels()
    found = logits_of(model, images, runtime())
    expected = torch.stack([torch.tensor([i.double().mean(), i[0, 0, 0]]) / 255 for i in images])
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-6, rtol=1e-6)
    assert sum(size for size, *_ in model.seen) == count
    assert max(size for size, *_ in model.seen) <= BATCH


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_evaluation_mode_without_gradients_and_gets_its_mode_back(training: bool) -> None:
    model = Pixels().train(training)
    before = model.norm.running_mean.clone()
    assert not logits_of(model, _images(5), runtime()).requires_grad
    assert model.seen == [(5, pytest.approx(1, abs=0.1), False, False)]
    assert model.training is training
    assert torch.equal(model.norm.running_mean, before)


def test_a_model_with_frozen_batch_normalisation_gets_its_modes_back() -> None:
    model = Pixels().train()
    model.norm.eval()
    logits_of(model, _images(5), runtime())
    assert model.training
    assert not model.norm.training


def test_a_model_gets_its_mode_back_after_an_error_too() -> None:
    model = Pixels().train()
    handle = model.register_forward_pre_hook(lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        logits_of(model, _images(5), runtime())
    handle.remove()
    assert model.training
    assert model.norm.training


def test_logits_are_float32_in_mixed_precision_too() -> None:
    from unbackdoor.training import Runtime

    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    low = logits_of(model, _images(6), Runtime(device="cpu", precision="bf16", threads=1))
    high = logits_of(model, _images(6), runtime())
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)
    torch.testing.assert_close(low, high, atol=0.05, rtol=0.05)
