"""Everything that runs on a CPU, with small settings, in one command and under a quarter of an hour; and its page.

    python benchmarks/cpu.py --out FOLDER

`FOLDER/README.md` has a table a benchmark, with the command of its full version; `FOLDER/cpu.json` all figures, the
device, versions, commit, and the seconds of each. Both are rewritten after each benchmark. One that fails is a row
that says why, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 600  # of one benchmark

Found = Mapping[str, Any]
Tables = list[tuple[list[str], list[list[str]]]]


def ratio(value: float) -> str:
    return f"{value:.2f}"


def step_cost(found: list[Found]) -> Tables:
    header = ["model", "DeFT", "floor of DeFT", "DeFT over its floor", "split", "EMA", "peak memory of DeFT"]
    keys = ("deft", "parts", "deft_by_parts", "split", "ema", "memory_deft")
    return [(header, [[row["model"], *(ratio(row[key]) for key in keys)] for row in found])]


def row_loss(found: Found) -> Tables:
    rows = [
        [str(row["classes"]), f"{row['logits']} x {row['logits']}", ratio(row["time"]), ratio(row["memory"])]
        for row in found["rows"]
    ]
    return [(["classes", "logits", "time", "memory"], rows)]


def memory(found: Found) -> Tables:
    keys = ("joint_peak", "model_copy", "predicted_deft_peak", "deft_peak")
    rows = [[row["model"], *(f"{row[key]:.0f}" for key in keys)] for row in found["peaks_MiB"]]
    return [(["MiB", "joint", "one more model", "predicted for DeFT", "DeFT"], rows)]


def pipeline(found: Found) -> Tables:
    return [
        ([title, "ms"], [[name, f"{value:.1f}"] for name, value in rows.items()])
        for title, rows in found.items()
        if title.startswith("ms ")
    ]


def class_index(found: Found) -> Tables:
    first, second = found["first start"], found["second start"]
    rows = [[name, f"{row['seconds']:.2f}"] for name, row in first.items() if "seconds" in row]
    rows.append(["from the cache", f"{second['from the cache']:.3f}"])
    apart = max(row["largest difference"] for row in found["samplers"].values())
    drawn = [["largest difference between drawn and stated shares of a class", f"{100 * apart:.3f} %"]]
    return [([f"{found['masks']} masks", "seconds"], rows), (["samplers", ""], drawn)]


def large_picture(found: Found) -> Tables:
    size = f"{found['width']} x {found['height']}"
    return [(["pixels", "seconds", "peak MiB"], [[size, str(found["seconds"]), str(found["peak_mib"])]])]


def start(found: Found) -> Tables:
    """Its JSON is flat: what ends in `_s` are seconds or, with `_per_s`, images a second."""
    times = {key: value for key, value in found.items() if key.endswith("_s") and not key.endswith("_per_s")}
    rates = {key: value for key, value in found.items() if key.endswith("_images_per_s")}

    def rows(of: Mapping[str, float], ending: str) -> list[list[str]]:
        return [[key.removesuffix(ending).replace("_", " "), f"{value:.2f}"] for key, value in of.items()]

    return [
        (["from the command, of an import or of a checkpoint", "seconds"], rows(times, "_s")),
        (["scoring and prediction, tiny model", "images a second"], rows(rates, "_images_per_s")),
    ]


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder: what it shows, its quick and full arguments, and how its JSON becomes tables."""

    title: str
    told: str
    quick: str
    full: str
    read: Callable[[Any], Tables]

    @property
    def script(self) -> str:
        return f"{self.read.__name__}.py"


BENCHMARKS = [
    Benchmark(
        "What a step costs",
        "In steps of joint fine-tuning, on the same batch. The floor is the sum of DeFT's parts: each pathway alone "
        "and one step of the optimizer.",
        "--models segformer-b0,mobilenetv2,upernet-dinov2-small --repeats 5 --out OUT",
        "--out FILE",
        step_cost,
    ),
    Benchmark(
        "The loss by rows",
        "Time and memory as ratios to resizing all logits and then taking the cross-entropy, for images of 512 x 512.",
        "--repeats 3 --out OUT",
        "--out FILE",
        row_loss,
    ),
    Benchmark(
        "Memory of a step",
        "The bytes of all tensors alive at the peak. DeFT should need what joint fine-tuning needs and "
        "one more model.",
        "--side 128 --out OUT",
        "--side 256 --out FILE",
        memory,
    ),
    Benchmark(
        "The training pipeline and the metric, beside others",
        "Milliseconds of CPU time, one thread; fewer is better. What is not installed has no row.",
        "--rounds 2 --out OUT",
        "--out FILE",
        pipeline,
    ),
    Benchmark(
        "The class index",
        "Which classes are where in the masks, for the samplers that draw rare classes more often.",
        "WORK --count 100 --out OUT",
        "FOLDER --out FILE",
        class_index,
    ),
    Benchmark(
        "Prediction of a large picture",
        "With windows of 512 pixels and a tiny model. The memory of Python and its libraries is in the peak.",
        "--model tiny --width 4000 --height 3000 --out OUT",
        "--model tiny --out FILE",
        large_picture,
    ),
    Benchmark(
        "Around the steps",
        "From the command to the first step (the first time, the second, and after one mask has changed), imports, "
        "checkpoints, and how fast a folder is scored and predicted.",
        "--quick --out OUT",
        "--out FILE",
        start,
    ),
]


def run(benchmark: Benchmark) -> dict[str, Any]:
    """Its command, seconds and `result`, or why it has none as `failure`."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, work = Path(folder) / "out.json", Path(folder) / "work"
        places = {"OUT": str(out), "WORK": str(work)}
        command = [sys.executable, str(HERE / benchmark.script)]
        command += [places.get(word, word) for word in benchmark.quick.split()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            ended: dict[str, Any] = {"failure": f"ran for more than {LIMIT_S} seconds"}
        else:
            if done.returncode == 0:
                ended = {"result": json.loads(out.read_text(encoding="utf-8"))}
            else:
                last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
                ended = {"failure": f"status {done.returncode}: {last}"}
    asked = benchmark.quick.replace("OUT", "FILE").replace("WORK", "FOLDER")
    return {"arguments": asked, "seconds": round(time.perf_counter() - began, 1), **ended}


def page(found: Found) -> str:
    """The page of what was found, `cpu.json`'s content, as Markdown."""
    from deft_hf.scoring.report import markdown_table

    count, versions = len(found["benchmarks"]), ", ".join(" ".join(pair) for pair in found["versions"].items())
    failed = sum("failure" in entry for entry in found["benchmarks"].values())
    lines = [
        "# Everything that runs on a CPU",
        f"Measured on **{found['device']}**, {found['cores']} cores, load {found['load']:.1f} at the start.",
        f"    python benchmarks/cpu.py --out FOLDER    # {found['seconds'] / 60:.1f} minutes here",
        f"{count - failed} of {len(BENCHMARKS)} benchmarks with small settings: fewer rounds, smaller inputs. Each "
        "names the command of its full version. Ratios hold on a busy machine, since what is compared takes turns in "
        "one process; seconds are of this device. All figures are in [cpu.json](cpu.json).",
    ]
    for benchmark in BENCHMARKS:
        entry = found["benchmarks"].get(benchmark.script)
        if entry is None:
            continue
        lines += [f"## {benchmark.title}", benchmark.told]
        if "failure" in entry:
            lines.append(markdown_table(["failed", "why"], [[benchmark.script, entry["failure"]]]))
        else:
            lines += [markdown_table(*table) for table in benchmark.read(entry["result"])]
            if "missing" in entry["result"] and (missing := entry["result"]["missing"]):
                lines.append(f"Not installed, and left out: {', '.join(missing)}.")
        lines.append(f"`{benchmark.script} {entry['arguments']}`, {entry['seconds']:.0f} seconds. In full:")
        lines.append(f"    python benchmarks/{benchmark.script} {benchmark.full}")
    commit = found["commit"]
    at = f" at {commit['commit'][:12]}{', with changes' if commit['dirty'] else ''}" if commit else ""
    return "\n\n".join([*lines, f"deft_hf{at}: {versions}."]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of cpu.json and README.md")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # before torch is loaded, here and in each
    from deft_hf.runs.provenance import git_state, hardware, versions

    found: dict[str, Any] = {"device": hardware(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    found |= {"commit": git_state(HERE), "versions": versions(), "seconds": 0.0, "benchmarks": {}}
    for number, benchmark in enumerate(BENCHMARKS, 1):
        print(f"[{number}/{len(BENCHMARKS)}] {benchmark.script} {benchmark.quick} ...", end=" ", flush=True)
        entry = run(benchmark)
        found["benchmarks"][benchmark.script] = entry
        found["seconds"] = round(found["seconds"] + entry["seconds"], 1)
        print(
            f"{entry['seconds']:.0f} s" + (f", FAILED, {entry['failure']}" if "failure" in entry else ""), flush=True
        )
        (folder / "cpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(page(found), encoding="utf-8")
    print(f"{folder / 'README.md'}: {found['seconds'] / 60:.1f} minutes")
    return int(any("failure" in entry for entry in found["benchmarks"].values()))


if __name__ == "__main__":
    sys.exit(main())
