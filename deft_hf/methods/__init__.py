"""Methods and what goes with them, each in one file, and the registry that everything else is made from.

Arguments, recipe keys, rows of comparisons, the documentation's table and the refusals under launchers come from here.
This package is read for `--help` and for recipes too, so its modules import torch only inside the functions that
compute something; `deft_hf.methods.core` is what they compute with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from deft_hf.methods.averages import AverageSettings, Averaging
from deft_hf.methods.base import Ingredient, Method
from deft_hf.methods.composition import Composition
from deft_hf.methods.deft import DeFT, DeFTSettings
from deft_hf.methods.digrap import DiGraP, DiGraPSettings
from deft_hf.methods.freeze_embed import FreezeEmbed, FreezeEmbedSettings
from deft_hf.methods.frozen import Frozen
from deft_hf.methods.joint import Joint
from deft_hf.methods.l2_sp import L2SP, DistanceSettings
from deft_hf.methods.ldt import LDT, LDTSettings
from deft_hf.methods.lora import LoRA, LoRASettings
from deft_hf.methods.lp_ft import LPFT
from deft_hf.methods.mixout import Mixout, MixoutSettings
from deft_hf.methods.settings import CommonSettings
from deft_hf.methods.soups import Soups
from deft_hf.methods.spd import SPD, SPDSettings
from deft_hf.methods.variant import Variant
from deft_hf.methods.wise_ft import WiSEFT
from deft_hf.utils.errors import UserError
from deft_hf.utils.extensions import load_extensions

ENTRY_POINTS = "deft_hf.methods"
DEFAULT = DeFT.name

METHODS: dict[str, type[Method]] = {method.name: method for method in (DeFT, Joint, Frozen, LPFT, LDT)}
INGREDIENTS: tuple[type[Ingredient], ...] = (L2SP, WiSEFT, Mixout, FreezeEmbed, LoRA, SPD, DiGraP)
"""What goes with a method, beside its average. LoRA comes after what leaves layers out."""


@dataclass
class MethodSettings(
    DeFTSettings,
    LDTSettings,
    DiGraPSettings,
    FreezeEmbedSettings,
    LoRASettings,
    MixoutSettings,
    SPDSettings,
    DistanceSettings,
    CommonSettings,
    AverageSettings,
):
    """The settings of all methods and ingredients of this package, by one name each."""


@dataclass
class RunSettings(MethodSettings):
    """A method and all settings.

    Args:
        method (`str`, *optional*, defaults to `"deft"`):
            Name of a registered method.
        method_settings (`dict`, *optional*):
            Settings of a method that another package registered, by name.
    """

    method: str = field(default=DEFAULT, metadata={"help": "The method: its name in the registry."})
    method_settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Settings of a method that another package registered."}
    )


_Class = TypeVar("_Class", bound=type[Method])


def register_method(method: _Class) -> _Class:
    """Add a method; usable as a decorator.

    A package that is installed can name its class as an entry point of the group `deft_hf.methods` instead, which the
    commands and the processes that they start find by themselves.

    Args:
        method (`type[Method]`):
            Its `name` is the value of `method` in arguments and recipes; fields of its `Settings` become recipe keys.

    Raises:
        UserError: The name, a row or a setting is taken.

    Example:

    ```python
    from deft_hf.methods import Joint, register_method


    @register_method
    class Slow(Joint):
        name = "slow"
        summary = "joint, under another name"
        variants = {}
    ```
    """
    if METHODS.get(method.name, method) is not method:
        raise UserError(f"method {method.name!r} is registered already, as {METHODS[method.name].__qualname__}")
    taken = {each.name for each in fields(RunSettings)} & {each.name for each in fields(method.Settings)}
    if taken:
        raise UserError(
            f"method {method.name!r}: its settings {', '.join(sorted(taken))} are deft_hf's own; rename them"
        )
    others = {name for each in _all() if each is not method for name in each.variants}
    if rows := sorted(others & set(method.variants)):
        raise UserError(f"method {method.name!r}: the rows {', '.join(rows)} are another method's; rename them")
    METHODS[method.name] = method
    return method


def methods() -> Mapping[str, type[Method]]:
    """Every method by name: those of this package, and those that others registered."""
    _load_extensions()
    return METHODS


def variants() -> dict[str, Variant]:
    """The rows that a comparison knows, by name."""
    _load_extensions()
    return {name: variant for each in _all() for name, variant in each.variants.items()}


def extension_settings() -> dict[str, Field]:
    """The settings of methods that other packages registered, by name."""
    return {each.name: each for method in methods().values() for each in _brought(method)}


def settings_of_others(method: str) -> dict[str, Any]:
    """The defaults of the settings that other methods have for themselves and `method` has not."""
    own = {each.name for each in fields(known.Settings)} if (known := methods().get(method)) else set()
    every = {each.name: each.default for other in methods().values() for each in fields(other.Settings)}
    return {name: default for name, default in every.items() if name not in own}


def identity_defaults() -> dict[str, Any]:
    """The defaults of what makes a method another one: a baseline beside it has these."""
    return {each.name: each.default for each in fields(MethodSettings) if each.metadata.get("identity")}


def state_settings() -> set[str]:
    """What decides what a checkpoint holds: `method`, and the settings declared so."""
    return {"method", *(each.name for each in fields(MethodSettings) if each.metadata.get("state"))}


def compose(settings: Any, *brought: Ingredient) -> Composition:
    """The method and the ingredients that `settings` ask for.

    Args:
        settings (`RunSettings`):
            Or anything with its fields, such as [`DeFTTrainingArguments`].
        brought (`Ingredient`):
            Further ingredients, which no setting asks for.

    Raises:
        UserError: There is no such method, or it has no such setting.
    """
    known = methods()
    if settings.method not in known:
        raise UserError(f"method is {settings.method!r}: expected one of {', '.join(known)}")
    method = known[settings.method]
    extra = dict(settings.method_settings or {})
    if unknown := sorted(extra.keys() - {each.name for each in _brought(method)}):
        expected = ", ".join(each.name for each in _brought(method)) or "none"
        raise UserError(f"method_settings: method {method.name} has no {', '.join(unknown)}; its own are: {expected}")
    for other in known.values():
        for each in fields(other.Settings) if _is_own(other) and not issubclass(method, other) else ():
            if (value := getattr(settings, each.name)) != each.default:
                raise UserError(f"{each.name} is {value!r}: a setting of method {other.name} alone; leave it out")
    return Composition(
        _take(CommonSettings, settings),
        method(_take(method.Settings, settings) if _is_own(method) else method.Settings(**extra)),
        Averaging(_take(AverageSettings, settings), method.default_average),
        [*(each(_take(each.Settings, settings)) for each in INGREDIENTS), *brought],
    )


def recorded(facts: Mapping[str, Any]) -> RunSettings:
    """The settings that a checkpoint's `deft_state.json` was written under, as far as they decide what it holds."""
    known = {each.name for each in fields(RunSettings)}
    own = {name: value for name, value in facts.items() if name in known and name != "swa_start"}
    return RunSettings(**{**own, "average": facts.get("average") or "none"})


def _is_own(method: type[Method]) -> bool:
    """Whether its settings are of this package, which are all in [`MethodSettings`]."""
    return issubclass(MethodSettings, method.Settings)


def _brought(method: type[Method]) -> tuple[Field, ...]:
    """The settings that a method brings with it, beside those of this package."""
    return () if _is_own(method) else fields(method.Settings)


def _take(kind: type, settings: Any) -> Any:
    return kind(**{each.name: getattr(settings, each.name) for each in fields(kind)})


def _all() -> list[type[Ingredient]]:
    """In the order of tables: the baseline and its rivals, then DeFT, then what others registered."""
    first = [Joint, Frozen, LPFT, Averaging, *INGREDIENTS, DeFT, LDT, Soups]
    return [*first, *(method for method in METHODS.values() if method not in first)]


@cache
def _load_extensions() -> None:
    load_extensions(ENTRY_POINTS, "method", register_method)
