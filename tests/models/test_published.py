"""Results of BackdoorBench load unchanged, and nothing of their data but plain numbers is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unbackdoor.errors import CheckpointError
from unbackdoor.models import build_network, load_model

from .files import assert_same_weights, rezip, small_description, torch_bytes, trained

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def backdoorbench_result(model_name: str, state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    """A result file's content, with numpy numbers and arrays where BackdoorBench leaves them."""

    def data_set(size: int) -> dict[str, Any]:
        poisoned = {
            np.int64(i): {"path": f"./bd/0/{i}.png", "other_info": [np.int64(0), i % 3]} for i in range(0, size, 7)
        }
        container = {"save_folder_path": "./bd", "data_dict": poisoned, "save_file_format": ".png"}
        return {
            "bd_data_container": container,
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(size),
            "poison_indicator": (np.arange(size) % 7 == 0).astype(float),
            "names": np.array(["a", "bc"]),
            "save_folder_path": "./bd",
        }

    return {
        "model_name": model_name,
        "num_classes": np.int64(10),
        "model": state,
        "data_path": "./data/cifar10",
        "img_size": (np.int64(32), 32, 3),
        "clean_data": "cifar10",
        "bd_train": data_set(100),
        "bd_test": data_set(50),
        **changes,
    }


@pytest.mark.parametrize("numpy_names", ["numpy._core.multiarray", "numpy.core.multiarray"])
@pytest.mark.parametrize(
    ("theirs", "ours", "width"),
    [("preactresnet18", "PreActResNet18", 8), ("vgg19_bn", "VGG19BN", 2)],
)
def test_a_backdoorbench_result_loads_unchanged(
    tmp_path: Path, numpy_names: str, theirs: str, ours: str, width: int
) -> None:
    network = trained(
        build_network(
            small_description(
                architecture=ours,
                arguments={"width": width},
                class_names=tuple("0123456789"),
                image_shape=(3, 32, 32),
            ),
            seed=0,
        )
    )
    state = network.body.state_dict()
    data = torch_bytes(backdoorbench_result(theirs, {f"module.{name}": tensor for name, tensor in state.items()}))
    old = b"numpy._core.multiarray" if b"numpy._core.multiarray" in data else b"numpy.core.multiarray"
    data = rezip(data, lambda name, content: content.replace(old, numpy_names.encode()))
    (tmp_path / "attack_result.pt").write_bytes(data)
    model = load_model(tmp_path / "attack_result.pt")
    assert_same_weights(state, model.network)
    assert model.format == "BackdoorBench result"
    description = model.network.description
    assert (description.architecture, description.arguments) == (ours, {"width": width})
    assert (description.mean, description.std) == (CIFAR_MEAN, CIFAR_STD)
    assert description.image_shape == (3, 32, 32)
    assert any("CIFAR-10" in note for note in model.notes)
    assert model.backdoored is None


def torchvision_resnet18(width: int = 4, classes: int = 10) -> dict[str, Tensor]:
    """A state dict with the names and, but for the width of 64, the shapes of torchvision's resnet18."""

    def norm(name: str, size: int) -> dict[str, Tensor]:
        parts = {part: torch.ones(size) for part in ("weight", "bias", "running_mean", "running_var")}
        parts["num_batches_tracked"] = torch.tensor(1)
        return {f"{name}.{part}": value for part, value in parts.items()}

    state = {"conv1.weight": torch.ones(width, 3, 7, 7), **norm("bn1", width)}
    inputs = width
    for layer in range(4):
        outputs = width * 2**layer
        for block in range(2):
            name = f"layer{layer + 1}.{block}"
            state |= {f"{name}.conv1.weight": torch.ones(outputs, inputs, 3, 3), **norm(f"{name}.bn1", outputs)}
            state |= {f"{name}.conv2.weight": torch.ones(outputs, outputs, 3, 3), **norm(f"{name}.bn2", outputs)}
            if inputs != outputs:
                state |= {f"{name}.downsample.0.weight": torch.ones(outputs, inputs, 1, 1)}
                state |= norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return {**state, "fc.weight": torch.ones(classes, 8 * width), "fc.bias": torch.ones(classes)}


def test_backdoorbenchs_resnet18_is_torchvisions_and_is_refused_with_what_to_do(tmp_path: Path) -> None:
    state = torchvision_resnet18()
    assert len(state) == 122, "as torchvision's has"
    (tmp_path / "result").write_bytes(torch_bytes(backdoorbench_result("resnet18", state)))
    (tmp_path / "weights").write_bytes(torch_bytes(state))
    for name in ("result", "weights"):
        with pytest.raises(CheckpointError, match=r"the layout of torchvision's ResNet .* with --arch module:function"):
            load_model(tmp_path / name)


def test_kuanglius_resnet18_is_told_by_its_shapes_whatever_it_is_called(tmp_path: Path) -> None:
    description = small_description(architecture="ResNet18", class_names=tuple("0123456789"), image_shape=(3, 32, 32))
    state = build_network(description, seed=0).body.state_dict()
    (tmp_path / "result").write_bytes(torch_bytes(backdoorbench_result("resnet18", state)))
    assert load_model(tmp_path / "result").network.description.architecture == "ResNet18"


@pytest.mark.parametrize(
    ("changes", "mean", "side"),
    [
        ({"clean_data": "gtsrb"}, (0.0, 0.0, 0.0), 32),
        ({"clean_data": "cifar100"}, (0.5071, 0.4865, 0.4409), 32),
        ({"clean_data": None, "data_path": "/somebody/cifar10/data/tiny/"}, (0.4802, 0.4481, 0.3975), 64),
        ({"clean_data": "unheard", "data_path": "./data/unheard"}, CIFAR_MEAN, 32),
    ],
)
def test_the_data_set_that_a_result_names_decides_how_images_are_scaled(
    tmp_path: Path, changes: dict[str, Any], mean: tuple[float, ...], side: int
) -> None:
    network = build_network(small_description(architecture="PreActResNet18", class_names=tuple("0123456789")), seed=0)
    result = backdoorbench_result("preactresnet18", network.body.state_dict(), **changes)
    del result["img_size"]
    torch.save(result, tmp_path / "m")
    description = load_model(tmp_path / "m").network.description
    assert description.mean == mean
    assert description.image_shape == (3, side, side)


def test_a_defence_result_without_data_loads_with_its_assumptions_noted(tmp_path: Path) -> None:
    network = build_network(small_description(architecture="PreActResNet18", class_names=tuple("0123456789")), seed=0)
    torch.save(
        {"model_name": "preactresnet18", "num_classes": 10, "model": network.body.state_dict()},
        tmp_path / "m",
    )
    model = load_model(tmp_path / "m")
    assert_same_weights(network.body.state_dict(), model.network)
    assert any("assumed that of CIFAR-10" in note for note in model.notes)


def test_numpy_itself_is_never_reached_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(small_description(architecture="PreActResNet18", class_names=tuple("0123456789")), seed=0)
    torch.save(backdoorbench_result("preactresnet18", network.body.state_dict()), tmp_path / "m")

    def reached(*arguments: object) -> None:
        raise AssertionError("numpy was called")

    import numpy._core.multiarray as multiarray

    for name in ("scalar", "_reconstruct"):
        monkeypatch.setattr(multiarray, name, reached)
    before = set(torch.serialization.get_safe_globals())
    load_model(tmp_path / "m")
    assert set(torch.serialization.get_safe_globals()) == before
