"""Terms of use of pretrained weights and datasets, where they are known.

These are pointers for users of a model, not legal advice: what counts is the text behind each link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from deft_hf.data.layouts import LAYOUTS
from deft_hf.models.embedded import EMBEDDED


@dataclass(frozen=True)
class Terms:
    """Terms of use.

    Attributes:
        name (`str`):
            Name of the licence.
        url (`str`, *optional*):
            Address of its text.
        non_commercial (`bool`, *optional*, defaults to `False`):
            Whether commercial use is excluded.
    """

    name: str
    url: str | None = None
    non_commercial: bool = False


_APACHE = Terms("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
SEGFORMER = Terms(
    "NVIDIA Source Code License for SegFormer", "https://github.com/NVlabs/SegFormer/blob/master/LICENSE", True
)
_BASES: Mapping[str, Terms] = {
    EMBEDDED: _APACHE,
    "nvidia/mit-b*": SEGFORMER,
    "nvidia/segformer-*": SEGFORMER,
    "facebook/dinov2-*": _APACHE,
    "microsoft/resnet-*": _APACHE,
    "microsoft/swin-*": _APACHE,
    "openmmlab/upernet-*": Terms("MIT", "https://opensource.org/license/mit"),
    "timm/resnet*.tv_in1k": Terms("BSD-3-Clause", "https://opensource.org/license/bsd-3-clause"),
}
# By the layout of a recipe.
DATA: Mapping[str, Terms] = {
    name: Terms(layout.terms, layout.url, layout.non_commercial) for name, layout in LAYOUTS.items()
}
DRAWN = Terms("Apache-2.0, drawn by deft_hf")


def base_terms(base_model: str, model_type: str, on_hub: bool) -> Terms | None:
    """The terms of pretrained weights; `None` if they are not known.

    Args:
        base_model (`str`):
            Hub name or folder, as in a recipe.
        model_type (`str`):
            Model type in the model's config.
        on_hub (`bool`):
            Whether `base_model` is a Hub name. A SegFormer in a folder is assumed to be NVIDIA's, as nearly all are: a
            needless warning is the safer mistake.
    """
    for pattern, terms in _BASES.items():
        if fnmatch(base_model.lower(), pattern):
            return terms
    return SEGFORMER if model_type == "segformer" and not on_hub else None


# Identifiers of the Hub (https://huggingface.co/docs/hub/repositories-licenses); another licence is `other` by name.
HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
    """.split()
)
