"""Feature taps: what named modules put out, collected while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from unbackdoor.models.names import module_named
from unbackdoor.models.network import Network


@contextmanager
def tapped(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that each forward pass fills with the outputs of the modules named.

    Args:
        model: a network, or any module.
        *names: modules such as "layer4" or "layer4.1.bn1", relative to a `Network`'s body, or to `model`
            itself if it is another module.

    Yields:
        Name to output, with its gradient history; replaced at the next forward pass. Of a module that puts
        out several values, the first. The hooks are gone when the block is left, also by an exception.

    Raises:
        InputError: there is no module of that name.
    """
    root = model.body if isinstance(model, Network) else model
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in names:
            # The handle is a context manager: leaving the stack removes the hook.
            hooks.enter_context(_last(module_named(root, name)).register_forward_hook(_keep(outputs, name)))
        yield outputs


def _last(module: nn.Module) -> nn.Module:
    """Return the module whose output is that of `module`.

    Our networks call the members of a sequence one by one, never the sequence, whose own hook would not fire.
    """
    while isinstance(module, nn.Sequential) and len(module) > 0:
        module = module[-1]
    return module


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output if isinstance(output, Tensor) else output[0]

    return hook
