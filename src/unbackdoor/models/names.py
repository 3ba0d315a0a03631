"""Modules by the names that users and files give them."""

from __future__ import annotations

import difflib

from torch import nn

from unbackdoor.errors import InputError


def module_named(root: nn.Module, name: str) -> nn.Module:
    """Return the module of that name inside `root`.

    Raises:
        InputError: there is none; the sentence names the closest.
    """
    modules: dict[str, nn.Module] = dict(root.named_modules())
    if name not in modules or not name:
        close = difflib.get_close_matches(name, filter(None, modules), n=1, cutoff=0)
        hint = f"; did you mean {close[0]!r}?" if close else "; it has no modules inside"
        raise InputError(f"{type(root).__name__} has no module {name!r}{hint}")
    return modules[name]
