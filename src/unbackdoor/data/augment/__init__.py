"""Batched augmentation on the device: random changes of images, drawn apart from their application."""

from unbackdoor.data.augment.color import ColorJitter, Grey
from unbackdoor.data.augment.geometric import Flip, PadCrop, ResizeCrop, Rotate, Translate
from unbackdoor.data.augment.mix import CutMix
from unbackdoor.data.augment.transform import Augmentation, Draw, Transform, to_float

AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "crop": Augmentation((PadCrop(padding=4),)),
    "crop-flip": Augmentation((PadCrop(padding=4), Flip(probability=0.5))),
    "light": Augmentation((PadCrop(padding=2), Flip(probability=0.5))),
    "rotate-translate": Augmentation((Translate(), Rotate())),
    "cutmix": Augmentation((PadCrop(padding=4), Flip(probability=0.5), CutMix())),
    "strong": Augmentation((ResizeCrop(), Flip(), ColorJitter(), Grey())),
}
"""The augmentations that configuration files know by name."""

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ColorJitter",
    "CutMix",
    "Draw",
    "Flip",
    "Grey",
    "PadCrop",
    "ResizeCrop",
    "Rotate",
    "Transform",
    "Translate",
    "to_float",
]
