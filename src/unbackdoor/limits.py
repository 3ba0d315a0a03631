"""Limits that data and models share, so that no model is trained that could not be loaded."""

# ImageNet-21k has 21,841 classes. One label of 10^12 must not make as many names.
MAX_CLASSES = 65_536
MAX_CLASS_NAME = 256
MAX_CHANNELS = 64
MAX_IMAGE_SIDE = 1024
