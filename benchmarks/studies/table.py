"""Pack what the runs of a study wrote into one compressed table, and read it back.

    python benchmarks/studies/table.py pack outputs/studies/NAME benchmarks/studies/results/NAME/runs.jsonl.xz
    python benchmarks/studies/table.py check FOLDER TABLE      # does the table hold every file of the folder, equal?
    python benchmarks/studies/table.py unpack TABLE FOLDER
    python benchmarks/studies/table.py scores TABLE > scores.csv

A table is JSON Lines under xz, a line per file: `{"path": ..., "content": ...}`, where the content is parsed JSON,
text, or the arrays of an `.npz` as lists. From Python, `runs(TABLE)` gives what each run wrote, `scores(TABLE)` its
scores per class, and `frame(TABLE)` a pandas frame with a row per run.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# The evidence, and not the models, checkpoints and pictures that lie beside it.
FILES = (
    "comparison.json",
    "timings.json",
    "against_*/comparison.json",
    "curves/*/curve.json",
    "runs/*.json",
    "**/metrics.json",
    "**/history.json",
    "**/image_counts.npz",
    "log.txt",
)


def pack(folder: Path, table: Path) -> list[str]:
    """Write the files of a study's folder into a table.

    Args:
        folder (`Path`): What `deft_hf.compare` or `deft_hf.train` left, or what `unpack` wrote.
        table (`Path`): The `.jsonl.xz` to write.

    Returns:
        The paths that were packed, relative to the folder.
    """
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    names = [path.relative_to(folder).as_posix() for path in paths]
    table.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(table, "wt", encoding="utf-8", newline="\n", preset=9 | lzma.PRESET_EXTREME) as file:
        for path, name in zip(paths, names, strict=True):
            file.write(json.dumps({"path": name, "content": _load(path)}, ensure_ascii=False) + "\n")
    return names


def read(table: Path) -> dict[str, Any]:
    """The content of every file in a table, by path."""
    with lzma.open(table, "rt", encoding="utf-8", newline="\n") as file:
        return {line["path"]: line["content"] for line in map(json.loads, file)}


def unpack(table: Path, folder: Path) -> list[str]:
    """Write the files of a table into a folder again, and return their paths in it."""
    contents = read(table)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez_compressed(path, **{key: np.asarray(array) for key, array in content.items()})
        elif path.suffix == ".json":
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            path.write_text(content, encoding="utf-8", newline="")
    return list(contents)


def differing(folder: Path, table: Path, patterns: tuple[str, ...] = FILES) -> tuple[int, list[str]]:
    """How many files of a folder were compared with a table, and the paths of those that it lacks or has otherwise."""
    contents = read(table)
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    wrong = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        # As text: equal digits, equal order of keys, and NaN equals NaN.
        if name not in contents or json.dumps(contents[name]) != json.dumps(_load(path)):
            wrong.append(name)
    return len(paths), wrong


def runs(table: Path) -> list[dict[str, Any]]:
    """What each run wrote: its facts, with `run` (its name) and `history` (the trainer's log)."""
    contents = read(table)
    found = []
    for path, content in contents.items():
        if isinstance(content, dict) and {"method", "seed", "scores"} <= content.keys():
            name = path.removesuffix(".json").removesuffix("/metrics").removesuffix("/results")
            log = contents.get(path.replace("metrics.json", "history.json"), []) if "history" not in content else []
            found.append({"run": name, "history": log, **content})
    return found


def scores(table: Path) -> Iterator[dict[str, Any]]:
    """A row per run, component, domain and class: its IoU and accuracy, None where the class is absent."""
    for run in runs(table):
        for component, key in (("exported", "scores"), ("usual", "usual_scores")):
            for domain, found in run.get(key, {}).items():
                for label, iou, accuracy in zip(run["labels"], found["iou"], found["accuracy"], strict=True):
                    row = {name: run[name] for name in ("run", "method", "seed")}
                    row |= {"component": component, "domain": domain, "class": label}
                    yield row | {"iou": iou, "accuracy": accuracy}


def frame(table: Path) -> pd.DataFrame:
    """A pandas frame: a row per run, nested values under dotted names (`scores.dusk.mean_iou`), lists as they are."""
    import pandas as pd

    return pd.json_normalize(runs(table)).set_index("run")


def _load(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {key: file[key].tolist() for key in file}
    text = path.read_bytes().decode("utf-8")
    return json.loads(text) if path.suffix == ".json" else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["pack", "check", "unpack", "scores"])
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="folder and table, in the order above")
    options = parser.parse_args()
    if len(options.paths) != (1 if options.command == "scores" else 2):
        parser.error(f"{options.command} takes {'a table' if options.command == 'scores' else 'a folder and a table'}")
    first, *rest = options.paths
    if not first.exists():
        parser.error(f"{first} does not exist")

    if options.command == "pack":
        names = pack(first, *rest)
        if not names:
            sys.exit(f"{first}: nothing to pack; the files looked for are {', '.join(FILES)}")
        print(f"{rest[0]}: {len(names)} files, {rest[0].stat().st_size} bytes")
    elif options.command == "check":
        count, wrong = differing(first, *rest)
        print(f"{first}: {count - len(wrong)} of {count} files equal the table's")
        sys.exit("\n".join(wrong) or None)
    elif options.command == "unpack":
        print(f"{rest[0]}: {len(unpack(first, *rest))} files")
    else:
        writer = csv.DictWriter(
            sys.stdout, ["run", "method", "seed", "component", "domain", "class", "iou", "accuracy"]
        )
        writer.writeheader()
        writer.writerows(scores(first))


if __name__ == "__main__":
    main()
