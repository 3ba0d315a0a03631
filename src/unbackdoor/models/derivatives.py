"""Networks whose derivatives with respect to images cost what they must.

PyTorch's second derivative of a convolution always computes the gradient of the weights too, asked for or not, and that
of batch normalisation in evaluation mode is a long row of operations. Together they were half of I-BAU's time. Within
`twice_differentiable` both are made of operations whose derivatives are as simple as they are.

Also its first derivative goes over all features more often than once, for sums that only weights need. Within
`frozen_norms` it is one product, which takes a seventh off the searches for adversarial images and triggers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

Maps = Float[Tensor, "b c h w"]


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let gradients with respect to images be differentiated again at less cost; values change by rounding only.

    Gradients with respect to weights can be taken of all, but not differentiated again. Only for float32 throughout.

    Args:
        model: in evaluation mode where batch normalisation is to be cheaper; as it was after the block.
    """
    with _replaced({module: forward for module in model.modules() if (forward := _cheaper(module))}):
        yield


@contextmanager
def frozen_norms(*models: nn.Module) -> Iterator[None]:
    """Let gradients with respect to images pass frozen batch normalisation in evaluation mode by one product.

    Args:
        *models: whose layers stay as they are where they learn or use the batch's statistics; as they were after the
            block.
    """
    layers = [
        module
        for model in models
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        and type(module).forward is nn.BatchNorm2d.forward
        and not module.training
        and module.affine
        and module.track_running_stats
        and not module.weight.requires_grad
        and not module.bias.requires_grad
    ]
    with _replaced({layer: partial(_frozen_norm, layer) for layer in layers}):
        yield


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[[Maps], Maps]]) -> Iterator[None]:
    for module, forward in forwards.items():
        # An instance's own comes before its class's.
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            del vars(module)["forward"]


def _cheaper(module: nn.Module) -> Callable[[Maps], Maps] | None:
    """Return the forward pass that takes the place of a layer's, or None where the layer's own stays."""
    # A subclass may have a forward pass of its own.
    if type(module).forward not in (nn.Conv2d.forward, nn.BatchNorm2d.forward):
        return None
    match module:
        case nn.Conv2d(padding_mode="zeros", padding=tuple()):
            return partial(_convolved, module)
        case nn.BatchNorm2d(training=False, affine=True, track_running_stats=True):
            return partial(_normalized, module)
    return None


def _normalized(layer: nn.BatchNorm2d, features: Maps) -> Maps:
    """Return what batch normalisation by running statistics is: a product and a sum."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    shift = layer.bias - layer.running_mean * scale
    return features * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


def _frozen_norm(layer: nn.BatchNorm2d, features: Maps) -> Maps:
    output: Maps = _FrozenNorm.apply(features, layer)  # type: ignore[no-untyped-call]
    return output


def _convolved(layer: nn.Conv2d, features: Maps) -> Maps:
    """Return the convolution, from which one path leads back to the features and another to the weights.

    Of two paths autograd takes the one that is asked for.
    """
    output: Tensor = _ToFeatures.apply(features, layer.weight, layer)  # type: ignore[no-untyped-call]
    output = output + _ToWeights.apply(layer.weight, features.detach(), output.detach(), layer)  # type: ignore[no-untyped-call]
    return output if layer.bias is None else output + layer.bias.view(-1, 1, 1)


class _ToFeatures(torch.autograd.Function):
    """A convolution of which only the features have a gradient, and that gradient has both derivatives."""

    @staticmethod
    def forward(ctx: Any, features: Maps, weight: Tensor, layer: nn.Conv2d) -> Maps:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.sides = layer, features.shape[2:]
        return F.conv2d(features, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, gradient: Maps) -> tuple[Maps, None, None]:
        (weight,) = ctx.saved_tensors
        layer = ctx.layer
        # Rows and columns at the end that no step of the convolution reaches.
        beyond = [
            side - ((given - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for side, given, stride, padding, dilation, kernel in zip(
                ctx.sides, gradient.shape[2:], layer.stride, layer.padding, layer.dilation, layer.kernel_size
            )
        ]
        back = F.conv_transpose2d(
            gradient, weight, None, layer.stride, layer.padding, beyond, layer.groups, layer.dilation
        )
        return back, None, None


class _ToWeights(torch.autograd.Function):
    """Zeros of a convolution's shape, of which the weights have that convolution's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, features: Maps, output: Maps, layer: nn.Conv2d) -> Maps:
        ctx.save_for_backward(features)
        ctx.layer, ctx.shape = layer, weight.shape
        return output.new_zeros(()).expand_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Maps) -> tuple[Tensor, None, None, None]:
        (features,) = ctx.saved_tensors
        layer = ctx.layer
        found: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            features, ctx.shape, gradient, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return found, None, None, None


class _FrozenNorm(torch.autograd.Function):
    """Batch normalisation by running statistics of which only the features have a gradient."""

    @staticmethod
    def forward(ctx: Any, features: Maps, layer: nn.BatchNorm2d) -> Maps:
        assert layer.running_var is not None
        ctx.scale = (layer.weight * (layer.running_var + layer.eps).rsqrt()).view(-1, 1, 1)
        return F.batch_norm(
            features, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Maps) -> tuple[Maps, None]:
        return gradient * ctx.scale.to(gradient.dtype), None
