"""Image sets: reading, caching, augmenting."""

from unbackdoor.data.defender import DefenderData, draw_clean
from unbackdoor.data.image_set import ImageSet, balanced_rows
from unbackdoor.data.readers import read_images

__all__ = ["DefenderData", "ImageSet", "balanced_rows", "draw_clean", "read_images"]
