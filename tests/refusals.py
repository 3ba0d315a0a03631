"""What a refusal of options has to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unbackdoor.errors import InputError


def refused(make: Callable[..., object], options: dict[str, Any]) -> None:
    """Check that the options are refused in one line that says what was found."""
    with pytest.raises(InputError) as caught:
        make(**options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for name, value in options.items():
        # A number may be a bound as well, so it has to stand after the word.
        told = sentence if isinstance(value, str) else sentence.rpartition("found")[2]
        assert str(value) in told, f"{name} is {value!r}: {sentence}"
