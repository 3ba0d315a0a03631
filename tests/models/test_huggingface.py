"""Hugging Face folders give transformers' own logits, and get nothing from it but a network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models import load_model, save_model, tapped
from unbackdoor.models.build import build_body
from unbackdoor.models.fit import fit

transformers = pytest.importorskip("transformers")

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 32, "patch_size": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "image_size": 32},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 32,
             "patch_size": 4},
}  # fmt: skip
LABELS = {0: "cat", 1: "dog", 2: "ship"}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    made = {}
    for kind, options in SMALL.items():
        torch.manual_seed(1)
        config = transformers.CONFIG_MAPPING[kind](**options, id2label=LABELS)
        model = transformers.AutoModelForImageClassification.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Fresh heads are zero or tiny; then equal logits would prove nothing.
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(kind) / "model"
        model.save_pretrained(folder)
        preprocessor = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        made[kind] = (folder, model)
    return made


@pytest.fixture
def edit(originals: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> Callable[..., Path]:
    """Copy the ViT's folder, with some entries of its JSON files changed."""

    def copy(config: dict[str, Any] | None = None, preprocessor: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(originals["vit"][0], folder)
        for name, changes in (("config.json", config), ("preprocessor_config.json", preprocessor)):
            content = json.loads((folder / name).read_text()) | (changes or {})
            content = {key: value for key, value in content.items() if value is not None}
            (folder / name).write_text(json.dumps(content))
        return folder

    return copy


@pytest.mark.parametrize("kind", SMALL)
def test_logits_are_those_of_transformers(originals: dict[str, tuple[Path, nn.Module]], kind: str) -> None:
    folder, original = originals[kind]
    model = load_model(folder)
    images = torch.rand(2, 3, 32, 32)
    scaled = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        wanted = original(pixel_values=scaled).logits
        assert torch.allclose(model.network(images), wanted, atol=1e-6)
    assert float(wanted.std()) > 0.01
    assert model.format == "Hugging Face folder"
    description = model.network.description
    assert description.class_names == ("cat", "dog", "ship")
    assert description.image_shape == (3, 32, 32)
    assert model.notes == ()
    assert not model.network.training


@pytest.mark.parametrize("kind", SMALL)
def test_the_model_survives_saving_in_our_format(
    originals: dict[str, tuple[Path, nn.Module]], tmp_path: Path, kind: str
) -> None:
    first = load_model(originals[kind][0]).network
    save_model(tmp_path / "m", first, provenance={"method": "none"})
    second = load_model(tmp_path / "m").network
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(first(images), second(images))
    assert second.description == first.description


def test_images_of_another_size_are_resized_within_the_body(
    originals: dict[str, tuple[Path, nn.Module]],
) -> None:
    network = load_model(originals["vit"][0]).network
    images = torch.rand(2, 3, 16, 16)
    larger = F.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(network(images), network(larger), atol=1e-5)


def test_features_can_be_tapped(originals: dict[str, tuple[Path, nn.Module]]) -> None:
    network = load_model(originals["vit"][0]).network
    with tapped(network, "model.classifier") as features:
        logits = network(torch.rand(2, 3, 32, 32))
    assert torch.equal(features["model.classifier"], logits)


def test_half_precision_weights_become_float32(originals: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(originals["vit"][0], folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    halves = {name: tensor.half() for name, tensor in weights.items()}
    safetensors.torch.save_file(halves, folder / "model.safetensors")
    state = load_model(folder).network.body.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["model.classifier.weight"], halves["classifier.weight"].float())


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        ({"do_normalize": False}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ({"rescale_factor": 0.00392156862745098}, tuple(MEAN), tuple(STD)),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
            (0.5,) * 3,
            (0.5,) * 3,
        ),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [255.0] * 3}, (0.5,) * 3, (1.0,) * 3),
    ],
)
def test_the_preprocessor_decides_the_normalisation(
    edit: Callable[..., Path], preprocessor: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    description = load_model(edit(preprocessor=preprocessor)).network.description
    assert description.mean == pytest.approx(mean)
    assert description.std == pytest.approx(std)


def test_without_a_preprocessor_the_normalisation_is_assumed_and_noted(edit: Callable[..., Path]) -> None:
    folder = edit()
    (folder / "preprocessor_config.json").unlink()
    model = load_model(folder)
    assert model.network.description.mean == (0.0, 0.0, 0.0)
    assert any("does not tell how images were normalised" in note for note in model.notes)
    assert load_model(folder, mean=MEAN, std=STD).notes == ()


def test_the_hash_covers_every_file_that_was_read(edit: Callable[..., Path]) -> None:
    folder = edit()
    first = load_model(folder).sha256
    assert load_model(folder).sha256 == first
    (folder / "unread.txt").write_text("x")
    assert load_model(folder).sha256 == first
    content = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(content + " ")
    assert load_model(folder).sha256 != first


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "evil.Net"}}, r"asks for code.*auto_map"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"transformers_weights": "../other.safetensors"}, "transformers_weights"),
        ({"model_type": "timm_wrapper"}, "names the type 'timm_wrapper'"),
        ({"model_type": ["vit"]}, "names the type"),
        ({"model_type": "\x1b[31mvit"}, "names the type"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000"),
        ({"hidden_size": "big"}, "not accepted|no network|do not fit"),
        ({"hidden_size": 60_000}, "describes a network of"),
        ({"hidden_size": 8}, "do not fit|lack"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": 129}, "more than 128 layers"),
        ({"num_hidden_layers": 3}, "describes a network of|lack"),
        ({"patch_size": 0}, "whole numbers"),
        ({"image_size": 5000}, "image_size above"),
        ({"hidden_act": "os.system"}, "no network|not accepted"),
        ({"num_channels": 1000}, "image shape"),
        ({"num_channels": "3"}, "image shape"),
        ({"id2label": {"0": "a", "2": "b"}}, "without gaps"),
        ({"id2label": ["a"]}, "without gaps"),
        ({"id2label": {"0": "a", "1": 5, "2": "c"}}, "class names"),
        ({"id2label": {"0": "a", "1": "b"}}, "do not fit|lack"),
    ],
)
def test_configurations_that_ask_for_too_much_are_refused(
    edit: Callable[..., Path], config: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(edit(config=config))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"window_size": 65}, "window_size above 64"),
        ({"window_size": 65_536}, "window_size above 64"),
        ({"pretrained_window_sizes": [0, 65_536]}, "pretrained_window_sizes above 64"),
        ({"image_size": 1024, "patch_size": 1}, "into 1048576 patches"),
        ({"image_size": [1024, 1024], "patch_size": 4}, "into 65536 patches"),
        ({"window_size": 64, "image_size": 1024, "patch_size": 8}, "tables of [0-9]+ entries"),
    ],
)
def test_a_small_folder_cannot_ask_for_large_tables(
    originals: dict[str, tuple[Path, nn.Module]], tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    """Swin's tables of positions are no weights: window_size^4 entries would be made for a folder of 0.6 MB."""
    folder = tmp_path / "copy"
    shutil.copytree(originals["swin"][0], folder)
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    if "tables" in words:
        # With enough weights for the larger window, so that only the tables are too many.
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        safetensors.torch.save_file({**weights, "more": torch.zeros(10**5)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


def test_a_small_file_of_ours_cannot_ask_for_large_tables_either(
    originals: dict[str, tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    network = load_model(originals["swin"][0]).network
    config = {**network.description.arguments["config"], "window_size": 64, "image_size": 512, "depths": [2, 2]}
    arguments = {"config": config, "size": [512, 512]}
    with torch.device("meta"):
        larger = build_body(replace(network.description, arguments=arguments))
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in larger.state_dict().items()}
    with pytest.raises(CheckpointError, match="tables of"):
        fit(replace(network.description, arguments=arguments), state, trusted=False)


def test_options_that_could_fetch_code_or_kernels_are_dropped(
    edit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_network)
    folder = edit(
        config={
            "_attn_implementation": "somebody/evil-kernel",
            "attn_implementation": "somebody/evil-kernel",
            "_name_or_path": "somebody/else",
            "torchscript": True,
            "backbone": "hub/model",
        }
    )
    (folder / "modeling_evil.py").write_text("raise SystemExit('code from the folder ran')")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    network = load_model(folder).network
    assert "_attn_implementation" not in network.description.arguments["config"]
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_pickled_weights_beside_the_safetensors_are_not_read(edit: Callable[..., Path]) -> None:
    folder = edit()
    plain = load_model(folder).sha256
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert load_model(folder).sha256 == plain


@pytest.mark.parametrize("absent", ["vit.embeddings.cls_token", "classifier.weight"])
def test_missing_weights_are_refused_and_not_filled_by_chance(edit: Callable[..., Path], absent: str) -> None:
    folder = edit()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    lost = weights.pop(absent)
    # As many numbers as before, so that the count alone does not tell.
    weights["other"] = torch.zeros_like(lost)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lack 1 of the network's tensors, such as {absent}"):
        load_model(folder)


def test_unused_weights_are_noted(edit: Callable[..., Path]) -> None:
    folder = edit()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({**weights, "pooler.extra": torch.zeros(2)}, folder / "model.safetensors")
    assert any(
        "1 tensors are not part of the network, such as pooler.extra" in note for note in load_model(folder).notes
    )


def test_nan_weights_are_refused(edit: Callable[..., Path]) -> None:
    folder = edit()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN weights: model\.classifier\.bias"):
        load_model(folder)


def test_nothing_is_printed(edit: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = edit()
    capfd.readouterr()
    load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_without_transformers_the_extra_is_named(edit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    folder = edit()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"unbackdoor\[hf\]"):
        load_model(folder)
