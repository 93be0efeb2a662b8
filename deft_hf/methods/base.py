"""What a method is, and what an ingredient is that goes with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from deft_hf.methods.core.stages import Span, Stage
from deft_hf.methods.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deft_hf.methods.core.pathways import DualPathway
    from deft_hf.models.families import SegmentationFamily


class Range(NamedTuple):
    """The values that a number may have, and how to say so."""

    holds: Callable[[Any], bool]
    expected: str


NOT_NEGATIVE = Range(lambda value: value >= 0, "0 or more")
POSITIVE = Range(lambda value: value > 0, "a positive number")
AT_LEAST_ONE = Range(lambda value: value >= 1, "1 or more")
SHARE = Range(lambda value: 0 <= value <= 1, "0 to 1")


def setting(
    default: Any,
    help: str,
    *,
    allowed: Range | None = None,
    choices: Sequence[str] | None = None,
    identity: bool = False,
    state: bool = False,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default (`Any`):
            Default value.
        help (`str`):
            One or two sentences for the references of arguments and recipe keys.
        allowed (`Range`, *optional*):
            Values other than `None` that it may have.
        choices (`Sequence[str]`, *optional*):
            The only values other than `None` that it may have.
        identity (`bool`, *optional*, defaults to `False`):
            It makes another method of the one that it is set for: a baseline beside that one has the default.
        state (`bool`, *optional*, defaults to `False`):
            It decides what a checkpoint holds: one that was saved under another value cannot be resumed at all.
    """
    metadata: dict[str, Any] = {"help": help, "allowed": allowed, "identity": identity, "state": state}
    if choices is not None:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


def problems_of(settings: Any, declared: Iterable[Field]) -> Iterator[str]:
    """What is wrong with the values of `settings` one by one, for the fields that are `declared`."""
    for each in declared:
        value, allowed, choices = (
            getattr(settings, each.name),
            each.metadata.get("allowed"),
            each.metadata.get("choices"),
        )
        if value is None:
            continue
        if choices is not None and value not in choices:
            yield f"{each.name} is {value!r}: expected one of {', '.join(choices)}"
        if allowed is not None and not allowed.holds(value):
            yield f"{each.name} is {value}: expected {allowed.expected}"


class Launcher(NamedTuple):
    """What a launcher does to a run.

    Attributes:
        shards_parameters (`bool`, *optional*, defaults to `False`):
            Whether parameters are sharded over ranks: ZeRO-3 or FSDP2.
        hides_gradients (`bool`, *optional*, defaults to `False`):
            Whether gradients cannot be read between backward and step: DeepSpeed.
    """

    shards_parameters: bool = False
    hides_gradients: bool = False


NEEDS_WHOLE = (
    "needs whole parameters on every rank, which ZeRO-3 and FSDP2 do not leave there: leave it out, or use "
    "recipes/accelerate/ddp.yaml or zero2.yaml"
)


@dataclass
class NoSettings:
    """Of a method that has none of its own."""


_Kind = TypeVar("_Kind", bound="Ingredient")


class Run(Protocol):
    """What an ingredient may know of the run that it is in; see [`~deft_hf.methods.composition.Composition`].

    Attributes:
        method (`Method`):
            The method.
        average (`str` or `None`):
            Key of `AVERAGES`; `None` where nothing is averaged.
    """

    method: Method
    average: str | None

    def get(self, kind: type[_Kind]) -> _Kind | None:
        """The ingredient of a class, where it is on."""


class Ingredient:
    """Something that changes how a run trains, averages or exports. Everything about it is in its one class.

    A subclass sets the attributes and overrides the hooks that it needs; each hook does nothing by default.

    Attributes:
        name (`ClassVar[str]`):
            In tables and messages.
        summary (`ClassVar[str]`):
            What it is, one line.
        paper (`ClassVar[str | None]`, *optional*):
            Authors, year and link.
        Settings (`ClassVar[type]`, *optional*, defaults to `NoSettings`):
            Dataclass of its settings, each made by [`setting`].
        variants (`ClassVar[Mapping[str, Variant]]`, *optional*, defaults to `{}`):
            Rows that `compare` gets from it, by name.
        adapts (`ClassVar[bool]`, *optional*, defaults to `False`):
            It changes the model before training, so that what is exported is a changed copy.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None] = None
    Settings: ClassVar[type] = NoSettings
    variants: ClassVar[Mapping[str, Variant]] = {}
    adapts: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def is_on(self) -> bool:
        """Whether the settings ask for it."""
        return True

    @property
    def reads_start(self) -> bool:
        """Whether it reads the initialisation at each step, which is then kept on the device."""
        return False

    def problems(self, run: Run) -> Iterator[str]:
        """What excludes it, or it excludes, in this run: one message each, with the way out."""
        yield from ()

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        """Why it cannot run under a launcher: one message each, with the way out."""
        yield from ()

    def adapt(self, model: nn.Module, family: SegmentationFamily) -> SegmentationFamily:
        """Change a model in place before training; returns the family of the changed model."""
        return family

    def of_model(self) -> dict[str, Any]:
        """What `adapt` found in the model, by key, that a checkpoint and a run that resumes it must have in common."""
        return {}

    def plain(self, model: nn.Module, family: SegmentationFamily) -> nn.Module:
        """The model of the original class that `model`, once adapted, is exported as; `model` is left as it is."""
        return model

    def enter(self, pathways: DualPathway, span: Span, new: bool) -> None:
        """At the start of a stage, after its snapshot, or where a run resumes within it.

        Args:
            pathways (`DualPathway`):
                In the stage.
            span (`Span`):
                The stage and its length.
            new (`bool`):
                Whether it starts here.
        """

    def penalties(self, pathways: DualPathway) -> Iterator[Tensor]:
        """Terms to add to the loss of each optimizer step after the warm-up, float32 scalars with a graph."""
        yield from ()

    def view(self, pathways: DualPathway) -> nn.Module | None:
        """The model that a joint step takes its loss of, over the usual component's weights; `None`: that one."""

    def before_step(self, pathways: DualPathway) -> None:
        """After the backward, before the optimizer moves the usual component; not in the warm-up."""

    def after_step(self, pathways: DualPathway) -> None:
        """After an optimizer step that was not skipped, before the average moves; not in the warm-up."""

    def tensors(self) -> dict[str, Tensor]:
        """What it has learned or counted so far, by name, for a checkpoint."""
        return {}

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` was in a checkpoint that is resumed; before its stage is entered again."""

    def step_of_schedule(self, step: int, steps: int, warmup: int) -> int:
        """The step of the last stage whose learning rate step `step` of it has.

        Args:
            step (`int`):
                Step of the schedule, from 0.
            steps (`int`):
                Length of the stage.
            warmup (`int`):
                Steps in which its rate rises.
        """
        return step

    @property
    def shifts_schedule(self) -> bool:
        """Whether `step_of_schedule` does anything, so that the rate must be a function of the step."""
        return False

    @property
    def chooses_weights(self) -> bool:
        """Whether the weights are chosen after training, by `choose`."""
        return False

    def choose(self, pathways: DualPathway, score: Callable[[], float]) -> None:
        """Put the exported model's weights where source validation likes them best, after the last step.

        Args:
            pathways (`DualPathway`):
                Components with the trained weights.
            score (`Callable`):
                Scores the exported model as it stands on source validation; higher is better.
        """

    def facts(self) -> dict[str, Any]:
        """What a finished run tells of it in `metrics.json`, by key."""
        return {}


class Method(Ingredient):
    """A method: the stages that a run goes through, with its own hooks as those of an [`Ingredient`].

    Attributes:
        stages (`ClassVar[tuple[Stage, ...]]`):
            In order. Each starts from a snapshot of the last.
        default_average (`ClassVar[str | None]`, *optional*):
            The average that it has where none is asked for: a key of `AVERAGES`, or `None`.
    """

    stages: ClassVar[tuple[Stage, ...]]
    default_average: ClassVar[str | None] = None

    @property
    def course(self) -> tuple[Stage, ...]:
        """The stages of a run with these settings; `stages`, unless a setting exchanges one."""
        return self.stages

    @property
    def lengths(self) -> Mapping[Stage, int]:
        """Steps of stages before the last that are not as long as the decoder warm-up."""
        return {}

    @classmethod
    def trains_encoder(cls) -> bool:
        """Whether any stage moves the encoder."""
        return any(stage != "warmup" for stage in cls.stages)
