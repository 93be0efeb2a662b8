"""The reference of all recipe keys in Markdown, made from the sections: `python -m deft_hf.recipe.reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic.fields import FieldInfo

from deft_hf.recipe import Recipe
from deft_hf.recipe.domains import KINDS, Entry
from deft_hf.recipe.section import Section, hint_of
from deft_hf.recipe.training import TrainingSection
from deft_hf.recipe.values import TEXT, describe

_INTRODUCTION = """# Recipe keys

A recipe is one YAML file with the sections below. `data.crop_size` is the key `crop_size` of the section `data`; on
the command line, `data.crop_size=[160, 208]`. Items of lists are reached by number: `data.unseen.0.folder=coast`.
Sizes are `[height, width]` in pixels. `6e-5` is a number. `--dry-run` checks a recipe and prints it with overrides and
defaults filled in.
"""
_DOMAINS = """### Domains

An item of `data.source`, `data.validation` or `data.unseen` is one of

```yaml
- {folder: town, split: train, images: images, masks: masks, image_suffix: "", mask_suffix: "", name: town}
- {hub: someone/set, split: train, image_column: image, mask_column: mask, config: null, revision: null, name: set}
- {folder: gtav, layout: gtav, split: train, name: gtav}
- {folder: ACDC, layout: acdc, split: val, condition: fog, name: acdc_fog}
- {folder: labelled, annotations: coco, split: train, name: labelled}
- {streets: clear, count: 160, seed: 0, size: [192, 256], name: clear}
```

A `layout` is the official tree of a data set as it is unpacked, with its splits and conditions; `docs/data.md` lists
them. Under `data.labels: cityscapes`, `synthia16` or `street7` the raw ids of each layout of street scenes are known,
and under its own classes (`idd26`, `mapillary65`) those of one; `labels: mapillary_rein` in an entry says otherwise,
for folders and Hub data sets too. GTAV's splits are read from its `split.mat`; pairs whose image and mask differ in
size are left out and named, and so are, in `train`, the fifteen frames that the field's lists leave out. Without a
split it is all of GTAV.

Validation images may be scored corrupted in `data.unseen`, images of `data.source` may not. A domain that pools all
five severities is named `town_fog` and counts their pixels together. The mean of five scores, which studies on
Cityscapes-C report, is near but not equal, and takes an entry for each severity.
"""
_OTHERS = """Every other field of
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments) is
accepted too and checked against its type: {}.
"""


def reference() -> str:
    """All keys, section by section: what each takes, its default, and what it does."""
    parts = [_INTRODUCTION]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        parts.append(f"## {name}\n\n{field.description}\n")
        if section is TrainingSection:
            declared = TrainingSection.model_fields
            others = sorted(f"`{key}`" for key in TrainingSection.keys() if key not in declared)
            parts += [_table(declared), _OTHERS.format(", ".join(others))]
        else:
            parts.append(_table(section.keys()))
        if name == "data":
            parts += [_DOMAINS, "Keys of every domain:\n", _table(Entry.model_fields)]
            for kind, entry in KINDS.items():
                own = {key: each for key, each in entry.model_fields.items() if key not in Entry.model_fields}
                parts += [f"Keys of a domain with `{kind}`:\n", _table(own)]
    return "\n".join(parts)


def _table(fields: Mapping[str, FieldInfo]) -> str:
    return "\n".join(["| key | meaning | takes | default |", "|---|---|---|---|", *_rows(fields)]) + "\n"


def _rows(fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    for key, field in fields.items():
        takes = describe(hint_of(field), at_most=None)
        takes = TEXT if takes.startswith(f"{TEXT}: ") else takes
        cells = (f"`{key}`", field.description or "", takes, _default(field))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value in ({}, [], ""):
        return "–"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"


if __name__ == "__main__":
    print(reference(), end="")
