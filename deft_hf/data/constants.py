"""Numbers that all of the data agrees on; imports nothing."""

IGNORE_INDEX = 255
"""The train id of pixels that neither train nor score."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What images in 0..1 are normalized with where a checkpoint does not say, by channel."""
