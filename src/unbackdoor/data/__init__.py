"""Image sets: reading, caching, augmenting."""

from unbackdoor.data.defender import DefenderData, clean_rows, draw_clean, hold_out
from unbackdoor.data.image_set import ImageSet, balanced_rows
from unbackdoor.data.readers import read_images

__all__ = ["DefenderData", "ImageSet", "balanced_rows", "clean_rows", "draw_clean", "hold_out", "read_images"]
