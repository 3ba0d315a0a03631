"""The stacked networks are plain ones side by side."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.naive import mesa as plainly
from unbackdoor.scan.stacked import NOISE, Generators, Statistics

SHAPE = (3, 2, 2)
HIDDEN = 8


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def plain_generator(stack: Generators, row: int) -> plainly.Generator:
    plain = plainly.Generator(stack.shape, stack.norms[0].weight.shape[2])
    for layer, own in zip((plain.fc1, plain.fc2, plain.fc3, plain.fc4), stack.layers):
        layer.weight.copy_(own.weight[row].T)
        layer.bias.copy_(own.bias[row, 0])
    for norm, own in zip(plain.norms, stack.norms):
        norm.weight.copy_(own.weight[row, 0])
        norm.bias.copy_(own.bias[row, 0])
    return plain


@torch.no_grad()
def plain_statistics(stack: Statistics, row: int) -> plainly.Statistics:
    plain = plainly.Statistics(stack.first.weight.shape[1] - NOISE, stack.first.weight.shape[2])
    plain.fc_z.weight.copy_(stack.first.weight[row, :NOISE].T)
    plain.fc_v.weight.copy_(stack.first.weight[row, NOISE:].T)
    plain.bias.copy_(stack.first.bias[row, 0])
    for layer, own in ((plain.fc2, stack.second), (plain.fc3, stack.last)):
        layer.weight.copy_(own.weight[row].T)
        layer.bias.copy_(own.bias[row, 0])
    return plain


def different(stack: nn.Module) -> None:
    """Give each row weights of its own."""
    with torch.no_grad():
        for number, parameter in enumerate(stack.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws(number)))


def test_each_generator_of_a_stack_is_a_plain_one() -> None:
    stack, noise = Generators(3, SHAPE, HIDDEN, draws()), torch.randn(10, NOISE, generator=draws(1))
    different(stack)
    found = stack(noise)
    for row in range(3):
        torch.testing.assert_close(found[row], plain_generator(stack, row)(noise), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=0.01)


def test_each_network_t_of_a_stack_is_a_plain_one() -> None:
    stack, noise = Statistics(3, NOISE, 12, HIDDEN, draws()), torch.randn(10, NOISE, generator=draws(1))
    different(stack)
    triggers = torch.rand(3, 10, *SHAPE, generator=draws(2))
    found = stack(noise, triggers.flatten(2))
    for row in range(3):
        torch.testing.assert_close(found[row], plain_statistics(stack, row)(noise, triggers[row]), rtol=1e-4, atol=1e-5)


def test_all_rows_start_alike_and_as_pytorch_starts() -> None:
    stack = Generators(2, SHAPE, 400, draws())
    for layer in stack.layers:
        assert torch.equal(layer.weight[0], layer.weight[1])
        bound = layer.weight.shape[1] ** -0.5
        assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_settled_generators_answer_the_same_in_any_company() -> None:
    stack, noise = Generators(2, SHAPE, HIDDEN, draws()), torch.randn(50, NOISE, generator=draws(1))
    stack.settle(noise)
    assert not stack.training
    torch.testing.assert_close(stack(noise)[:, :7], stack(noise[:7]))
    trained = stack.train()(noise)
    torch.testing.assert_close(trained, stack.eval()(noise))
