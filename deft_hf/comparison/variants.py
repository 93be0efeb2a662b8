"""The rows of a comparison as the command line names them."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import yaml

from deft_hf.methods import variants
from deft_hf.methods.variant import Variant
from deft_hf.utils.errors import UserError


def parse_variants(text: str) -> dict[str, Variant]:
    """Variants by name from text such as `joint,deft,deft:method.ema_decay_steps=40000`.

    The text has names of rows, with settings of one's own after colons.

    Raises:
        UserError: If a name is unknown or repeated, or a setting is not `key=value`.
    """
    known = variants()
    chosen: dict[str, Variant] = {}
    for spec in filter(None, (part.strip() for part in text.split(","))):
        name, *settings = spec.split(":")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise UserError(f"methods: found {name!r}; {hint}")
        if spec in chosen:
            raise UserError(f"methods: found {spec} twice; keep one")
        own = dict(map(_setting, settings))
        variant = known[name]
        note = variant.note + "".join(f", {key}={value}" for key, value in own.items())
        chosen[spec] = replace(variant, note=note, own={**variant.own, **own})
    if not chosen:
        raise UserError("methods: found none, expected names with commas between them, such as joint,lp_ft,deft")
    return chosen


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"methods: found {text!r}, expected key=value, such as method.ema_decay_steps=40000")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # of a date that there is not
        raise UserError(f"methods: found {text!r}, whose value is no YAML") from None
