"""The orthonormal discrete cosine transform (DCT-II) of images, as matrix products that have gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def dct_matrix(size: int) -> Float[Tensor, "size size"]:
    """Return the matrix of the orthonormal DCT-II: its product with a column of values is their transform."""
    import numpy as np
    from scipy.fft import dct

    return torch.from_numpy(dct(np.eye(size), axis=0, norm="ortho")).float()


def spectrum_of(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the two-dimensional DCT of each channel."""
    rows, columns = (dct_matrix(side).to(images.device) for side in images.shape[2:])
    return rows @ images @ columns.mT


def images_of(spectrum: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the images whose DCT this is."""
    rows, columns = (dct_matrix(side).to(spectrum.device) for side in spectrum.shape[2:])
    return rows.mT @ spectrum @ columns


def smoothed(images: Float[Tensor, "b c h w"], frequencies: int) -> Float[Tensor, "b c h w"]:
    """Return the images with the lowest frequencies alone: their projection onto these waves.

    Args:
        images: any values.
        frequencies: along each side, 1 or more; 1 is the mean.
    """
    rows, columns = (dct_matrix(side)[:frequencies].to(images.device) for side in images.shape[2:])
    return rows.mT @ (rows @ images @ columns.mT) @ columns
