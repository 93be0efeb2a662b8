"""Five studies at equal compute: the runs that the studies' tables hold, beside those of this study.

    python benchmarks/studies/equal_compute.py FOLDER --out benchmarks/studies/results/equal_compute

`FOLDER/STUDY/comparison.json` is what `compare` wrote of `deft_split,deft_split_equal,joint_equal,lp_ft_equal`. Prints
the tables of the page, and writes its picture and `equal_compute.json`, which has the scores by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

from deft_hf.comparison.statistics import Interval, t_interval

sys.path.insert(0, str(Path(__file__).parent))
import table  # noqa: E402

RESULTS = Path(__file__).parent / "results"
STUDIES = {
    "street7_mobilenetv2": "CamVid, MobileNetV2",
    "street7_dinov2": "CamVid, DINOv2 derivative",
    "streets_to_street7_mobilenetv2": "drawn streets → CamVid, MobileNetV2",
    "streets_to_street7_dinov2": "drawn streets → CamVid, DINOv2 derivative",
    "nuclei2_mobilenetv2": "nuclei, MobileNetV2",
}
EARLIER = ("joint", "lp_ft", "deft")
BASELINE = "deft"
Scores = dict[str, dict[int, float]]  # by method and seed


def study(name: str, folder: Path) -> dict[str, Any]:
    """Of one study, by method: means by the seeds that all have, and the steps of the last stage of *equal* rows."""
    earlier = table.read(RESULTS / name / "runs.jsonl.xz")["comparison.json"]
    later = json.loads((folder / name / "comparison.json").read_text())
    found: dict[str, Any] = {"unseen": {}, "source": {}, "steps": {}}
    for comparison, methods in ((earlier, EARLIER), (later, [*later["methods"]])):
        for spelt in methods:
            row, method = comparison["methods"][spelt], spelt.partition(":")[0]
            for side in ("unseen", "source"):
                found[side][method] = {
                    int(seed): float(np.mean([scores["scores"][place]["mean_iou"] for place in comparison[side]]))
                    for seed, scores in row["seeds"].items()
                }
            found["steps"][method] = row["settings"].get("training.max_steps")
    seeds = set.intersection(*(set(scores) for scores in found["unseen"].values()))
    for side in ("unseen", "source"):
        found[side] = {m: {seed: s[seed] for seed in sorted(seeds)} for m, s in found[side].items()}
    return found


def difference(scores: Scores, method: str, baseline: str = BASELINE) -> dict[int, float]:
    """By seed that both have, a method's score less the baseline's."""
    return {seed: value - scores[baseline][seed] for seed, value in scores[method].items() if seed in scores[baseline]}


def pooled(studies: dict[str, Any], method: str) -> Interval:
    """Mean over the studies of the difference at each seed that all have, and its t interval over the seeds."""
    rows = [difference(found["unseen"], method) for found in studies.values()]
    seeds = set.intersection(*(set(row) for row in rows))
    return t_interval([float(np.mean([row[seed] for row in rows])) for seed in sorted(seeds)])


def tables(studies: dict[str, Any]) -> str:
    methods = list(next(iter(studies.values()))["unseen"])
    lines = [f"| study | {' | '.join(f'`{method}`' for method in methods)} |", "|---" + "|---:" * len(methods) + "|"]
    for name, found in studies.items():
        cells = [f"{100 * np.mean(list(found['unseen'][method].values())):.1f}" for method in methods]
        lines.append(f"| {STUDIES[name]} | {' | '.join(cells)} |")
    others = [method for method in methods if method != BASELINE]
    lines += ["", f"| less `{BASELINE}` | {' | '.join(f'`{method}`' for method in others)} |"]
    lines += ["|---" + "|---:" * len(others) + "|"]
    for name, found in studies.items():
        cells = [t_interval(list(difference(found["unseen"], method).values())).in_points() for method in others]
        lines.append(f"| {STUDIES[name]} | {' | '.join(cells)} |")
    lines.append(
        f"| **mean of the studies** | {' | '.join(pooled(studies, method).in_points() for method in others)} |"
    )
    lines += ["", f"| steps of the last stage | {' | '.join(f'`{method}`' for method in methods)} |"]
    lines += ["|---" + "|---:" * len(methods) + "|"]
    for name, found in studies.items():
        cells = [str(found["steps"][method] or "the recipe's") for method in methods]
        lines.append(f"| {STUDIES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(studies: dict[str, Any], path: Path) -> None:
    methods = [method for method in next(iter(studies.values()))["unseen"] if method != BASELINE]
    figure, axes = pyplot.subplots(1, len(studies) + 1, figsize=(13, 3.4), sharey=True, layout="constrained")
    rows = {
        STUDIES[name].replace(", ", "\n"): {
            method: t_interval(list(difference(found["unseen"], method).values())) for method in methods
        }
        for name, found in studies.items()
    }
    rows["mean of the studies"] = {method: pooled(studies, method) for method in methods}
    for axis, (title, intervals) in zip(axes, rows.items(), strict=True):
        for height, method in enumerate(reversed(methods)):
            found = intervals[method]
            axis.plot([100 * found.low, 100 * found.high], [height, height], color="0.55", linewidth=2)
            axis.plot(100 * found.mean, height, "o", color="C0" if found.clear_of_zero else "0.3")
        axis.axvline(0, color="0.8", zorder=0)
        axis.set_title(title, fontsize=9)
        axis.set_yticks(range(len(methods)), list(reversed(methods)))
    figure.supxlabel(f"unseen mean less {BASELINE}'s, points; 95 % t interval over the seeds", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="outputs of compare, a folder a study")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    studies = {
        name: study(name, options.folder) for name in STUDIES if (options.folder / name / "comparison.json").is_file()
    }
    if not studies:
        parser.error(f"{options.folder}: no STUDY/comparison.json there; expected {', '.join(STUDIES)}")
    print(tables(studies))
    draw(studies, options.out / "figures" / "differences.png")
    (options.out / "equal_compute.json").write_text(json.dumps(studies) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
