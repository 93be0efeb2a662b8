"""A method together with the ingredients that its settings switch on, as one run uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from deft_hf.methods.base import Ingredient, Launcher, Method, problems_of
from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.stages import Span

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deft_hf.methods.averages import Averaging
    from deft_hf.methods.core.pathways import DualPathway
    from deft_hf.methods.settings import CommonSettings
    from deft_hf.models.families import SegmentationFamily

_Kind = TypeVar("_Kind", bound=Ingredient)


class Composition:
    """A method, its average and its other ingredients. Build it with [`deft_hf.methods.compose`].

    It calls the hooks of all of them in order, the method's first.

    Args:
        common (`CommonSettings`):
            What every method has.
        method (`Method`):
            With its own settings.
        averaging (`Averaging`):
            The average.
        ingredients (`Sequence[Ingredient]`):
            The others, on or off.
    """

    def __init__(
        self, common: CommonSettings, method: Method, averaging: Averaging, ingredients: Sequence[Ingredient]
    ) -> None:
        self.common = common
        self.method = method
        self.averaging = averaging
        self.average = averaging.kind
        self.all = (method, averaging, *ingredients)
        self.active = [each for each in self.all if each.is_on]

    def get(self, kind: type[_Kind]) -> _Kind | None:
        """The ingredient of a class, where it is on."""
        return next((each for each in self.active if isinstance(each, kind)), None)

    # ---- what it is

    def problems(self) -> list[str]:
        """Values out of their range and settings that exclude each other, one message each."""
        found: dict[str, None] = {}
        for settings in [self.common, *(each.settings for each in self.all)]:
            found |= dict.fromkeys(problems_of(settings, fields(settings)))
        if not found:
            for each in self.active:
                found |= dict.fromkeys(each.problems(self))
        return list(found)

    def refusals(self, launcher: Launcher) -> list[str]:
        """Why it cannot run under a launcher, one message each."""
        return [reason for each in self.active for reason in each.refusals(launcher)]

    @property
    def exports_usual(self) -> bool:
        """Whether the usual component is what is evaluated, saved and exported."""
        return self.common.component != "generalized"

    @property
    def reads_start(self) -> bool:
        """Whether the initialisation is read at each step, and not only when distances are logged."""
        return any(each.reads_start for each in self.active)

    # ---- stages

    def spans(self, last_steps: int) -> list[Span]:
        """The stages with their lengths, the last one lasting `last_steps`."""
        *earlier, last = self.method.course
        asked = self.common.decoder_warmup_steps
        warmup = math.ceil(last_steps / 10) if asked is None else asked
        spans = [Span(stage, self.method.lengths.get(stage, warmup)) for stage in earlier]
        return [span for span in spans if span.steps] + [Span(last, last_steps)]

    def rule(self, steps: int) -> EMA | None:
        """The average over a stage of `steps`; `None` where nothing is averaged."""
        return self.averaging.rule(steps)

    def record(self, spans: Sequence[Span]) -> dict[str, Any]:
        """What a run must have in common with a checkpoint that it resumes, for its `deft_state.json`."""
        settings = {
            each.name: getattr(own, each.name)
            for own in (self.averaging.settings, self.common, *(other.settings for other in self.all))
            for each in fields(own)
            if each.metadata.get("identity")
        }
        stages = [{"stage": span.stage, "steps": span.steps} for span in spans]
        return {
            "method": self.method.name,
            "stages": stages,
            **settings,
            **self.averaging.record(spans[-1].steps),
            **self.of_model(),
        }

    def of_model(self) -> dict[str, Any]:
        """What of it is the model's, and no setting: see [`Ingredient.of_model`]."""
        return {key: value for each in self.active for key, value in each.of_model().items()}

    @property
    def shifts_schedule(self) -> bool:
        """Whether the learning rate of the last stage is not simply that of its step."""
        return any(each.shifts_schedule for each in self.active)

    def step_of_schedule(self, step: int, steps: int, warmup: int) -> int:
        """See [`Ingredient.step_of_schedule`]."""
        for each in self.active:
            step = each.step_of_schedule(step, steps, warmup)
        return step

    # ---- training

    def pathways(self, model: nn.Module, family: SegmentationFamily, initial_at_hand: bool = False) -> DualPathway:
        """The two components that this run trains, of a model that `adapt` was called on.

        Args:
            model (`nn.Module`):
                Becomes the usual component.
            family (`SegmentationFamily`):
                Family as returned by `adapt`.
            initial_at_hand (`bool`, *optional*, defaults to `False`):
                See [`DualPathway`].
        """
        from deft_hf.methods.core.pathways import DualPathway

        return DualPathway(
            model,
            family,
            average=None if self.average is None else EMA(),
            penalties=self.penalties,
            view=self.view,
            exported="usual" if self.exports_usual else "generalized",
            exports_copy=any(each.adapts for each in self.active),
            initial_at_hand=initial_at_hand,
        )

    def adapt(self, model: nn.Module, family: SegmentationFamily) -> SegmentationFamily:
        """Change a model in place before training; returns its family."""
        for each in self.active:
            family = each.adapt(model, family)
        return family

    def plain(self, model: nn.Module, family: SegmentationFamily) -> nn.Module:
        """The model of the original class that an adapted one is exported as."""
        for each in reversed(self.active):
            model = each.plain(model, family)
        return model

    def enter(self, pathways: DualPathway, span: Span, new: bool) -> None:
        """At the start of a stage; see [`Ingredient.enter`]."""
        for each in self.active:
            each.enter(pathways, span, new)

    def penalties(self, pathways: DualPathway) -> Iterator[Tensor]:
        """Terms to add to the loss of an optimizer step."""
        for each in self.active:
            yield from each.penalties(pathways)

    def view(self, pathways: DualPathway) -> nn.Module:
        """The model that the loss of a joint step is of."""
        return next((model for each in self.active if (model := each.view(pathways))), pathways.usual)

    def before_step(self, pathways: DualPathway) -> None:
        """Before the optimizer moves the usual component."""
        if pathways.stage != "warmup":
            for each in self.active:
                each.before_step(pathways)

    def after_step(self, pathways: DualPathway) -> None:
        """After an optimizer step that was not skipped: the ingredients, then the average."""
        if pathways.stage != "warmup":
            for each in self.active:
                each.after_step(pathways)
        pathways.update_generalized()

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """What the ingredients have to keep for a resume, by `INGREDIENT.NAME`."""
        return {f"{each.name}.{name}": tensor for each in self.active for name, tensor in each.tensors().items()}

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Hand what `tensors` gave back to the ingredients."""
        for each in self.active:
            prefix = f"{each.name}."
            if own := {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}:
                each.set_tensors(own)

    # ---- after training

    @property
    def chooses_weights(self) -> bool:
        """Whether the weights are chosen on source validation after the last step."""
        return any(each.chooses_weights for each in self.active)

    def choose(self, pathways: DualPathway, score: Callable[[], float]) -> None:
        """Let the ingredients choose the weights; see [`Ingredient.choose`]."""
        for each in self.active:
            each.choose(pathways, score)

    def facts(self) -> dict[str, Any]:
        """What a finished run tells of its ingredients."""
        return {key: value for each in self.active for key, value in each.facts().items()}
