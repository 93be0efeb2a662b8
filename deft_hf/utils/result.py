"""What the functions under the commands return: a table and pictures, which a notebook shows as such."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


class Result:
    """A result of a command, as a table and as pictures.

    A notebook shows both when a cell ends in it.
    """

    def to_pandas(self) -> DataFrame:
        """The numbers as a table; scores are in [0, 1], NaN where there was nothing to score."""
        raise NotImplementedError

    def pictures(self) -> Sequence[Path]:
        """The pictures on disk that show it best; those that no longer exist are left out."""
        return ()

    def show(self) -> None:
        """Show table and pictures in a notebook; elsewhere print the table and where the pictures are."""
        pictures = [path for path in self.pictures() if path.is_file()]
        if _in_notebook():
            from IPython.display import HTML, display

            display(HTML(self._repr_html_()))
        else:
            print(self.to_pandas().to_string(float_format="{:.3f}".format))
            print("".join(f"\n{path}" for path in pictures), end="\n" if pictures else "")

    def _repr_html_(self) -> str:
        table = self.to_pandas().to_html(float_format="{:.3f}".format, na_rep="-", border=0)
        return table + "".join(_inline(path) for path in self.pictures() if path.is_file())


def _inline(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{path.stem}" style="max-width: 100%; display: block" src="data:image/png;base64,{content}">'


def _in_notebook() -> bool:
    # A notebook imports IPython before any of its cells runs.
    found = sys.modules.get("IPython")
    return found is not None and getattr(found.get_ipython(), "kernel", None) is not None


def score_columns(scores: dict, labels: Sequence[str]) -> dict[str, float | int]:
    """A row of scores for a table: the means, and the IoU of each class as `iou NAME`; so for further metrics.

    Args:
        scores (`dict`):
            `Scores.to_dict()`, or the same read from JSON, which has null for NaN.
        labels (`Sequence[str]`):
            Names of the classes.
    """

    def number(value: float | None) -> float:
        return float("nan") if value is None else float(value)

    row: dict[str, float | int] = {
        name: number(scores[name]) for name in ("mean_iou", "pixel_accuracy", "mean_accuracy")
    }
    row |= {f"iou {label}": number(value) for label, value in zip(labels, scores["iou"], strict=True)}
    for name, value in scores.items():
        if isinstance(value, list) and name not in ("iou", "accuracy", "absent"):
            row |= {f"{name} {label}": number(each) for label, each in zip(labels, value, strict=True)}
        elif not isinstance(value, list) and name not in (*row, "pixels"):
            row[name] = number(value)
    return {**row, "pixels": scores["pixels"]}
