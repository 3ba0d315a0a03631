"""The shortcut's convolution is the plain one, and its gradient stays inside its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from unbackdoor.models.shortcut import ShortcutConvolution

NARROW = """
import torch
from unbackdoor.models.preact_resnet18 import PreActResNet18
torch.set_num_threads(2)
network = PreActResNet18(channels=1, classes=10, width=8).to(memory_format=torch.channels_last)
for side in (32, 24) * 6:
    images = torch.rand(119, 1, side, side).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images).float().sum()
    loss.backward()
print("alive")
"""


@pytest.mark.parametrize("inputs", [1, 8, 15, 16, 24])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [7, 8])
def test_it_is_the_plain_convolution_with_its_gradients(inputs: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    ours = ShortcutConvolution(inputs, 6, stride)
    torch.manual_seed(0)
    plain = nn.Conv2d(inputs, 6, 1, stride, bias=False)
    assert torch.equal(ours.weight, plain.weight)
    images = torch.randn(4, inputs, side, side)
    results = []
    for layer in (ours, plain):
        seen = images.clone().requires_grad_(True)
        output = layer(seen)
        (output * output).sum().backward()
        results.append((output.detach(), seen.grad, layer.weight.grad))
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_narrow_network_trains_on_odd_batches_with_several_threads() -> None:
    """The damage shows itself as an abort, mostly within the first steps."""
    done = subprocess.run([sys.executable, "-c", NARROW], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    assert "alive" in done.stdout
