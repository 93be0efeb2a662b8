"""What a comparison and a curve have in common before and while runs are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deft_hf.comparison.checks import check_data, check_folder, check_request
from deft_hf.comparison.plan import Plan
from deft_hf.data.roles import Domains
from deft_hf.recipe import Recipe
from deft_hf.runs.data import load_domains
from deft_hf.runs.settle import overrides as chosen_overrides
from deft_hf.runs.settle import settled
from deft_hf.utils.outputs import claimed
from deft_hf.utils.places import check_temporary


@dataclass(frozen=True)
class Request:
    """A recipe and seeds, checked; nothing is written yet.

    Attributes:
        base (`Recipe`):
            The recipe, settled.
        plan (`Plan`):
            What runs are made of.
        seeds (`list[int]`):
            The seeds.
        folder (`Path`):
            The output folder.
    """

    base: Recipe
    plan: Plan
    seeds: list[int]
    folder: Path

    @classmethod
    def checked(
        cls,
        recipe: str,
        seeds: int | Sequence[int],
        overrides: Sequence[str],
        jobs: int,
        rates: Sequence[float] = (),
        values: bool = False,
        curve_points: int = 0,
        tunes: bool = False,
    ) -> Request:
        """The request of arguments as [`~deft_hf.comparison.experiment.compare`] has them.

        `tunes`: each row has a learning rate of its own, and none is chosen for the recipe.

        Raises:
            UserError: If recipe or arguments contain a mistake.
        """
        base = settled(Recipe.load(recipe, overrides), selects=False, tunes=tunes)
        check_request(base, seeds, jobs, rates, values, curve_points)
        folder = Path(base.training.output_dir)
        plan = Plan(recipe, (*overrides, *chosen_overrides(base.choices)), folder / "runs", curve_points)
        return cls(base, plan, list(range(seeds)) if isinstance(seeds, int) else list(seeds), folder)

    @contextmanager
    def claimed(self) -> Iterator[Domains]:
        """Claims the output folder, and reads every image once, here and not in every run.

        Raises:
            UserError: If the folder holds something else, the data is wrong, or finished runs saw other images.
        """
        check_temporary()
        with claimed(self.folder, "compare", lambda: check_folder(self.folder), "training.output_dir"):
            domains = load_domains(self.base.data)
            check_data(self.folder / "runs", self.base, domains)
            yield domains
