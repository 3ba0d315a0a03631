"""Grad-CAM: which part of an image speaks for the answer.

Selvaraju and others, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (ICCV 2017),
as captum computes it: each feature map A_k is weighted by the mean gradient of the answer's logit,

    alpha_k = mean over positions of d y / d A_k,    L = ReLU(sum over k of alpha_k A_k),

and L is stretched to the size of the image. In a backdoored model L lies on the trigger, wherever the object is. The
last feature map of small networks has 4 x 4 positions, so the place is coarse; `layer` may name an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect.base import Insight, Inspection, Material, Pictures
from unbackdoor.inspect.compared import CLEAN, SUSPECT, TRIGGERED, batches, drawn, models_of, pairs_of, side_by_side
from unbackdoor.models import Network, feature_map_names
from unbackdoor.models.names import module_named
from unbackdoor.training import Runtime

LOCAL = 0.5
"""Share of the image up to which a trigger has a place of its own."""
WARM = (0.95, 0.45, 0.05)
"""Colour of what speaks for the answer, red, green and blue; seen as light by those who see no colours."""


@dataclass(frozen=True, kw_only=True)
class GradCAM(Inspection):
    """Which part of an image speaks for the answer, by Grad-CAM; needs captum.

    Attributes:
        images: with and without trigger, over which the share on the trigger is the mean; 1 or more.
        shown: of these, 0 or more.
        layer: whose feature maps are taken, such as "layer3"; by default the last one that has positions.
    """

    title: ClassVar[str] = "What speaks for the answer (Grad-CAM)"

    images: int = 200
    shown: int = 4
    layer: str = ""

    def __post_init__(self) -> None:
        if self.images < 1 or self.shown < 0:
            raise InputError(
                f"GradCAM: it takes 1 image or more and shows 0 or more, found {self.images} and {self.shown}"
            )

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Find what speaks for each answer (see `Inspection.inspect`)."""
        changed = None
        if material.attack is None:
            rows = drawn(len(material.clean), self.images, runtime, "grad-cam")
            samples = {CLEAN: material.clean.subset(rows)}
        else:
            pairs = pairs_of(material.clean, material.attack)
            rows = drawn(len(pairs.wanted), self.images, runtime, "grad-cam")
            samples = {CLEAN: pairs.originals.subset(rows), TRIGGERED: pairs.triggered.subset(rows)}
            changed = (samples[CLEAN].images != samples[TRIGGERED].images).any(1)
        measured: dict[str, Any] = {}
        galleries = []
        for name, one in models_of(model, material, runtime).items():
            layer = self.layer or _last_maps(one, material.clean, runtime)
            seen = {kind: self._maps(one, layer, images, runtime) for kind, images in samples.items()}
            measured[name] = {"layer": layer}
            if changed is not None:
                measured[name] |= {
                    "trigger_area": float(changed.float().mean()),
                    **{f"{kind}_on_trigger": share_on(maps, changed) for kind, (maps, _) in seen.items()},
                }
            galleries.append(self._gallery(name, layer, samples, seen))
        return Insight(
            headline=_headline(measured[SUSPECT]),
            suspicious="Triggered images whose map lies on the trigger instead of on the object. A trigger that covers"
            " the whole image, such as a blended one, has no place that could stand out.",
            rows=_rows(measured),
            figures=galleries if self.shown else [],
            measured=measured,
        )

    def _maps(
        self, model: Network, layer: str, images: ImageSet, runtime: Runtime
    ) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n k"]]:
        """Return the maps of the answers, from 0 to 1, and the probabilities; on the CPU."""
        module = module_named(model.body, layer)
        maps, answers = [], []
        for part in batches(images.images):
            batch = runtime.layout(part).float() / 255
            with torch.no_grad():
                probabilities = model(batch).float().softmax(1)
            maps.append(grad_cam(model, module, batch, probabilities.argmax(1)).cpu())
            answers.append(probabilities.cpu())
        heat = torch.cat(maps)
        return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12), torch.cat(answers)

    def _gallery(
        self, name: str, layer: str, samples: dict[str, ImageSet], seen: dict[str, tuple[Tensor, Tensor]]
    ) -> Pictures:
        names = samples[CLEAN].class_names
        pictures = []
        # Without triggered images there is room for as many clean ones again.
        for row in range(min(self.shown * (1 if TRIGGERED in samples else 2), len(samples[CLEAN]))):
            true = names[int(samples[CLEAN].labels[row])]
            for kind, images in samples.items():
                maps, probabilities = seen[kind]
                sure, answer = probabilities[row].max(0)
                pixels = images.images[row].cpu().float() / 255
                if kind == TRIGGERED or TRIGGERED not in samples:
                    pictures.append((f"{kind}: {true}", pixels))
                pictures.append(
                    (f"{kind}: answer {names[int(answer)]}, {100 * float(sure):.0f} %", warmed(pixels, maps[row]))
                )
        return Pictures(
            title=f"What speaks for the answer: {name}",
            explanation=f"Orange parts of the grey image speak for the answer, by the feature maps of `{layer}`.",
            pictures=pictures,
        )


def grad_cam(
    model: nn.Module, layer: nn.Module, images: Float[Tensor, "b c h w"], classes: Int[Tensor, "b"]
) -> Float[Tensor, "b h w"]:
    """Return what speaks for a class in each image, 0 or more.

    Args:
        model: in evaluation mode.
        layer: of the model; its output has positions.
        images: in [0, 1].
        classes: one an image.

    Raises:
        UnsuitedError: captum is not installed, or the layer's output has no positions.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise UnsuitedError("Grad-CAM needs captum: pip install 'unbackdoor[inspect]'") from error
    maps = LayerGradCam(model, layer).attribute(images, target=classes, relu_attributions=True)
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise UnsuitedError("Grad-CAM needs a layer that puts out feature maps; choose another layer")
    stretched = F.interpolate(maps.detach().float(), size=images.shape[2:], mode="bilinear", align_corners=False)
    return stretched[:, 0]


def share_on(maps: Float[Tensor, "n h w"], pixels: Bool[Tensor, "n h w"]) -> float:
    """Return which share of the maps lies on some pixels: the mean over the maps that are not zero, NaN if all are."""
    total = maps.flatten(1).sum(1)
    inside = (maps * pixels.cpu()).flatten(1).sum(1)
    return float((inside / total)[total > 0].mean())


def warmed(pixels: Float[Tensor, "c h w"], heat: Float[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """Return the image in grey, coloured by the heat of its pixels."""
    grey = 0.6 * pixels.mean(0).expand(3, *heat.shape) + 0.1
    return torch.lerp(grey, torch.tensor(WARM)[:, None, None].expand_as(grey), 0.85 * heat)


def _last_maps(model: Network, images: ImageSet, runtime: Runtime) -> str:
    names = feature_map_names(model, runtime.layout(images.images[:1]).float() / 255)
    if not names:
        raise UnsuitedError("Grad-CAM reads feature maps, and this network has none with positions")
    return names[-1]


def _headline(suspect: dict[str, Any]) -> str:
    if "trigger_area" not in suspect:
        return f"What speaks for the suspect's answers, by the feature maps of {suspect['layer']}."
    covers = f"The trigger covers {100 * suspect['trigger_area']:.1f} % of the image"
    if suspect["trigger_area"] > LOCAL:
        return f"{covers}, so it has no place that could stand out."
    return (
        f"{covers}. Of what speaks for the suspect's"
        f" answer, {100 * suspect['triggered_on_trigger']:.1f} % lies there with the trigger, and"
        f" {100 * suspect['clean_on_trigger']:.1f} % without it."
    )


def _rows(measured: dict[str, Any]) -> list[tuple[str, str]]:
    if "trigger_area" not in measured[SUSPECT]:
        return []

    def percent(key: str) -> str:
        return side_by_side(measured, lambda one: f"{100 * one[key]:.1f} %")

    return [
        ("share of the image that the trigger changes", f"{100 * measured[SUSPECT]['trigger_area']:.1f} %"),
        ("share of the map there, with the trigger", percent("triggered_on_trigger")),
        ("share of the map there, without it", percent("clean_on_trigger")),
    ]
