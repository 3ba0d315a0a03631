"""What may stand in the JSON files of a Hugging Face folder, and what they say of images and classes."""

from __future__ import annotations

import math
from typing import Any

from unbackdoor.errors import CheckpointError
from unbackdoor.limits import MAX_CLASSES, MAX_IMAGE_SIDE
from unbackdoor.models.limits import check_class_names, check_image_shape, check_scaling
from unbackdoor.text import clean_text

_MODEL_TYPES = frozenset(
    {"vit", "deit", "beit", "dinov2", "convnext", "convnextv2", "resnet", "regnet", "swin", "swinv2"}
)
# The options that shape these networks. What is not here is dropped: transformers has a default for it.
_OPTIONS = frozenset(
    {
        "architectures", "attention_probs_dropout_prob", "depths", "downsample_in_bottleneck",
        "downsample_in_first_stage", "drop_path_rate", "embed_dim", "embedding_size", "encoder_stride",
        "groups_width", "hidden_act", "hidden_dropout_prob", "hidden_size", "hidden_sizes", "image_size",
        "initializer_range", "intermediate_size", "layer_norm_eps", "layer_scale_init_value", "layer_type",
        "layerscale_value", "mlp_ratio", "model_type", "num_attention_heads", "num_channels", "num_heads",
        "num_hidden_layers", "num_stages", "patch_size", "pooler_act", "pooler_output_size",
        "pretrained_window_sizes", "qkv_bias", "use_absolute_embeddings",
        "use_absolute_position_embeddings", "use_mask_token", "use_mean_pooling",
        "use_relative_position_bias", "use_shared_relative_position_bias", "use_swiglu_ffn", "window_size",
    }
)  # fmt: skip
# Options that ask for somebody else's code or files. Dropping them could change what the model does: refuse.
_DANGEROUS = ("auto_map", "custom_pipelines", "quantization_config", "transformers_weights")
_MAX_NUMBER = 65_536
# ConvNeXt has 36 blocks and ResNet-152 has 50.
_MAX_LAYERS = 128
# Tables of positions have window_size^4 entries in Swin, which the file of weights does not have to hold. Published
# ones have windows of 24 at most.
_MAX_WINDOW = 64
# ViT-H at 518 pixels has 1,369 patches, ConvNeXt and Swin at 384 pixels have 9,216.
_MAX_PATCHES = 16_384


def accepted_options(config: object) -> dict[str, Any]:
    """Return those options of a configuration that shape a network, each checked.

    Raises:
        CheckpointError: a type of network that is not known, an option that asks for code, or a value out of
            range.
    """
    if not isinstance(config, dict):
        raise CheckpointError("its configuration must be a table of options; save the model again")
    for option in _DANGEROUS:
        if config.get(option) is not None:
            raise CheckpointError(
                f"its config.json asks for code or files beyond the weights ({option}); such models are"
                " refused: save it with a network that transformers ships, without quantisation"
            )
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _MODEL_TYPES:
        known = ", ".join(sorted(_MODEL_TYPES))
        raise CheckpointError(f"its config.json names the type {clean_text(str(kind), 40)!r} (known: {known})")
    kept = {name: value for name, value in config.items() if name in _OPTIONS}
    for name, value in kept.items():
        _check_option(name, value)
    return kept


def _check_option(name: str, value: object) -> None:
    values = value if isinstance(value, list) else [value]
    for one in values:
        right = one is None or isinstance(one, bool) or (isinstance(one, str) and len(one) <= 64)
        right = right or (type(one) is int and 0 <= one <= _MAX_NUMBER)
        right = right or (isinstance(one, float) and math.isfinite(one) and abs(one) <= _MAX_NUMBER)
        if not right:
            raise CheckpointError(f"its config.json has {name} = {clean_text(str(one), 40)}, which is not accepted")
    numbers = [one for one in values if isinstance(one, (int, float))]
    if len(values) > _MAX_LAYERS or (name in {"num_hidden_layers", "depths"} and sum(numbers) > _MAX_LAYERS):
        raise CheckpointError(f"its config.json asks for more than {_MAX_LAYERS} layers ({name})")
    if name in {"image_size", "patch_size"} and any(number > MAX_IMAGE_SIDE for number in numbers):
        raise CheckpointError(f"its config.json has {name} above {MAX_IMAGE_SIDE} pixels")
    if name in {"window_size", "pretrained_window_sizes"} and any(number > _MAX_WINDOW for number in numbers):
        raise CheckpointError(f"its config.json has {name} above {_MAX_WINDOW} patches")


def check_patches(image: object, patch: object) -> None:
    """Refuse a division of images into so many patches that attention among them would take all memory.

    Args:
        image: the side, or height and width, of an image, as transformers understood the configuration.
        patch: of a patch.
    """
    sides = [side if isinstance(side, (list, tuple)) else (side, side) for side in (image, patch)]
    if any(len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair) for pair in sides):
        raise CheckpointError("its config.json must have image_size and patch_size of one or two whole numbers")
    patches = math.prod(whole // part for whole, part in zip(*sides, strict=True))
    if patches > _MAX_PATCHES:
        raise CheckpointError(f"its config.json divides an image into {patches} patches, more than {_MAX_PATCHES}")


def class_names_of(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the labels in the order of the outputs."""
    labels = config.get("id2label")
    if labels is None:
        # The number that transformers itself falls back to.
        classes = config.get("num_labels", 2)
        if type(classes) is not int or not 1 <= classes <= MAX_CLASSES:
            raise CheckpointError(f"its config.json must have num_labels from 1 to {MAX_CLASSES}")
        return tuple(f"class {i}" for i in range(classes))
    numbers = [str(i) for i in range(len(labels))] if isinstance(labels, dict) else []
    if not isinstance(labels, dict) or set(labels) != set(numbers):
        raise CheckpointError("its config.json must number the classes in id2label from 0 without gaps")
    return check_class_names([labels[number] for number in numbers])


def size_of(size: object) -> tuple[int, int]:
    """Return height and width as a configuration or preprocessor writes them; 224 if neither does."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    if size is None:
        return 224, 224
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    _, height, width = check_image_shape((1, *sides))
    return height, width


def scaling_of(
    preprocessor: dict[str, Any], channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std for images in [0, 1], or None if the preprocessor does not say.

    The preprocessor multiplies pixels from 0 to 255 by a factor before it normalises; it is 1/255 as a rule.
    """
    wanted = preprocessor.get("do_normalize", True)
    # Where the figures are absent, each type of preprocessor has its own defaults.
    if not preprocessor or (wanted and not {"image_mean", "image_std"} <= preprocessor.keys()):
        return None, None
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    if not isinstance(factor, (int, float)) or not 1e-6 < factor < 1e3:
        raise CheckpointError("its preprocessor_config.json has a rescale_factor out of range")
    mean = preprocessor["image_mean"] if wanted else [0.0] * channels
    std = preprocessor["image_std"] if wanted else [1.0] * channels
    checked_mean, checked_std = check_scaling(mean, std, channels)
    # Rounded where the factor is 1/255 written with a few digits less, so that 0.5 stays 0.5.
    unit = 1.0 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
    return tuple(value / unit for value in checked_mean), tuple(value / unit for value in checked_std)
