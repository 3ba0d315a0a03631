"""Image classifiers from Hugging Face folders (config.json, model.safetensors, preprocessor_config.json).

A folder from a stranger may ask transformers for far more than a network: code from the hub, downloaded
kernels, quantisation back ends, other weight files. So the files are read once, checked, and of the
configuration only the options that shape a few well-known networks are kept. transformers then loads from a
private folder that holds nothing but the very bytes that were checked.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models.huggingface_config import (
    accepted_options,
    check_patches,
    class_names_of,
    scaling_of,
    size_of,
)
from unbackdoor.models.limits import check_buffers, check_image_shape
from unbackdoor.models.safetensors_file import json_object, read_safetensors
from unbackdoor.models.stored import Stored
from unbackdoor.text import clean_text


class HuggingFace(nn.Module):
    """An image classifier of transformers as a body: normalised images to logits.

    Args:
        channels: of an image.
        classes: number of logits.
        config: the options of its configuration, `model_type` among them.
        size: height and width that it works on; other images are resized by bilinear interpolation.

    Raises:
        InputError: transformers is not installed.
        CheckpointError: an option that is not accepted, or a network that cannot be built from these.
    """

    def __init__(self, channels: int, classes: int, config: dict[str, Any], size: list[int]) -> None:
        super().__init__()
        transformers = _transformers()
        check_image_shape((channels, *size))
        self.size = (size[0], size[1])
        auto = transformers.AutoModelForImageClassification
        options = _configuration(transformers, accepted_options(config), channels, classes)
        try:
            self.model = auto.from_config(options, trust_remote_code=False).float()
        # Their code over a stranger's options: whatever it raises, the options are to blame.
        except Exception as error:
            raise CheckpointError(f"no network can be built from its configuration: {_reason(error)}") from error

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits of normalised images."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def read_folder(files: Mapping[str, bytes]) -> Stored:
    """Return what a Hugging Face folder says.

    Args:
        files: the contents of config.json, model.safetensors, and preprocessor_config.json if there is one.

    Raises:
        InputError: transformers is not installed.
        CheckpointError: a file that is damaged or refused, or weights that do not fit the configuration.
    """
    transformers = _transformers()
    raw = json_object(files["config.json"], "config.json")
    config = accepted_options(raw)
    names = class_names_of(raw)
    channels, _, _ = check_image_shape((config.get("num_channels", 3), 1, 1))
    weights, _ = read_safetensors(files["model.safetensors"])
    options = _configuration(transformers, config, channels, len(names))
    _check_size(transformers, options, sum(tensor.numel() for tensor in weights.values()))
    model, notes = _from_pretrained(transformers, options, files["model.safetensors"])

    found = files.get("preprocessor_config.json")
    preprocessor = {} if found is None else json_object(found, "preprocessor_config.json")
    size = size_of(getattr(options, "image_size", None) or preprocessor.get("crop_size") or preprocessor.get("size"))
    mean, std = scaling_of(preprocessor, channels)
    return Stored(
        format="Hugging Face folder",
        state={f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        architecture=HuggingFace.__name__,
        arguments={"config": config, "size": list(size)},
        class_names=names,
        image_shape=check_image_shape((channels, *size)),
        mean=mean,
        std=std,
        notes=tuple(notes),
    )


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "Hugging Face folders need the package transformers; install it with: pip install 'unbackdoor[hf]'"
        ) from error
    return transformers


def _configuration(transformers: ModuleType, config: dict[str, Any], channels: int, classes: int) -> Any:
    if channels != config.get("num_channels", 3):
        raise CheckpointError(f"its configuration is for {config.get('num_channels', 3)} channels, not {channels}")
    options = {name: value for name, value in config.items() if name != "model_type"}
    try:
        made = transformers.CONFIG_MAPPING[config["model_type"]](**options, num_labels=classes)
    # As in HuggingFace: their code over a stranger's options.
    except Exception as error:
        raise CheckpointError(f"its config.json is not accepted by transformers: {_reason(error)}") from error
    if hasattr(made, "image_size") and hasattr(made, "patch_size"):
        check_patches(made.image_size, made.patch_size)
    return made


def _check_size(transformers: ModuleType, options: Any, elements: int) -> None:
    """Refuse a configuration whose network has more weights than the file, before they take memory."""
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForImageClassification.from_config(options, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"no network can be built from its config.json: {_reason(error)}") from error
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > elements:
        raise CheckpointError(
            f"its config.json describes a network of {needed} weights, but model.safetensors holds {elements}"
        )
    check_buffers(model, elements)


def _from_pretrained(transformers: ModuleType, options: Any, weights: bytes) -> tuple[nn.Module, list[str]]:
    """Let transformers load the checked bytes, since it knows the names that its older versions wrote."""
    with tempfile.TemporaryDirectory(prefix="unbackdoor-") as folder:
        (Path(folder) / "model.safetensors").write_bytes(weights)
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": options.model_type}))
        try:
            with _quiet(transformers):
                model, loaded = transformers.AutoModelForImageClassification.from_pretrained(
                    folder,
                    config=options,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except Exception as error:
            raise CheckpointError(f"its weights do not fit its config.json: {_reason(error)}") from error
    absent = [str(name) for key in ("missing_keys", "mismatched_keys") for name in loaded.get(key, ())]
    if absent:
        raise CheckpointError(
            f"its weights lack {len(absent)} of the network's tensors, such as {clean_text(min(absent), 80)}"
        )
    unused = sorted(str(name) for name in loaded.get("unexpected_keys", ()))
    notes = (
        [f"{len(unused)} tensors are not part of the network, such as {clean_text(unused[0], 80)}"] if unused else []
    )
    return model.float(), notes


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Keep progress bars and load reports off the terminal: what matters of them is raised or noted."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {clean_text(str(error), 120)}".strip()
