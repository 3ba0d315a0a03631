"""The fifteen kinds of corruption of ImageNet-C, each at five severities, of batches of images of any size.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019),
with its strengths. Where those are lengths in pixels they stay what they are, as in the library that TeCo's authors
call on small images too; only the elastic ones go with the side, since theirs would throw small images out of the
frame. What is drawn for an image depends on the seed and the image alone (see `Draws`).
"""

from unbackdoor.sift.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from unbackdoor.sift.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from unbackdoor.sift.corruptions.draws import Corruption, Draws
from unbackdoor.sift.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from unbackdoor.sift.corruptions.weather import brightness, fog, frost, snow

KINDS: dict[str, Corruption] = {
    kind.__name__: kind
    for kind in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip

SEVERITIES = 5
"""Of each kind, 1 to 5."""

__all__ = ["KINDS", "SEVERITIES", "Corruption", "Draws"]
