"""Recipes: everything that a run is made of, in one strict YAML file.

    model: {checkpoint: embedded}
    method: {name: deft, baselines: [joint], decoder_warmup_steps: 100}
    data:
      root: data
      labels: streets
      source: [{folder: town, split: train}]
      validation: [{folder: town, split: val}]
      unseen: [{folder: coast}, {streets: night, count: 50}]
      crop_size: [160, 208]
    training: {output_dir: outputs/town, max_steps: 800, learning_rate: 6e-5}

A recipe only declares: neither data nor model is opened here. What can be known to be wrong before they are is an
error at once, one line for each mistake.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from deft_hf.recipe.checks import contradictions
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.file import read_recipe
from deft_hf.recipe.section import Section
from deft_hf.recipe.sections import MethodSection, ModelSection, PublishSection
from deft_hf.recipe.shipped import recipe_file
from deft_hf.recipe.training import PLAIN, TrainingSection
from deft_hf.trainer.defaults import Choice
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from deft_hf.trainer.arguments import DeFTTrainingArguments


class Recipe(Section):
    """Everything that a run is made of. Read it with [`Recipe.load`].

    Args:
        model (`ModelSection`):
            The pretrained model.
        method (`MethodSection`, *optional*):
            The method, its settings, and the methods that are trained beside it.
        data (`DataSection`):
            Domains, labels, sizes and augmentation.
        training (`TrainingSection`):
            Any field of `TrainingArguments`.
        publish (`PublishSection`, *optional*):
            Where the exported model goes.

    Example:

    ```python
    >>> from deft_hf import Recipe

    >>> recipe = Recipe.load("quickstart", overrides=["training.max_steps=100"])
    >>> recipe.method.name, recipe.training.max_steps
    ('deft', 100)

    ```
    """

    model: ModelSection = Field(description="The pretrained model.")
    method: MethodSection = Field(default=MethodSection(), description="The method and its settings.")
    data: DataSection = Field(description="Domains, labels, sizes and augmentation.")
    training: TrainingSection = Field(description="Length, optimizer, precision, logging and saving.")
    publish: PublishSection = Field(default=PublishSection(), description="Where the exported model goes.")

    _path: str = PrivateAttr("recipe")
    _choices: tuple[Choice, ...] = PrivateAttr(())

    @classmethod
    def advice_on(cls, key: str) -> str | None:
        for section in (ModelSection, MethodSection, DataSection, TrainingSection, PublishSection):
            if key in section.keys():
                name = section.__name__.removesuffix("Section").lower()
                return f"it belongs to {name}: {name}.{key}"
        return None

    @classmethod
    def load(cls, path: str | os.PathLike, overrides: Iterable[str] = ()) -> Recipe:
        """Reads and checks a recipe.

        Args:
            path (`str` or `os.PathLike`):
                The YAML file, or the name of a recipe that comes with deft_hf, such as `quickstart`.
            overrides (`Iterable[str]`, *optional*):
                `key.sub=value` each, the value in YAML. A number stands for an item of a list that the file has
                (`data.unseen.0.folder=coast`).

        Raises:
            UserError: Everything that is wrong, one line each: file, key, what was found, what was expected.
        """
        path = recipe_file(path)
        try:
            recipe = cls.model_validate(read_recipe(path, overrides))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        else:
            problems = list(contradictions(recipe))
        if problems:
            raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
        recipe._path = str(path)
        return recipe

    @property
    def path(self) -> str:
        """The file that it was read from."""
        return self._path

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The values among its own that were chosen for it, with the reasons; see [`Recipe.filled`]."""
        return self._choices

    def stated(self) -> dict[str, Any]:
        """By dotted key of model, method, data and training, the values that it has other than null."""
        sections = {name: getattr(self, name) for name in ("model", "method", "data", "training")}
        values = {name: section.model_dump(exclude_unset=True) for name, section in sections.items()}
        found = {f"{name}.{key}": value for name, section in values.items() for key, value in section.items()}
        return {key: value for key, value in found.items() if value is not None}

    def filled(self, choices: Iterable[Choice]) -> Recipe:
        """This recipe with values that were chosen for keys that it does not have.

        Args:
            choices (`Iterable[Choice]`):
                Values and reasons; a value of `None` removes the key.
        """
        choices = tuple(choices)
        changed: dict[str, Any] = {}
        for name in ("method", "data", "training"):
            section = getattr(self, name)
            own = {c.key.partition(".")[2]: c.value for c in choices if c.key.startswith(f"{name}.")}
            if name == "training":
                kept = {**section.model_dump(exclude_unset=True), **own}
                changed[name] = TrainingSection(**{key: value for key, value in kept.items() if value is not None})
            elif own:
                changed[name] = section.model_copy(update=own)
        recipe = self.model_copy(update=changed)
        recipe._choices = (*self._choices, *choices)
        return recipe

    def to_yaml(self) -> str:
        """The recipe with overrides and defaults filled in, to be loaded again; of `training` only what was set."""
        sections = self.model_dump(exclude={"training"})
        sections["training"] = self.training.model_dump(exclude_unset=True)
        sections["method"] = {"name": self.method.name, "baselines": self.method.baselines} | sections["method"]
        in_order = {name: sections[name] for name in type(self).model_fields}
        return yaml.safe_dump(in_order, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def training_arguments(self, **changes: Any) -> DeFTTrainingArguments:
        """The Trainer's arguments.

        Args:
            **changes (`Any`):
                Fields that differ from the recipe: `method="joint"` for a baseline, `output_dir`, `seed`.

        Raises:
            UserError: Values that `DeFTTrainingArguments` refuses.
        """
        from deft_hf.trainer.arguments import DeFTTrainingArguments

        method = self.method.model_dump(exclude={"name", "baselines", *(self.method.model_extra or {})})
        training = self.training.model_dump(exclude_unset=True, exclude=set(PLAIN))
        values = {**training, **method, "method": self.method.name, **changes}
        if registered := self.method.settings_of(values["method"]):
            values["method_settings"] = registered
        try:
            return DeFTTrainingArguments(**values)
        except ValueError as error:
            placed = [f"{self._path}: {self._placed(problem)}" for problem in str(error).splitlines()]
            raise UserError("\n".join(placed)) from error

    def _placed(self, problem: str) -> str:
        """What the arguments say of a key, by where it stands in the recipe."""
        problem = problem.removeprefix("TrainingArguments: ")
        key = re.match(r"\w*", problem)[0]  # type: ignore[index]  # it matches nothing too
        if key in self.method.keys():
            return f"method.{problem}"
        return f"training.{problem}" if key in self.training.keys() else f"method and training: {problem}"
