"""The domains of a run by what they are for, and places without labels beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.places import Place


def without_labels(domain: Domain) -> Place:
    """The images of a domain, as if nobody had labelled them.

    Args:
        domain (`Domain`):
            The domain.
    """
    return Place(domain.name, domain.dataset.select_columns(["id", "image"]), domain.value_range)


@dataclass(frozen=True)
class Domains:
    """The data of a run.

    Args:
        source (`list[Domain]`):
            Domains to train on.
        validation (`list[Domain]`):
            Source data that no gradient comes from, to choose a checkpoint on.
        unseen (`list[Domain]`):
            Domains that are reported, and that nothing is ever chosen on.
        places (`list[Place]`, *optional*, defaults to `[]`):
            Places without labels, which the exported models are looked at on.
    """

    source: list[Domain]
    validation: list[Domain]
    unseen: list[Domain]
    places: list[Place] = field(default_factory=list)

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.source[0].labels

    @property
    def evaluated(self) -> list[Domain]:
        """The domains that are scored, validation first."""
        return [*self.validation, *self.unseen]
