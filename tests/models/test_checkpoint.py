"""What is saved is what is loaded, in every format; what is not in the file is asked for or noted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from unbackdoor.errors import CheckpointError, InputError, OutputError
from unbackdoor.models import build_network, load_model, save_model
from unbackdoor.models.metadata import KEY
from unbackdoor.models.safetensors_file import read_safetensors, write_safetensors

from .files import assert_same_weights, small_description, small_network, torch_bytes, trained

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def test_a_saved_network_comes_back_bit_for_bit_with_all_that_was_said_of_it(tmp_path: Path) -> None:
    network = trained(small_network(class_names=("cat", "ship 🚢", "<b>", "ö")))
    provenance = {"method": "sau", "parent": "ab" * 32, "epochs": 3, "nested": {"x": [1, None]}}
    mark = {"attack": "badnets", "target": 0}
    digest = save_model(tmp_path / "m.safetensors", network, provenance=provenance, backdoored=mark)
    model = load_model(tmp_path / "m.safetensors")
    assert_same_weights(network.body.state_dict(), model.network)
    assert model.network.description == network.description
    assert model.network.description.image_shape == (3, 16, 16)
    assert model.provenance == provenance
    assert model.backdoored == mark
    assert model.format == "unbackdoor safetensors"
    assert model.notes == ()
    assert model.sha256 == digest == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert not model.network.training
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.network(images), network(images))


@pytest.mark.parametrize("name", ["PreActResNet18", "ResNet18", "VGG19BN", "WRN16x1"])
def test_every_network_survives_saving_in_our_format_and_in_pytorchs(tmp_path: Path, name: str) -> None:
    network = trained(build_network(small_description(architecture=name, image_shape=(3, 32, 32)), seed=2))
    save_model(tmp_path / "ours", network, provenance={})
    torch.save(network.body.state_dict(), tmp_path / "theirs")
    assert_same_weights(network.body.state_dict(), load_model(tmp_path / "ours").network)
    foreign = load_model(tmp_path / "theirs")
    assert_same_weights(network.body.state_dict(), foreign.network)
    assert foreign.network.description.architecture == name
    assert foreign.network.description.arguments == {"width": 2}
    assert f"architecture guessed from the shapes: {name}, width 2" in foreign.notes


def test_half_a_character_in_a_class_name_survives(tmp_path: Path) -> None:
    """Python gives them to names of folders that are no UTF-8, such as those in Latin-1."""
    names = ("caf\udce9", "ship 🚢", "c", "d")
    save_model(tmp_path / "m", small_network(class_names=names), provenance={"source": "caf\udce9"})
    model = load_model(tmp_path / "m")
    assert model.network.description.class_names == names
    assert model.provenance == {"source": "caf\udce9"}


def test_the_collections_of_a_training_checkpoint_do_not_stand_in_the_way(tmp_path: Path) -> None:
    network = small_network()
    extras = {
        "milestones": Counter({30: 1, 60: 1}),
        "seen": {1, 2, 3},
        "order": OrderedDict([("a", [(1, 2)]), ("b", {"c": ((1,), 2)})]),
        "random": (3, tuple(range(625)), None, 2**127),
        "scores": {np.int64(3): np.float64(0.5), np.int64(4): np.float64(0.25)},
        "empty": [(), {}, [], None, True, set()],
    }
    torch.save({"state_dict": network.body.state_dict(), **extras}, tmp_path / "m")
    assert_same_weights(network.body.state_dict(), load_model(tmp_path / "m").network)


def nested(depth: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(depth):
        content = [content]
    return content


@pytest.mark.parametrize("strange", ["x" * 4_000_000, ["\ud800"] * 200_000, nested(980), {"loss": float("nan")}])
def test_whatever_the_parent_said_of_itself_the_repaired_model_can_be_read(tmp_path: Path, strange: Any) -> None:
    provenance = {"parent": "ab" * 32, "parent_provenance": {"strange": strange}}
    save_model(tmp_path / "m", small_network(), provenance=provenance, backdoored={"note": strange, "repaired": True})
    model = load_model(tmp_path / "m")
    assert model.provenance["parent"] == "ab" * 32
    assert model.backdoored is not None
    assert model.backdoored["repaired"] is True


def test_the_most_and_longest_class_names_that_are_built_can_be_read_again(tmp_path: Path) -> None:
    names = ('"' * 250,) * 2000
    save_model(tmp_path / "m", small_network(class_names=names), provenance={"a": '"' * 200_000})
    assert load_model(tmp_path / "m").network.description.class_names == names


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    network = small_network()
    network.description = replace(network.description, class_names=("a" * 300, "b", "c", "d"))
    with pytest.raises(OutputError, match="could not be read again: its class names must be texts of at most 256"):
        save_model(tmp_path / "m", network, provenance={})
    assert list(tmp_path.iterdir()) == []


def test_the_mark_of_a_backdoored_model_can_be_read_by_other_programs(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_network(), provenance={}, backdoored={"attack": "badnets"})
    with safe_open(tmp_path / "m", "pt") as file:
        assert '"backdoored": {"attack": "badnets"}' in file.metadata()["unbackdoor"]
    save_model(tmp_path / "m", small_network(), provenance={})
    assert load_model(tmp_path / "m").backdoored is None


def test_saving_is_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "m", small_network(), provenance={"version": 1})

    def disk_full(path: Path, payload: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(tmp_path / "m", small_network(), provenance={"version": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert load_model(tmp_path / "m").provenance == {"version": 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_other_float_types_load_as_float32(tmp_path: Path, dtype: torch.dtype, format: str) -> None:
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in trained(small_network()).body.state_dict().items()
    }
    data = safetensors.torch.save(state) if format == "safetensors" else torch_bytes(state)
    (tmp_path / "m").write_bytes(data)
    assert_same_weights(state, load_model(tmp_path / "m").network)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "body.", "_orig_mod.", "module._orig_mod.body."])
def test_state_dicts_are_found_below_their_keys_and_wrappers(tmp_path: Path, key: str | None, prefix: str) -> None:
    state = trained(small_network()).body.state_dict()
    wrapped: Any = OrderedDict((prefix + name, tensor) for name, tensor in state.items())
    if key is not None:
        wrapped = {
            key: wrapped,
            "epoch": np.int64(7),
            "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)},
            "best": np.float32(0.5),
        }
    torch.save(wrapped, tmp_path / "m")
    model = load_model(tmp_path / "m")
    assert model.format == "PyTorch state dict"
    assert_same_weights(state, model.network)


def test_parameters_shared_tensors_and_slices_load(tmp_path: Path) -> None:
    state = dict(small_network().body.state_dict())
    state["fc.weight"] = torch.nn.Parameter(state["fc.weight"])
    state["bn1.weight"] = torch.arange(20.0)[5:13]
    state["bn1.bias"] = state["bn1.weight"]
    torch.save(state, tmp_path / "m")
    assert_same_weights(state, load_model(tmp_path / "m").network)


def test_a_network_saved_whole_by_its_own_state_dict_loads(tmp_path: Path) -> None:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "m")
    assert_same_weights(network.body.state_dict(), load_model(tmp_path / "m").network)


@pytest.mark.parametrize("name", ["model.pkl", "model.onnx", "model", "model.pt"])
def test_the_name_of_a_file_does_not_matter(tmp_path: Path, name: str) -> None:
    save_model(tmp_path / name, small_network(), provenance={})
    assert load_model(tmp_path / name).format == "unbackdoor safetensors"


def test_a_safetensors_file_that_begins_like_a_pickle_loads(tmp_path: Path) -> None:
    # A benign look-alike: a header of 0x??80 bytes begins with 0x80, the first byte of a pickle.
    state = small_network().body.state_dict()
    for padding in range(4096):
        data = safetensors.torch.save(state, {"pad": "x" * padding})
        if data[0] == 0x80:
            break
    assert data[0] == 0x80
    (tmp_path / "m").write_bytes(data)
    assert load_model(tmp_path / "m").format == "safetensors"


def test_names_that_look_malicious_are_only_names(tmp_path: Path) -> None:
    network = small_network(class_names=("os.system", "__reduce__", "cos\nsystem", "eval"))
    save_model(tmp_path / "m", network, provenance={"note": "posix.system torch.jit"})
    assert load_model(tmp_path / "m").network.description.class_names[2] == "cos\nsystem"


# What the file does not say


def test_what_is_assumed_is_noted_and_what_is_said_is_not(tmp_path: Path) -> None:
    torch.save(small_network(class_names=tuple("0123456789")).body.state_dict(), tmp_path / "m")
    assumed = load_model(tmp_path / "m")
    assert len(assumed.notes) == 3
    assert any("assumed that of CIFAR-10" in note for note in assumed.notes)
    assert any("assumed 32 x 32" in note for note in assumed.notes)
    description = assumed.network.description
    assert (description.mean, description.std, description.image_shape) == (
        CIFAR_MEAN,
        CIFAR_STD,
        (3, 32, 32),
    )
    assert description.class_names[9] == "class 9"

    names = [f"digit {i}" for i in range(10)]
    said = load_model(
        tmp_path / "m",
        arch="WRN16x1",
        classes=names,
        mean=[0.1, 0.2, 0.3],
        std=(1, 2, 3),
        image_shape=[3, 24, 20],
    )
    assert said.notes == ()
    description = said.network.description
    assert (description.mean, description.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (description.class_names, description.image_shape) == (tuple(names), (3, 24, 20))


def test_the_users_word_counts_more_than_the_files(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_network(), provenance={})
    model = load_model(tmp_path / "m", classes=list("wxyz"), mean=(0, 0, 0), std=(1, 1, 1), image_shape=(3, 20, 20))
    assert model.network.description == small_description(
        class_names=tuple("wxyz"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), image_shape=(3, 20, 20)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["a", "b"]}, r"wrong number of classes \(.*last layer: 4, the classes given: 2\)"),
        ({"image_shape": (1, 16, 16), "mean": (0.5,), "std": (0.5,)}, "images of 3 channels, not 1"),
        ({"mean": (0.5,), "std": (0.5,)}, "have 1 values, but its images have 3 channels"),
        (
            {"arch": "PreActResNet18"},
            "do not fit PreActResNet18: there are no conv1.weight and linear.weight",
        ),
        (
            {"arguments": {"width": 3}},
            r"of another shape \(conv1.weight \(2, 3, 3, 3\) instead of \(3, 3, 3, 3\)",
        ),
    ],
)
def test_what_does_not_fit_the_weights_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    torch.save(small_network().body.state_dict(), tmp_path / "m")
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "m", **options)


def test_missing_and_unexpected_tensors_are_summed_up_with_the_first_two_names(tmp_path: Path) -> None:
    state = small_network().body.state_dict()
    for name in ("fc.bias", "fc.weight", "bn1.bias"):
        state["old_" + name] = state.pop(name)
    torch.save(state, tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "m", arch="WRN16x1", arguments={"width": 2}, classes=list("abcd"))
    assert "3 missing (bn1.bias, fc.weight, ...); 3 unexpected (old_fc.bias, old_fc.weight, ...)" in str(caught.value)


# The user's own code


def test_code_is_taken_from_the_user_and_never_from_the_file(tmp_path: Path, user_module: str) -> None:
    import sys

    description = small_description(architecture=f"{user_module}:tiny", arguments={"hidden": 6})
    network = build_network(description, seed=0)
    save_model(tmp_path / "m", network, provenance={})
    sys.modules.pop(user_module)
    with pytest.raises(CheckpointError, match=r"code is never taken from a file.*--arch"):
        load_model(tmp_path / "m")
    assert user_module not in sys.modules
    # The file's arguments are not handed to the user's code: with its own default the weights do not fit.
    with pytest.raises(CheckpointError, match="do not fit user_networks:tiny"):
        load_model(tmp_path / "m", arch=f"{user_module}:tiny")
    model = load_model(tmp_path / "m", arch=f"{user_module}:tiny", arguments={"hidden": 6})
    assert_same_weights(network.body.state_dict(), model.network)
    assert any("code is the user's" in note for note in model.notes)


def test_bare_weights_of_the_users_network_need_the_number_of_classes(tmp_path: Path, user_module: str) -> None:
    network = build_network(small_description(architecture=f"{user_module}:tiny", arguments={}), seed=0)
    torch.save(network.body.state_dict(), tmp_path / "m")
    with pytest.raises(CheckpointError, match="number of classes is not in the file"):
        load_model(tmp_path / "m", arch=f"{user_module}:tiny")
    model = load_model(tmp_path / "m", arch=f"{user_module}:tiny", classes=list("abcd"))
    assert_same_weights(network.body.state_dict(), model.network)


def test_a_network_of_the_users_that_puts_out_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_networks.py").write_text(
        """
from torch import nn
def image(channels, classes):
    return nn.Conv2d(channels, classes, 1)
def fussy(channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in (
        ("image", r"puts out \(4, 4, 32, 32\) for 4 images"),
        ("fussy", "cannot classify an image of 3 x 32 x 32"),
    ):
        network = build_network(small_description(architecture=f"odd_networks:{name}", arguments={}), seed=0)
        torch.save(network.body.state_dict(), tmp_path / "m")
        with pytest.raises(CheckpointError, match=words):
            load_model(tmp_path / "m", arch=f"odd_networks:{name}", classes=list("abcd"))


def test_the_users_mistake_in_the_arguments_is_the_users_and_the_files_is_the_files(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_network(), provenance={})
    with pytest.raises(InputError, match="no argument"):
        load_model(tmp_path / "m", arguments={"depth": 3})


def test_a_model_that_answers_to_grey_images_alone_is_refused(tmp_path: Path) -> None:
    """Grey becomes 0 by its normalisation, whatever the weights are."""
    network = small_network(mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    with torch.no_grad():
        first = next(parameter for parameter in network.parameters() if parameter.ndim == 4)
        first.copy_(3e38 * torch.sign(first))
        assert network(torch.full((1, 3, 16, 16), 0.5)).isfinite().all()
    save_model(tmp_path / "m", network, provenance={})
    with pytest.raises(CheckpointError, match="outputs are NaN or infinite"):
        load_model(tmp_path / "m")


def test_a_normalisation_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_network(), provenance={})
    state, metadata = read_safetensors((tmp_path / "m").read_bytes())
    note = json.loads(metadata[KEY])
    note["description"]["mean"][0] = 10**400
    (tmp_path / "m").write_bytes(write_safetensors(state, {KEY: json.dumps(note)}))
    with pytest.raises(CheckpointError, match="mean holds a number beyond all floats"):
        load_model(tmp_path / "m")
