"""Augmentation by the kind of picture: what may be turned, and how much light, size and sharpness vary."""

from __future__ import annotations

from typing import Any

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    # Cameras on vehicles: upright, every distance, any weather. These are the defaults of `TrainTransform`.
    "street": {
        "flip": 0.5,
        "vertical_flip": 0.0,
        "turns": False,
        "rotation": 0.0,
        "scale": (0.5, 2.0),
        "jitter": (0.4, 0.4, 0.4, 0.1),
        "blur": (0.15, 1.3),
    },
    # Drones, aircraft and satellites, looking down: no direction is up, the height of flight varies, and hues tell
    # what grows. Flips and quarter turns are every direction that costs no interpolation.
    "aerial": {
        "flip": 0.5,
        "vertical_flip": 0.5,
        "turns": True,
        "rotation": 0.0,
        "scale": (0.5, 2.0),
        "jitter": (0.4, 0.4, 0.3, 0.05),
        "blur": (0.0, 1.0),
    },
    # No direction is up, down to the single degree; the magnification is known; stains and focus vary.
    "microscopy": {
        "flip": 0.5,
        "vertical_flip": 0.5,
        "turns": True,
        "rotation": 45.0,
        "scale": (0.75, 1.33),
        "jitter": (0.3, 0.3, 0.3, 0.05),
        "blur": (0.0, 1.5),
    },
    # Phones and cameras in the hand: upright but tilted, near and far, in any light, sometimes out of focus.
    "handheld": {
        "flip": 0.5,
        "vertical_flip": 0.0,
        "turns": False,
        "rotation": 15.0,
        "scale": (0.5, 2.0),
        "jitter": (0.4, 0.4, 0.4, 0.1),
        "blur": (0.0, 2.0),
    },
}
"""By name, settings of [`~deft_hf.data.transforms.TrainTransform`]."""
