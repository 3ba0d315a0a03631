from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.report import Picture, amplified_difference
from unbackdoor.report.pictures import EncodedPicture, encode


def decode(encoded: EncodedPicture) -> np.ndarray:
    head, _, payload = encoded.source.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert image.size == (encoded.width, encoded.height)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(32, 32, 3), (28, 28, 4), (8, 8, 12), (100, 100, 1), (96, 200, 1), (40, 20, 5)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_becomes_a_square_of_its_own_colour(height: int, width: int, factor: int, channels: int) -> None:
    values = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(1))
    array = decode(encode(Picture(caption="c", image=values / 255)))
    expected = np.kron(values.permute(1, 2, 0).numpy(), np.ones((factor, factor, 1), dtype=np.int64))
    np.testing.assert_array_equal(array, expected[:, :, 0] if channels == 1 else expected)


def test_half_precision_and_gradients_are_no_obstacle() -> None:
    image = torch.full((3, 96, 96), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert (decode(encode(Picture(caption="c", image=image))) == 128).all()


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (torch.zeros(2, 8, 8), "shape"),
        (torch.zeros(8, 8), "shape"),
        (torch.zeros(1, 3, 8, 8), "shape"),
        (torch.zeros(3, 0, 8), "shape"),
        (torch.full((3, 8, 8), 255.0), r"\[0, 1\]"),
        (torch.full((3, 8, 8), -0.5), r"\[0, 1\]"),
        (torch.full((3, 8, 8), float("nan")), r"\[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_caption(image: Tensor, complaint: str) -> None:
    with pytest.raises(InputError, match=f"the mask.*{complaint}"):
        encode(Picture(caption="the mask", image=image))


def test_the_difference_is_black_where_nothing_changed_and_ten_times_the_change_elsewhere() -> None:
    clean = torch.full((1, 1, 4), 0.5)
    triggered = torch.tensor([[[0.5, 0.53, 0.47, 0.9]]])
    torch.testing.assert_close(amplified_difference(clean, triggered), torch.tensor([[[0.0, 0.3, 0.3, 1.0]]]))
