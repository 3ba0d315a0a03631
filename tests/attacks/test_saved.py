"""Attack files: what was written is read, and nothing else is."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from tests.attacks.test_badnets import some
from tests.planted import runtime
from unbackdoor.attacks import SIG, Attack, BadNets, Blended, load_attack, save_attack
from unbackdoor.attacks.saved import FORMAT, KEY
from unbackdoor.errors import InputError, OutputError

SHAPE = (3, 8, 6)


@pytest.mark.parametrize("attack", [BadNets(size=8), BadNets(labels="all-to-all"), Blended(target=1), SIG(target=3)])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 28)])
def test_what_was_written_is_read(tmp_path: Path, attack: Attack, shape: tuple[int, int, int]) -> None:
    train = some(shape=shape)
    fitted = attack.prepare(train, lambda: pytest.fail("no model is needed"), runtime())
    path, options = tmp_path / "a.safetensors", {"name": type(attack).__name__, "rate": 0.1, "text": "é\n"}
    save_attack(path, fitted, options)
    saved = load_attack(path)
    assert type(saved.trigger) is type(fitted.trigger)
    assert torch.equal(saved.trigger.stamp(train.images), fitted.trigger.stamp(train.images))
    assert saved.criterion == fitted.criterion
    assert torch.equal(saved.kinds, fitted.kinds)
    assert torch.equal(saved.original_labels, train.labels)
    assert saved.image_shape == shape
    assert saved.options == options


@pytest.mark.parametrize(
    "attack", [BadNets(), BadNets(labels="all-to-all", cover_rate=0.2), Blended(target=1), SIG(target=3)]
)
def test_poisoned_training_data_are_made_again(tmp_path: Path, attack: Attack) -> None:
    train = some(shape=(3, 16, 16))
    fitted = attack.prepare(train, lambda: pytest.fail("no model is needed"), runtime())
    save_attack(tmp_path / "a.safetensors", fitted, {})
    again = load_attack(tmp_path / "a.safetensors").poison(train)
    assert torch.equal(again.images, fitted.train.images)
    assert torch.equal(again.labels, fitted.train.labels)
    assert not torch.equal(again.images, train.images)


def test_other_images_or_an_attack_on_batches_have_no_poisoned_training_data(tmp_path: Path) -> None:
    train = some(shape=(3, 16, 16))
    fitted = BadNets().prepare(train, lambda: pytest.fail("no model is needed"), runtime())
    save_attack(tmp_path / "a.safetensors", fitted, {})
    with pytest.raises(InputError, match="its labels are others"):
        load_attack(tmp_path / "a.safetensors").poison(train.subset(torch.arange(len(train) - 1)))
    untouched = replace(fitted, kinds=torch.zeros_like(fitted.kinds))
    save_attack(tmp_path / "b.safetensors", untouched, {})
    with pytest.raises(InputError, match="poisons batches"):
        load_attack(tmp_path / "b.safetensors").poison(train)


class File:
    """The parts of a good file, to be spoiled one at a time."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors: dict[str, Tensor] = {
            "trigger.mask": torch.rand(1, *SHAPE[1:], generator=generator),
            "trigger.pattern": torch.rand(SHAPE, generator=generator),
            "kinds": torch.zeros(10, dtype=torch.uint8),
            "original_labels": torch.arange(10) % 3,
        }
        self.description: dict[str, Any] = {
            "format": FORMAT,
            "trigger": "Stamp",
            "criterion": {"kind": "all-to-one", "target": 0},
            "image_shape": list(SHAPE),
            "options": {"name": "BadNets"},
        }

    def bytes(self, text: str | None = None) -> bytes:
        return save(self.tensors, metadata={KEY: json.dumps(self.description) if text is None else text})

    def read(self, folder: Path) -> Any:
        path = folder / "attack.safetensors"
        path.write_bytes(self.bytes())
        return load_attack(path)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_attack(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_good_file_is_good(tmp_path: Path) -> None:
    saved = File().read(tmp_path)
    assert saved.image_shape == SHAPE
    assert saved.options == {"name": "BadNets"}


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = File().bytes()
    for length in range(0, len(whole), 7):
        assert "damaged" in refused(tmp_path / "a", whole[:length])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"not a file of ours",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 4) + b"null",
        b"PK\x03\x04" + bytes(100),
        save({"a": torch.zeros(1)}),
        save({"a": torch.zeros(1)}, metadata={"other": "1"}),
    ],
)
def test_other_formats_are_refused_with_the_path(tmp_path: Path, content: bytes) -> None:
    assert "a is no attack file, or is damaged" in refused(tmp_path / "a", content)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"text"', "[" * 100_000, "{}"])
def test_metadata_that_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    assert "damaged" in refused(tmp_path / "a", File().bytes(text))


def test_a_missing_file_a_folder_and_an_unreadable_one_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            load_attack(path)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a").open("wb") as sparse:
        sparse.truncate((1 << 30) + 1)
    monkeypatch.setattr("unbackdoor.attacks.saved.read_safetensors", lambda payload: pytest.fail("read"))
    with pytest.raises(InputError, match="more than the 1073741824 that are accepted"):
        load_attack(tmp_path / "a")


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(InputError, match=r"cannot read .*no regular file"):
            load_attack(tmp_path / name)


Spoil = Callable[[File], object]


def _without(key: str) -> Any:
    return pytest.param(lambda file: file.description.pop(key), id=f"without {key}")


def _lacking(name: str) -> Any:
    return pytest.param(lambda file: file.tensors.pop(name), id=f"lacking {name}")


def _described(**changes: Any) -> Any:
    return pytest.param(lambda file: file.description.update(changes), id=str(changes))


def _held(name: str, value: Tensor) -> Any:
    return pytest.param(lambda file: file.tensors.update({name: value}), id=f"{name} {value.dtype} {list(value.shape)}")


@pytest.mark.parametrize(
    "spoil",
    [
        *map(_without, ("format", "trigger", "criterion", "image_shape", "options")),
        *map(_lacking, ("trigger.mask", "trigger.pattern", "kinds", "original_labels")),
        _described(format=FORMAT + 1),
        _described(format=None),
        _described(trigger="Trigger"),
        _described(trigger="os.system"),
        _described(trigger=None),
        _described(trigger=["Stamp"]),
        _described(trigger="Additive"),
        _described(criterion=None),
        _described(criterion={"kind": "all-to-one", "target": -3}),
        _described(image_shape=[3, 8]),
        _described(image_shape=[3, 8, 6, 1]),
        _described(image_shape=[3, -8, 6]),
        _described(image_shape=[3, 9, 6]),
        _described(image_shape=None),
        _described(image_shape=[3, 8, None]),
        _described(image_shape=[3, 8, float("nan")]),
        _described(options=5),
        _described(image_shape=[0, 8, 6]),
        _held("trigger.mask", torch.rand(1, 3, 3)),
        _held("trigger.pattern", torch.rand(3, 8, 7)),
        _described(image_shape=[3, 8, float("inf")]),
        _described(image_shape=[1, 8, 6]),
        _held("trigger.pattern", torch.rand(2, 3, 8, 6)),
        _held("trigger.mask", torch.rand(4, 3, 8, 6)),
        _held("kinds", torch.zeros(3, dtype=torch.uint8)),
        _held("kinds", torch.zeros(10)),
        _held("original_labels", torch.zeros(10, 1, dtype=torch.int64)),
        _held("original_labels", torch.zeros(10)),
        _described(criterion={"kind": "all-to-one", "target": 10**30}),
    ],
)
def test_a_spoilt_part_is_refused_with_a_sentence(tmp_path: Path, spoil: Spoil) -> None:
    file = File()
    spoil(file)
    refused(tmp_path / "a", file.bytes())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("buffer", ["trigger.mask", "trigger.pattern"])
def test_buffers_that_are_no_numbers_are_refused(tmp_path: Path, buffer: str, value: float) -> None:
    file = File()
    file.tensors[buffer][..., 2, 3] = value
    assert "damaged" in refused(tmp_path / "a", file.bytes())


@pytest.mark.parametrize("value", [1e30, -3.0])
@pytest.mark.parametrize("buffer", ["trigger.mask", "trigger.pattern"])
def test_buffers_out_of_range_are_refused_or_make_8_bit_images_all_the_same(
    tmp_path: Path, buffer: str, value: float
) -> None:
    file = File()
    file.tensors[buffer][..., 2, 3] = value
    images = torch.full((2, *SHAPE), 100, dtype=torch.uint8)
    try:
        stamped = file.read(tmp_path).trigger.stamp(images)
    except InputError:
        return
    assert stamped.dtype == torch.uint8
    assert stamped.shape == images.shape
    untouched = torch.ones(SHAPE[1:], dtype=torch.bool)
    untouched[2, 3] = False
    assert torch.equal(stamped[..., untouched], File().read(tmp_path).trigger.stamp(images)[..., untouched])


def test_an_image_shape_that_the_buffers_do_not_have_makes_no_large_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 2 kB must not ask for 19 GB: buffers of one pixel broadcast to any size."""
    file = File()
    file.tensors["trigger.mask"], file.tensors["trigger.pattern"] = torch.rand(1, 1, 1), torch.rand(3, 1, 1)
    file.description["image_shape"] = [3, 40_000, 40_000]
    (tmp_path / "a").write_bytes(file.bytes())
    asked: list[int] = []

    def zeros(*shape: int) -> Tensor:
        asked.append(torch.Size(shape).numel())
        return torch.empty(1, 3, 1, 1)

    monkeypatch.setattr(torch, "zeros", zeros)
    with contextlib.suppress(InputError):
        load_attack(tmp_path / "a")
    assert max(asked, default=0) < 10**8


@pytest.mark.parametrize("buffer", ["trigger.mask", "trigger.pattern"])
def test_a_buffer_that_broadcasts_over_the_image_makes_no_large_image(tmp_path: Path, buffer: str) -> None:
    """40 kB by an image of one megapixel would be 40 GB."""
    file = File()
    file.tensors[buffer] = torch.rand(10_000, 1, 1)
    file.description["image_shape"] = [1, 1024, 1024]
    assert "10000, 1, 1" in refused(tmp_path / "a", file.bytes())


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    fitted = BadNets().prepare(some(), lambda: pytest.fail("no model is needed"), runtime())
    with pytest.raises(OutputError, match="cannot write"):
        save_attack(tmp_path / "file" / "a", fitted, {})


WHOLE = File().bytes()
HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.sampled_from([8, HEADER, len(WHOLE)]),
    cut=st.none() | st.integers(0, len(WHOLE)),
)
def test_a_file_with_changed_bytes_is_read_or_refused(
    tmp_path: Path, changes: list[tuple[int, int]], end: int, cut: int | None
) -> None:
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place % end] = value
    (tmp_path / "a").write_bytes(content[:cut])
    with contextlib.suppress(InputError):
        load_attack(tmp_path / "a")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(sorted(File().description)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_a_description_with_any_value_is_read_or_refused(tmp_path: Path, field: str, value: Any) -> None:
    file = File()
    file.description[field] = value
    (tmp_path / "a").write_bytes(file.bytes())
    with contextlib.suppress(InputError):
        load_attack(tmp_path / "a")


def damaged(kind: str, state: dict[str, Tensor], shape: tuple[int, int, int] = (3, 8, 6)) -> bytes:
    """Return a file that names a kind of trigger and holds this state for it."""
    file = File()
    description = {**file.description, "trigger": kind, "image_shape": list(shape)}
    others = {name: value for name, value in file.tensors.items() if not name.startswith("trigger.")}
    tensors = {**others, **{f"trigger.{name}": value for name, value in state.items()}}
    return save(tensors, metadata={KEY: json.dumps(description)})


def generator_state(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    from unbackdoor.attacks.generator import Generator

    return {f"{name}.{key}": value.contiguous() for key, value in Generator(inputs, outputs, 8).state_dict().items()}


NOISE = {**generator_state("noise", 3, 3), "bound": torch.tensor(0.01)}


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("Quantize", {"levels": torch.tensor(1.0)}),
        ("Quantize", {"levels": torch.tensor(0.0)}),
        ("Quantize", {"levels": torch.tensor(float("nan"))}),
        ("Quantize", {"levels": torch.full((10_000, 1, 1, 1), 8.0)}),
        ("Quantize", {"levels": torch.tensor(8)}),
        ("Reflection", {"layers": torch.zeros(0, 3, 8, 6), "share": torch.tensor(0.4)}),
        ("Reflection", {"layers": torch.zeros(()), "share": torch.tensor(0.4)}),
        ("Reflection", {"layers": torch.zeros(2, 3, 8, 6), "share": torch.tensor(-3.0)}),
        ("Reflection", {"layers": torch.zeros(2, 3, 8, 6), "share": torch.full((9, 1, 1, 1), 0.4)}),
        ("Reflection", {"layers": torch.zeros(2, 3, 9, 6), "share": torch.tensor(0.4)}),
        ("Scattered", {"pattern": torch.zeros(3, 0, 3)}),
        ("Scattered", {"pattern": torch.zeros(3, 9, 3)}),
        ("Scattered", {"pattern": torch.zeros(3)}),
        ("Scattered", {"pattern": torch.full((3, 2, 2), 7.0)}),
        ("Warp", {"field": torch.zeros(8, 6)}),
        ("Warp", {"field": torch.zeros(8, 6, 3)}),
        ("Warp", {"field": torch.zeros(6, 8, 2)}),
        ("Stretched", {"signal": 3e38 * (1 - 2.0 * (torch.arange(144).view(3, 8, 6) % 2))}),
        ("Stamp", {"mask": torch.full((1, 8, 6), 5.0), "pattern": torch.ones(3, 8, 6)}),
        ("LearnedNoise", without(NOISE, "bound")),
        ("LearnedNoise", without(NOISE, "noise.leave.weight")),
        ("LearnedNoise", {**NOISE, "bound": torch.tensor(5.0)}),
        ("LearnedNoise", {**NOISE, "bound": torch.full((1000, 1, 1, 1), 0.1)}),
        ("LearnedNoise", {**NOISE, "noise.enter.0.weight": torch.zeros(4000, 0, 1, 1)}),
        ("LearnedNoise", {**NOISE, "noise.enter.0.weight": torch.zeros(6, 3, 3, 3)}),
        ("LearnedNoise", {**NOISE, "noise.enter.0.weight": torch.zeros(5)}),
        ("LearnedNoise", {**NOISE, "noise.more.weight": torch.zeros(5)}),
        ("LearnedNoise", {**generator_state("noise", 1, 1), "bound": torch.tensor(0.01)}),
        ("OwnPatch", generator_state("patterns", 3, 3)),
        ("OwnPatch", {**generator_state("patterns", 3, 3), **generator_state("masks", 3, 2)}),
        (
            "HiddenSecret",
            {**generator_state("encoder", 4, 3), "bound": torch.tensor(0.1), "secret": torch.zeros(7)},
        ),
        (
            "HiddenSecret",
            {**generator_state("encoder", 3, 3), "bound": torch.tensor(0.1), "secret": torch.zeros(100)},
        ),
    ],
)
def test_a_trigger_that_cannot_work_is_refused_with_a_sentence(
    tmp_path: Path, kind: str, state: dict[str, Tensor]
) -> None:
    refused(tmp_path / "a", damaged(kind, state))


def test_the_same_scaffold_reads_a_good_trigger(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(damaged("LearnedNoise", NOISE))
    images = torch.zeros(2, 3, 8, 6, dtype=torch.uint8)
    assert load_attack(tmp_path / "a").trigger.stamp(images).shape == images.shape


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": torch.full((3,), 7, dtype=torch.uint8)},
        {"original_labels": torch.full((3,), -1)},
        {"original_labels": torch.full((3,), 10**9)},
    ],
)
def test_rows_of_unknown_kinds_or_classes_are_refused(tmp_path: Path, change: dict[str, Tensor]) -> None:
    file = File()
    rows = {"kinds": torch.zeros(3, dtype=torch.uint8), "original_labels": torch.zeros(3, dtype=torch.long)}
    file.tensors.update({**rows, **change})
    refused(tmp_path / "a", file.bytes())


def test_options_that_nest_are_refused(tmp_path: Path) -> None:
    file = File()
    nested: Any = {}
    for _ in range(400):
        nested = {"a": nested}
    file.description["options"] = nested
    refused(tmp_path / "a", file.bytes())
