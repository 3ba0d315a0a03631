"""Derivatives within `twice_differentiable` and `frozen_norms` are PyTorch's own, and nothing stays changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.purify.test_npd import staged
from unbackdoor.models import derivatives
from unbackdoor.models.derivatives import frozen_norms, twice_differentiable
from unbackdoor.testing.samples import same_state, state_of


def images(size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, size, size, generator=generator, dtype=torch.float64)


def smooth() -> nn.Module:
    """Return a network of every kind of convolution, whose derivatives are nowhere 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=(2, 1), padding=(0, 2)),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Conv2d(6, 6, (3, 2), padding=1, groups=3, dilation=(1, 2), bias=False),
            nn.BatchNorm2d(6, affine=False),
            nn.Tanh(),
            nn.Conv2d(6, 4, 1, stride=3),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(3),
        )
        model(images().float())
    return model.double().eval()


def taken(model: nn.Module, size: int = 12) -> list[Tensor | None]:
    """Return a loss, its gradient by a shift of the images, and the derivatives of the latter and of the former."""
    shift = torch.zeros(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    weights = list(model.parameters())
    loss = model(images(size) + shift).square().sum()
    direct = torch.autograd.grad(loss, weights, retain_graph=True)
    (first,) = torch.autograd.grad(loss, shift, create_graph=True)
    along = torch.linspace(-1, 1, first.numel(), dtype=torch.float64).view_as(first)
    (back,) = torch.autograd.grad(first, shift, along, retain_graph=True)
    return [loss, first, back, *direct, *torch.autograd.grad(first, weights, along, allow_unused=True)]


@pytest.mark.parametrize("architecture", ["smooth", "PreActResNet18", "WRN16x1"])
def test_values_and_both_derivatives_are_pytorchs_own(architecture: str) -> None:
    model, size = (smooth(), 12) if architecture == "smooth" else (staged(architecture).double(), 12)
    expected = taken(model, size)
    with twice_differentiable(model):
        found = taken(model, size)
    for one, other in zip(found, expected):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_no_weight_gradient_is_computed_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is what it is for."""
    calls: list[tuple[int, ...]] = []
    plain = derivatives.conv2d_weight
    monkeypatch.setattr(derivatives, "conv2d_weight", lambda *given: calls.append(tuple(given[1])) or plain(*given))
    model = smooth()
    with twice_differentiable(model):
        shift = torch.zeros(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(model(images() + shift).square().sum(), shift, create_graph=True)
        torch.autograd.grad(first.sum(), shift, retain_graph=True)
        assert not calls
        torch.autograd.grad(first.sum(), list(model.parameters()), allow_unused=True)
        assert len(calls) == 3


def test_second_derivatives_that_it_does_not_have_are_refused() -> None:
    model = smooth()
    with twice_differentiable(model):
        (first,) = torch.autograd.grad(model(images()).square().sum(), [model[0].weight], create_graph=True)  # type: ignore[index]
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_everything_is_as_before_also_after_an_error() -> None:
    model = smooth()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="shape"), twice_differentiable(model):
        model(images(5))
    assert not any("forward" in vars(module) for module in model.modules())
    assert same_state(before, state_of(model))


def test_normalisation_by_the_batch_stays() -> None:
    model = smooth().train()
    expected = taken(model)
    with twice_differentiable(model):
        found = taken(model)
    for one, other in zip(found, expected):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def nodes(output: Tensor) -> set[str]:
    """Return the names of the operations that led to an output."""
    pending, seen = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("architecture", ["smooth", "PreActResNet18"])
def test_gradients_of_images_pass_frozen_normalisation_as_they_do_pytorchs_own(architecture: str) -> None:
    model = (smooth() if architecture == "smooth" else staged(architecture).double()).requires_grad_(False)
    given = images().requires_grad_(True)
    wanted = model(given)
    (expected,) = torch.autograd.grad(wanted.square().sum(), given)
    with frozen_norms(model):
        found = model(given)
    (gradient,) = torch.autograd.grad(found.square().sum(), given)
    assert "_FrozenNormBackward" in nodes(found)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert not any("forward" in vars(module) for module in model.modules())


def test_in_bfloat16_they_differ_by_less_than_bfloat16_does() -> None:
    model = staged("PreActResNet18").requires_grad_(False)
    given = images().float().requires_grad_(True)

    def gradient(precise: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            loss = model(given).float().square().sum()
        return torch.autograd.grad(loss, given)[0]

    truth, usual = gradient(True), gradient(False)
    with frozen_norms(model):
        cheaper = gradient(False)
    assert float((cheaper - usual).norm()) < 0.3 * float((usual - truth).norm())


def test_normalisation_that_learns_or_uses_the_batch_stays() -> None:
    model = smooth().requires_grad_(False)
    model[1].weight.requires_grad_(True)  # type: ignore[index, union-attr]
    model[8].train()  # type: ignore[index]
    with frozen_norms(model):
        assert not any("forward" in vars(module) for module in model.modules())
        model(images()).square().sum().backward()
    assert model[1].weight.grad is not None  # type: ignore[index]
