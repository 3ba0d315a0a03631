"""How others publish image models: nested state dicts, BackdoorBench's results, well-known data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unbackdoor.errors import CheckpointError
from unbackdoor.limits import MAX_CLASSES
from unbackdoor.models.limits import check_image_shape, check_tensors, unwrap_names
from unbackdoor.models.stored import Stored
from unbackdoor.text import clean_text


@dataclass(frozen=True)
class DataSetFacts:
    """How the models that others publish for a data set scale its images.

    Attributes:
        title: for notes.
        classes: number of classes.
        side: height and width in pixels.
        mean: per channel, pixel units.
        std: per channel, pixel units.
    """

    title: str
    classes: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


# BackdoorBench's names and figures; where its code divides by 1 and subtracts 0, so do we.
DATA_SETS = {
    "cifar100": DataSetFacts("CIFAR-100", 100, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": DataSetFacts("CIFAR-10", 10, 32, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "gtsrb": DataSetFacts("GTSRB", 43, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny": DataSetFacts("Tiny ImageNet", 200, 64, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "celeba": DataSetFacts("CelebA", 8, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "mnist": DataSetFacts("MNIST", 10, 28, (0.5,), (0.5,)),
}

# BackdoorBench's `resnet18` is torchvision's, which is not our ResNet18.
_ARCHITECTURES = {"preactresnet18": "PreActResNet18", "vgg19_bn": "VGG19BN"}
_NESTED = ("state_dict", "model", "net", "model_state_dict")
_RESULT_KEYS = frozenset({"model_name", "num_classes", "model"})


def known_data_set(classes: int, channels: int) -> DataSetFacts | None:
    """Return the data set that a model of unknown origin was most likely trained on, or None."""
    fitting = (one for one in DATA_SETS.values() if (one.classes, len(one.mean)) == (classes, channels))
    return next(fitting, None)


def read_published(content: object) -> Stored:
    """Return what a PyTorch file of somebody else's says.

    Args:
        content: a state dict, alone or within a dictionary, or a result of BackdoorBench.

    Raises:
        CheckpointError: there is no state dict in it, or more than one, or a tensor that is refused.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"it holds {_kind(content)} instead of a dictionary of weights; save model.state_dict()")
    # A dictionary from a file may carry attributes of its own (even one called "items"), so the class is
    # asked.
    entries = dict(dict.items(content))
    if entries.keys() >= _RESULT_KEYS:
        return _backdoorbench(entries)
    if entries and all(isinstance(value, Tensor) for value in entries.values()):
        return Stored(format="PyTorch state dict", state=_state(entries))
    nested = [key for key in _NESTED if isinstance(entries.get(key), dict)]
    if len(nested) != 1:
        found = f"several ({', '.join(nested)})" if nested else f"none among {', '.join(_NESTED)}"
        names = ", ".join(clean_text(str(key), 30) for key in list(entries)[:5] if isinstance(key, str))
        raise CheckpointError(
            f"it must hold one dictionary of weights, but has {found} (its entries: {names or 'none'});"
            " save model.state_dict()"
        )
    return Stored(format="PyTorch state dict", state=_state(entries[nested[0]]))


def _state(weights: dict[Any, Any]) -> dict[str, Tensor]:
    return unwrap_names(check_tensors(dict(dict.items(weights))))


def _backdoorbench(entries: dict[Any, Any]) -> Stored:
    """Return the weights of a BackdoorBench result, and what is known of its data; the rest is dropped."""
    model_name, classes, weights = (entries[key] for key in ("model_name", "num_classes", "model"))
    if not isinstance(model_name, str) or type(classes) is not int or not 1 <= classes <= MAX_CLASSES:
        raise CheckpointError("its model_name and num_classes must be a text and a number, as BackdoorBench writes")
    if not isinstance(weights, dict):
        raise CheckpointError(f"its entry 'model' is {_kind(weights)} instead of a dictionary of weights")
    notes = [
        f"BackdoorBench result for {clean_text(model_name, 40)}; only the weights were kept, and its"
        " records of poisoned images were dropped"
    ]
    size = entries.get("img_size")
    shape = None
    if isinstance(size, (list, tuple)) and len(size) == 3:
        shape = check_image_shape((size[2], size[0], size[1]))
    facts = _facts(entries.get("clean_data")) or _facts(entries.get("data_path"))
    if facts is not None:
        notes.append(f"images are scaled as BackdoorBench does for {facts.title}")
    known = _ARCHITECTURES.get(model_name)
    if known is None:
        notes.append(f"BackdoorBench's {clean_text(model_name, 40)} is not one of the networks known by name")
    return Stored(
        format="BackdoorBench result",
        state=_state(weights),
        architecture=known,
        classes=classes,
        image_shape=shape or (None if facts is None else (len(facts.mean), facts.side, facts.side)),
        mean=None if facts is None else facts.mean,
        std=None if facts is None else facts.std,
        notes=tuple(notes),
    )


def _facts(where: object) -> DataSetFacts | None:
    """Return the data set that a name or a path such as "./data/cifar10" speaks of."""
    if not isinstance(where, str):
        return None
    last = where.lower().replace("\\", "/").rstrip("/").rpartition("/")[2]
    return next((facts for name, facts in DATA_SETS.items() if name in last), None)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if isinstance(value, (list, tuple, str, int, float)) else "another object"
