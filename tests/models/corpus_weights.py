"""The part of the corpus with wrong weights, headers or notes: name to content and words of the refusal."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch

from unbackdoor.models import build_network
from unbackdoor.models.metadata import KEY, note_of

from .files import safetensors_bytes, small_description, small_network, torch_bytes


def tensors() -> dict[str, tuple[bytes, str]]:
    """Weights that no model should have, or that fit no network."""
    good = small_network().body.state_dict()

    def changed(**tensors: Any) -> bytes:
        return torch_bytes({**good, **{name.replace("__", "."): value for name, value in tensors.items()}})

    def published(**tensors: torch.Tensor) -> bytes:
        return safetensors.torch.save({**good, **{name.replace("__", "."): value for name, value in tensors.items()}})

    bias = good["fc.bias"]
    block = torch.ones(1000)
    return {
        "nan.safetensors": (published(fc__bias=bias * float("nan")), "NaN weights: fc.bias"),
        "nan.pt": (changed(fc__bias=bias * float("nan")), "NaN weights: fc.bias"),
        "infinite.pt": (changed(bn1__running_var=good["bn1.running_var"] + float("inf")), "NaN weights: bn1"),
        "too_large_for_float32.pt": (changed(fc__bias=bias.double() + 1e300), "NaN weights"),
        "overflowing.pt": (changed(conv1__weight=good["conv1.weight"] + 3e38), "NaN weights"),
        "complex.pt": (changed(fc__bias=bias.to(torch.complex64)), "type torch.ComplexFloatStorage"),
        "sparse.pt": (changed(fc__bias=bias.to_sparse()), "would run"),
        "no_tensor.pt": (torch_bytes({"state_dict": {**good, "fc.bias": 3}}), "not a plain dense tensor"),
        "shared_storage.pt": (
            torch_bytes({f"w{i}": block.view(10, 100) for i in range(500)}),
            "tensors declare",
        ),
        "long_name.pt": (torch_bytes({**good, "n" * 300: bias}), "has the name"),
        "number_as_name.pt": (torch_bytes({**good, 7: bias}), "has the name"),
        "control_name.pt": (
            torch_bytes({**good, "\x1b]0;title\x07\x1b[31mred\u202e": bias}),
            "cannot be told",
        ),
        "missing.pt": (torch_bytes({k: v for k, v in good.items() if k != "fc.bias"}), "--arch"),
        "scaled_classes.pt": (changed(fc__bias=torch.ones(5)), "--arch"),
        "many_tensors.safetensors": (
            safetensors.torch.save({str(i): torch.zeros(1) for i in range(10_001)}),
            "10001 tensors",
        ),
        "result_wrong_classes.pt": (
            torch_bytes({"model_name": "preactresnet18", "num_classes": 7, "model": _preact()}),
            "wrong number of classes",
        ),
        "result_torchvision.pt": (
            torch_bytes({"model_name": "resnet18", "num_classes": 4, "model": _torchvision()}),
            "layout of torchvision's ResNet",
        ),
        "result_unknown.pt": (
            torch_bytes({"model_name": "vit_b_16", "num_classes": 4, "model": {"1.w": bias}}),
            "cannot be told",
        ),
        "result_malformed.pt": (
            torch_bytes({"model_name": 3, "num_classes": "x", "model": {}}),
            "model_name",
        ),
        "result_huge_image.pt": (
            torch_bytes(
                {
                    "model_name": "preactresnet18",
                    "num_classes": 4,
                    "model": _preact(),
                    "img_size": [10**6, 10**6, 3],
                }
            ),
            "image shape",
        ),
    }


def headers() -> dict[str, tuple[bytes, str]]:
    """Safetensors files whose header is damaged or lies."""
    good = safetensors.torch.save(small_network().body.state_dict())
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "cut.safetensors": (good[:-5], "is cut off"),
        "cut_header.safetensors": (good[:100], "within its header"),
        "trailing.safetensors": (good + b"x", "bytes after its end"),
        "trailing_zip.safetensors": (good + torch_bytes({"a": 1}), "bytes after its end"),
        "long_header.safetensors": (b"\0\0\0\x7f\0\0\0\0{" + bytes(99), "header is"),
        "no_json.safetensors": (safetensors_bytes(b"{" + b"\xff" * 20), "no valid JSON"),
        "deep_json.safetensors": (safetensors_bytes(b'{"a":' + b"[" * 200_000), "no valid JSON"),
        "long_number.safetensors": (safetensors_bytes(b'{"a":' + b"9" * 9999 + b"}"), "no valid JSON"),
        "repeated.safetensors": (safetensors_bytes(b'{"a":1,"a":2}'), "given twice"),
        "no_tensors.safetensors": (safetensors_bytes({}), "no tensors"),
        "no_entry.safetensors": (safetensors_bytes({"a": 3}), "malformed"),
        "shape_lie.safetensors": (
            safetensors_bytes({"a": {**entry, "shape": [10**12]}}, bytes(8)),
            "does not fit",
        ),
        "shape_text.safetensors": (
            safetensors_bytes({"a": {**entry, "shape": ["2"]}}, bytes(8)),
            "malformed",
        ),
        "shape_negative.safetensors": (
            safetensors_bytes({"a": {**entry, "shape": [-2]}}, bytes(8)),
            "malformed",
        ),
        "shape_bool.safetensors": (
            safetensors_bytes({"a": {**entry, "shape": [True]}}, bytes(8)),
            "malformed",
        ),
        "shape_deep.safetensors": (
            safetensors_bytes({"a": {**entry, "shape": [1] * 99}}, bytes(8)),
            "malformed",
        ),
        "backwards.safetensors": (
            safetensors_bytes({"a": {**entry, "data_offsets": [8, 0]}}, bytes(8)),
            "does not fit",
        ),
        "type.safetensors": (safetensors_bytes({"a": {**entry, "dtype": "F8_E4M3"}}, bytes(8)), "F8_E4M3"),
        "type_list.safetensors": (
            safetensors_bytes({"a": {**entry, "dtype": ["F32"]}}, bytes(8)),
            "the type",
        ),
        "overlap.safetensors": (safetensors_bytes({"a": entry, "b": entry}, bytes(8)), "overlap"),
        "hole.safetensors": (
            safetensors_bytes({"a": entry, "b": {**entry, "data_offsets": [12, 20]}}, bytes(20)),
            "holes",
        ),
        "metadata_list.safetensors": (
            safetensors_bytes({"__metadata__": [], "a": entry}, bytes(8)),
            "metadata",
        ),
        "metadata_number.safetensors": (
            safetensors_bytes({"__metadata__": {"a": 1}, "a": entry}, bytes(8)),
            "metadata",
        ),
    }


def notes() -> dict[str, tuple[bytes, str]]:
    """Files of our own kind whose note is wrong."""
    network = small_network()
    right = json.loads(note_of(network.description, {}, None))

    def with_note(note: object) -> bytes:
        text = note if isinstance(note, str) else json.dumps(note)
        return safetensors.torch.save(network.body.state_dict(), {KEY: text})

    def described(**changes: Any) -> bytes:
        return with_note({**right, "description": {**right["description"], **changes}})

    return {
        "note_text.safetensors": (with_note("hello"), "no valid JSON"),
        "note_list.safetensors": (with_note([1]), "no JSON object"),
        "note_version.safetensors": (with_note({**right, "format": 2}), "another version"),
        "note_bool.safetensors": (with_note({**right, "format": True}), "another version"),
        "note_provenance.safetensors": (with_note({**right, "provenance": 3}), "lacks parts"),
        "note_mark.safetensors": (with_note({**right, "backdoored": "yes"}), "lacks parts"),
        "note_no_description.safetensors": (with_note({"format": 1, "provenance": {}}), "lacks parts"),
        "note_extra.safetensors": (described(code="import os"), "unknown ones"),
        "note_code.safetensors": (described(architecture="os:system"), "never taken from a file"),
        "note_unknown.safetensors": (described(architecture="Net\x1b[31m"), "unknown network"),
        "note_other.safetensors": (described(architecture="ResNet18"), "do not fit ResNet18|not ResNet18"),
        "note_arguments.safetensors": (described(arguments={"depth": 9}), "no argument"),
        "note_huge.safetensors": (described(arguments={"width": 10**9}), "width must be"),
        "note_wide.safetensors": (described(arguments={"width": 4096}), "do not fit"),
        "note_width_text.safetensors": (described(arguments={"width": "2"}), "width must be"),
        "note_classes.safetensors": (described(class_names=["a"]), "wrong number of classes"),
        "note_class_list.safetensors": (described(class_names="abcd"), "class names"),
        "note_class_long.safetensors": (described(class_names=["a" * 999] * 4), "class names"),
        "note_shape.safetensors": (described(image_shape=[3, 10**9, 10**9]), "image shape"),
        "note_shape_text.safetensors": (described(image_shape="3x16x16"), "image shape"),
        "note_channels.safetensors": (described(image_shape=[1, 16, 16], mean=[0.5], std=[0.5]), "channels"),
        "note_mean.safetensors": (described(mean=[0.5]), "one per channel"),
        "note_mean_nan.safetensors": (described(mean=[float("nan")] * 3), "NaN or infinite"),
        "note_std.safetensors": (described(std=[0.1, 0.1, -0.1]), "positive"),
        "note_std_tiny.safetensors": (described(std=[0.1, 0.1, 1e-300]), "positive"),
        "note_folder_code.safetensors": (
            described(architecture="HuggingFace", arguments={"config": {}, "size": "ab"}),
            "image shape",
        ),
    }


def _torchvision() -> dict[str, torch.Tensor]:
    names = ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.weight")
    return {name: torch.ones(4, 4) for name in names}


def _preact() -> dict[str, torch.Tensor]:
    description = small_description(architecture="PreActResNet18")
    return build_network(description, seed=0).body.state_dict()
