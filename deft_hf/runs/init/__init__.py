"""A recipe for a folder of images: looked at, written with the reason of each choice, and shown in one picture."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from deft_hf.data.classes import is_proposal
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.pictures import ValueRange
from deft_hf.recipe import Recipe
from deft_hf.recipe.domains import is_hub_name
from deft_hf.runs.init.choices import (
    choose_model,
    choose_sizes,
    choose_value_range,
)
from deft_hf.runs.init.hub import find_in_hub, is_saved
from deft_hf.runs.init.looks import choose_augmentation
from deft_hf.runs.init.roles import Roles, assign_roles, classes_of
from deft_hf.runs.init.sheet import SOFTWARE, save_sheet
from deft_hf.runs.init.sources import Sources, find_sources, safe_name
from deft_hf.runs.init.text import RecipeText
from deft_hf.utils.errors import UserError
from deft_hf.utils.integrity import replace_text
from deft_hf.utils.machine import this_machine
from deft_hf.utils.places import makeable
from deft_hf.utils.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

_SEAL = "# deft-hf init wrote what stands above: "


@dataclass(frozen=True)
class Draft:
    """A recipe for a folder, not written yet.

    Attributes:
        text (`str`):
            The recipe.
        sources (`Sources`):
            What was found.
        roles (`Roles`):
            What is trained on, chosen on and scored.
        value_range (`tuple[float, float]` or `None`):
            Of images of more than 8 bits.
    """

    text: str
    sources: Sources
    roles: Roles
    value_range: ValueRange | None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels by class, in 0..1, of those that are ignored as `ignored`."""
        pairs = [pair for part in self.sources.labelled for pair in part.pairs]
        pixels = classes_of(pairs, self.sources.classes)
        total = max(1, sum(pixels.values()))
        names = [*enumerate(self.sources.space.names)]
        names += [(IGNORE_INDEX, "ignored")] if pixels.get(IGNORE_INDEX) else []
        return {name: pixels.get(index, 0) / total for index, name in names}


@dataclass(frozen=True)
class Started(Result):
    """What `init` wrote.

    Attributes:
        recipe (`Path`):
            The recipe.
        sheet (`Path`):
            Its picture: a dozen labelled images with their classes over them.
        layout (`str`):
            In words, how the folder is laid out.
        images (`Mapping[str, int]`):
            Number of images by part.
        shares (`Mapping[str, float]`):
            Share of the pixels by class, in 0..1.
        notes (`list[str]`):
            What a person should know before training.
        named (`bool`, *optional*, defaults to `False`):
            Whether the classes have names that are no proposals: those that the data gives.
    """

    recipe: Path
    sheet: Path
    layout: str
    images: Mapping[str, int]
    shares: Mapping[str, float]
    notes: list[str]
    named: bool = False

    @property
    def command(self) -> str:
        """The command that trains."""
        return f"accelerate launch -m deft_hf.train {self.recipe}"

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        paths = {"recipe": str(self.recipe), "sheet": str(self.sheet), "command": self.command}
        return {**paths, "layout": self.layout, "images": self.images, "shares": self.shares, "notes": self.notes}

    def to_pandas(self) -> DataFrame:
        """A row for each class: its share of the pixels."""
        import pandas

        return pandas.DataFrame({"share": dict(self.shares)}).rename_axis("class")

    def pictures(self) -> list[Path]:
        return [self.sheet]

    def __str__(self) -> str:
        counts = ", ".join(f"{name}: {count}" for name, count in self.images.items())
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        lines = [f"Found {self.layout}. Images: {counts}.", f"Classes, by their share of the pixels: {shares}."]
        lines += [f"note: {note}" for note in self.notes]
        naming = "" if self.named else ", give the classes their names"
        lines += [f"Wrote {self.recipe} and {self.sheet}. Look at the picture{naming}, then:"]
        return "\n".join([*lines, "", f"    {self.command}"])


def init(
    folder: str | os.PathLike,
    out: str | os.PathLike = "recipe.yaml",
    *,
    model: str | None = None,
    config: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Started:
    """Looks at a folder of images and writes a recipe that can be trained as it is, and a picture of what was found.

    Images and labels are found in two folders, beside each other, in a folder for each split or place, as an official
    data set is unpacked, or in the columns of a data set on the Hub or of one that `datasets` saved. Every mask is
    read once; nothing in the folder is changed.

    Args:
        folder (`str` or `os.PathLike`):
            The folder, or the name of a data set on the Hub.
        out (`str` or `os.PathLike`, *optional*, defaults to `"recipe.yaml"`):
            The recipe to write; the picture stands beside it, with the same name and `.png`.
        model (`str`, *optional*):
            Hub name or folder of the model to start from; by default one that fits data and machine.
        config (`str`, *optional*):
            Configuration of a data set on the Hub that has several; by default the one that it names as its default.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace what an earlier call wrote, unless it was edited; never anything else.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars.

    Returns:
        `Started`: what was written, and what was found.

    Raises:
        UserError: There are no images, no labels, files that cannot be used, or something is in the way.

    Example:

    ```python
    from deft_hf import init

    print(init("photos/"))
    ```
    """
    recipe = Path(out).expanduser()
    if recipe.suffix not in (".yaml", ".yml"):
        raise UserError(f"out: found {out}, expected a file that ends in .yaml")
    sheet = recipe.with_suffix(".png")
    for path, is_ours in ((recipe, _is_our_text), (sheet, _is_our_picture)):
        _check_free(path, is_ours, overwrite)
    draft = propose(folder, model=model, config=config, leave_out=sheet, progress=progress)
    with makeable(recipe.parent):
        recipe.parent.mkdir(parents=True, exist_ok=True)
        save_sheet(sheet, f"{folder}: {_counts(draft)}", draft.sources, draft.roles, draft.value_range)
        replace_text(recipe, f"{draft.text}{_SEAL}{_digest(draft.text)}\n")
    images = {part.domain.name if part.domain else part.place: 0 for part in draft.sources.parts}
    for part in draft.sources.parts:
        images[part.domain.name if part.domain else part.place] += part.count
    notes = [*draft.sources.notes, *draft.roles.notes]
    return Started(recipe, sheet, draft.sources.layout, images, draft.shares, notes, _are_named(draft.sources))


def propose(
    folder: str | os.PathLike,
    *,
    model: str | None = None,
    config: str | None = None,
    leave_out: Path | None = None,
    progress: bool = False,
) -> Draft:
    """The recipe that `init` writes, and what it was made from; nothing is written.

    Args:
        folder (`str` or `os.PathLike`):
            The folder, or the name of a data set on the Hub.
        model (`str`, *optional*):
            Hub name or folder of the model to start from.
        config (`str`, *optional*):
            Configuration of a data set on the Hub.
        leave_out (`Path`, *optional*):
            A picture in the folder that is none of the images.
        progress (`bool`, *optional*, defaults to `False`):
            Show progress bars.

    Raises:
        UserError: As `init`.
    """
    root = Path(folder).expanduser()
    in_hub = not root.exists() and "/" in str(folder) and is_hub_name(str(folder))
    if in_hub or (root.is_dir() and is_saved(root)):
        sources = find_in_hub(str(folder if in_hub else root), config, progress)
    elif root.is_dir() and config is not None:
        raise UserError(f"config: found {config}, but {folder} is a folder of images, which has no configurations")
    elif root.is_dir():
        sources = find_sources(root, leave_out, progress)
    else:
        what = "a file" if root.exists() else "no such folder"
        raise UserError(
            f"{folder}: found {what}, expected a folder of images or the name of a data set on the Hub (owner/name)"
        )
    roles = assign_roles(sources)
    value_range = choose_value_range(sources.found)
    text = _recipe(root, sources, roles, model, value_range)
    _check_recipe(text)
    return Draft(text, sources, roles, value_range[0] if value_range else None)


def _recipe(
    folder: Path, sources: Sources, roles: Roles, given: str | None, value_range: tuple[ValueRange, str] | None
) -> str:
    machine = this_machine()
    model = choose_model(given, roles.training_images, machine)
    sizes = choose_sizes([pair.size for part in sources.labelled for pair in part.pairs], model, machine)
    name = safe_name(folder.resolve().name)
    text = RecipeText()
    text.comment(f"For {folder}: {sources.layout}. Each choice says what it rests on; change what you like.")
    text.comment()
    text.comment("accelerate launch -m deft_hf.train THIS_FILE")
    text.comment()
    text.section("model")
    for index, (key, value) in enumerate(model.section.items()):
        text.add(key, value, "" if index else model.why)
    text.section("method")
    text.add("name", "deft", "keeps working elsewhere; with baselines: [joint] the usual way is trained beside it")
    text.section("data")
    _labels(text, sources)
    text.entries("source", roles.source)
    text.entries("validation", roles.validation)
    if roles.unseen:
        text.entries("unseen", roles.unseen)
    else:
        text.add("unseen", [], "places that are only scored: {folder: ...}; unlabelled: {folder: ..., labels: none}")
    if sizes.image_size:
        text.add("image_size", list(sizes.image_size), sizes.why_image)
    text.add("crop_size", list(sizes.crop_size), sizes.why_crop)
    if value_range:
        text.add("value_range", list(value_range[0]), value_range[1])
    text.add("augment", *choose_augmentation(folder, sources, value_range[0] if value_range else None))
    text.section("training")
    text.add("output_dir", f"outputs/{name}")
    text.comment(
        "Rates, length, batch, evaluation and precision are chosen when training starts, which says them and why."
    )
    return str(text)


def _labels(text: RecipeText, sources: Sources) -> None:
    if sources.preset is not None:
        text.add("labels", sources.preset, f"the classes of {sources.layout}")
        return
    text.block("labels")
    names, to_name = sources.space.names, "" if _are_named(sources) else "give them their names"
    for key, value in sources.classes.labels.items():
        why = sources.classes.reasons.get(key, to_name if key == "names" else "")
        if key == "names" or len(value) < 4:
            text.add(key, value, why, depth=2)
            continue
        text.block(key, depth=2, why=why)
        for index, each in enumerate(value):
            train = value[each] if isinstance(value, dict) else index
            text.item(each if not isinstance(value, dict) else {each: train}, "" if train == 255 else names[train])


def _are_named(sources: Sources) -> bool:
    """Whether no class waits for its name."""
    return sources.preset is not None or not any(map(is_proposal, sources.space.names))


def _check_recipe(text: str) -> None:
    """A recipe that cannot be read would be our mistake, found before it is written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            Recipe.load(path)
        except UserError as error:
            raise RuntimeError(f"the recipe that was proposed is wrong: {error}\n\n{text}") from error


def _counts(draft: Draft) -> str:
    labelled = sum(part.count for part in draft.sources.labelled)
    return f"{labelled} labelled images ({draft.sources.layout}), {len(draft.sources.space.names)} classes"


# ---- what may be replaced


def _check_free(path: Path, is_ours: Any, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or not is_ours(path):
        raise UserError(f"out: {path} is not as init wrote it; nothing was touched. Move it, or choose another --out")
    if not overwrite:
        raise UserError(
            f"out: {path} exists already; nothing was touched. Choose another --out, or ask for it to be replaced "
            "(overwrite)"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_our_text(path: Path) -> bool:
    try:
        text, seal, digest = path.read_text("utf-8").rpartition(_SEAL)
    except (OSError, ValueError):
        return False
    return bool(seal) and digest.strip() == _digest(text)


def _is_our_picture(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == SOFTWARE
    except OSError:
        return False
