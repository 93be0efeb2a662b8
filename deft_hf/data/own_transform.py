"""A transform of the user's own, on image and mask, as reproducible as the rest of the augmentation."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import reduce
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.randomness import own_randomness

Function = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class OwnTransform:
    """Calls a function of the user's with every training crop, and checks what it returns.

    The function gets the image, uint8 (H, W, 3), and the mask, uint8 (H, W) with 255 where ignored, both as arrays of
    its own that it may change, and returns a pair of the same shapes and types.

    While it runs, the global random generators of Python, NumPy and torch (on the CPU) are seeded from the item's own
    generator, and afterwards they are as they were. So an item depends on its seed alone: on any number of workers,
    and after a resumed run. To another process it goes by its name.

    Args:
        function (`str` or `Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]`):
            The function, or where it is, `package.module:callable`; modules of the working folder are found too.
        classes (`int`):
            Number of classes: the ids that masks may have, from 0 on.

    Raises:
        UserError: It cannot be imported.

    Example:

    ```python
    >>> import numpy as np
    >>> from deft_hf.data import OwnTransform, TrainTransform

    >>> def speckled(image, mask):
    ...     noise = np.random.normal(0, 10, image.shape)
    ...     return np.clip(image + noise, 0, 255).astype(np.uint8), mask
    >>> transform = TrainTransform(crop=(512, 512), own=OwnTransform(speckled, classes=19))

    ```
    """

    def __init__(self, function: str | Function, classes: int) -> None:
        self.given, self.classes = function, classes
        self.name = function if isinstance(function, str) else getattr(function, "__qualname__", str(function))
        self.function = load(function) if isinstance(function, str) else function

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.given, self.classes)

    def __call__(
        self, image: Image.Image, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[Image.Image, np.ndarray]:
        """Transforms a crop.

        Args:
            image (`Image.Image`):
                RGB, of the mask's size.
            mask (`np.ndarray`):
                uint8 (H, W) train ids, 255 where ignored.
            rng (`np.random.Generator`):
                The item's generator, from which one number is drawn.

        Raises:
            UserError: The function failed, or returned something else than a pair of the same sizes and types with ids
                of classes or 255.
        """
        with own_randomness(int(rng.integers(2**32)), torch.device("cpu")):
            try:
                returned = self.function(np.array(image.convert("RGB")), mask.copy())
            except Exception as error:
                raise UserError(f"data.transform: {self.name} failed: {_in_words(error)}") from error
        if wrong := self._what_is_wrong(returned, mask.shape):
            raise UserError(f"data.transform: {self.name} returned {wrong}")
        pixels, labels = returned
        return Image.fromarray(pixels), labels

    def try_out(self, size: tuple[int, int]) -> None:
        """Calls it once with noise of that (height, width), so that a mistake shows before anything is trained.

        Raises:
            UserError: As when it is called.
        """
        rng = np.random.default_rng(0)
        mask = rng.integers(self.classes, size=size).astype(np.uint8)
        mask[: size[0] // 4] = IGNORE_INDEX
        self(Image.fromarray(rng.integers(256, size=(*size, 3)).astype(np.uint8)), mask, rng)

    def _what_is_wrong(self, returned: Any, size: tuple[int, ...]) -> str | None:
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            return f"{_kind(returned)}, expected a pair (image, mask)"
        for what, array, shape in (("an image", returned[0], (*size, 3)), ("a mask", returned[1], size)):
            if not (isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.shape == shape):
                return f"{what} that is {_kind(array)}, expected {_kind(np.empty(shape, np.uint8))}, as it was given"
        (ids,) = np.bincount(returned[1].ravel(), minlength=IGNORE_INDEX).nonzero()  # no sorting of the pixels
        if wrong := ids[(ids >= self.classes) & (ids != IGNORE_INDEX)].tolist():
            return f"a mask with the ids {wrong[:5]}, expected ids from 0 to {self.classes - 1}, or 255 for ignored"
        return None


def load(name: str) -> Function:
    """The callable that a name such as `package.module:callable` stands for.

    Args:
        name (`str`):
            Module and attribute; modules of the working folder are found too.

    Raises:
        UserError: There is none, or importing its module fails.
    """
    module, _, path = name.partition(":")
    if not (module and path):
        raise UserError(f"data.transform: found {name!r}, expected package.module:callable")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does, and the installed command does not
    try:
        loaded: Any = import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.transform: {name} cannot be imported: there is no module {error.name}, neither installed nor in "
            f"the working folder {os.getcwd()}"
        ) from error
    except Exception as error:
        raise UserError(f"data.transform: {name} cannot be imported: {_in_words(error)}") from error
    try:
        function = reduce(getattr, path.split("."), loaded)
    except AttributeError:
        near = get_close_matches(path, dir(loaded), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"data.transform: {name} cannot be imported: {module} has no {path}{hint}") from None
    if not callable(function):
        raise UserError(f"data.transform: {name} is {_kind(function)}, expected a function of (image, mask)")
    return function


def described(name: str | None) -> dict[str, str] | None:
    """For a run's record, the name of a transform and the SHA-256 of its source; `None` without one.

    The source is the file of the module that is named, and of the one that defines the function if that is another.

    Args:
        name (`str`, *optional*):
            `package.module:callable`.

    Raises:
        UserError: It cannot be imported.
    """
    if name is None:
        return None
    function, digest = load(name), hashlib.sha256()
    modules = dict.fromkeys((name.partition(":")[0], getattr(inspect.unwrap(function), "__module__", None)))
    for module in filter(None, modules):
        file = getattr(sys.modules.get(module), "__file__", None)
        digest.update(b"" if file is None else Path(file).read_bytes())
    return {"name": name, "sha256": digest.hexdigest()}


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    length = f" and length {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a value of type {type(value).__name__}{length}"


def _in_words(error: Exception) -> str:
    """Kind and first line of an error, and the line of code that raised it."""
    place = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({place.filename}, line {place.lineno})"
