"""Scikit-learn's embedded handwritten digits: real images that are there without any download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998): the 1,797 images of its
test set, 8 x 8 grey, enlarged here to 32 x 32 so that the usual networks and triggers fit.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from unbackdoor.data.divide import part_rows
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import numbered


def read_digits(split: str) -> ImageSet:
    """Return the digits' "train" (four fifths), "test" or "any" (all) part, 1 x 32 x 32."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, 8, 8)
    # Sixteenths of 0 to 16 and a scale that a float32 holds exactly: the same pixels on every machine.
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = ImageSet(
        images=(large * 255 / 16).round().to(torch.uint8),
        labels=torch.from_numpy(labels.astype(np.int64)),
        class_names=numbered(10),
        name=f"digits/{split}",
    )
    return images if split == "any" else images.subset(part_rows(images, "test" if split == "test" else "train"))
