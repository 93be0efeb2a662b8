"""Streets drawn once a process, and handed on to what is forked from it: drawing is a fifth of a tiny run."""

import pytest

_DRAWN: dict = {}
# Those of the recipe of `tests.comparison.test_plan`, which most runs have.
_USUAL = (("clear", 4, 0, (64, 96)), ("clear", 2, 1, (64, 96)), ("night", 4, 2, (64, 96)))


def remember(patch: pytest.MonkeyPatch) -> None:
    """Let `Domain.from_streets` take what was drawn before with the same arguments."""
    from deft_hf.data import domains

    draw = domains.street_rows

    def rows(*asked):
        if asked not in _DRAWN:
            _DRAWN[asked] = draw(*asked)
        return {name: list(column) for name, column in _DRAWN[asked].items()}

    patch.setattr(domains, "street_rows", rows)


def draw_usual() -> None:
    """Draw what most runs are about to need."""
    from deft_hf.data.streets import street_rows

    _DRAWN.update({asked: street_rows(*asked) for asked in _USUAL})
