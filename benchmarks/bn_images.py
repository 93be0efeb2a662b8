"""What BatchNorm statistics taken anew on the unlabelled images of a place do to the score there.

    python benchmarks/bn_images.py RECIPE RUN [RUN ...] --work FOLDER --out benchmarks/results/bn_images.json

Every run is scored on each unseen domain of the recipe as it is, and exported with `--bn-images` on all images of that
domain, whose labels are used for the score alone. What is in the work folder already is not computed again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from deft_hf.recipe import Recipe
from deft_hf.recipe.domains import FolderEntry
from deft_hf.runs.evaluate import evaluate
from deft_hf.runs.export import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipe = Recipe.load(options.recipe)
    domains = [entry for entry in recipe.data.unseen if isinstance(entry, FolderEntry) and entry.labelled]
    cases = [case(run, recipe, domain, options.work / run.name) for run in options.runs for domain in domains]
    gains = [found["on_its_images"] - found["plain"] for found in cases]
    by_domain = {
        domain.name: {
            key: mean(found[key] for found in cases if found["domain"] == domain.name)
            for key in ("plain", "on_its_images")
        }
        for domain in domains
    }
    facts = {"cases": cases, "mean_by_domain": by_domain, "gains": sum(gain > 0 for gain in gains), "of": len(gains)}
    options.out.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    print(options.out.read_text("utf-8"))


def case(run: Path, recipe: Recipe, domain: FolderEntry, work: Path) -> dict[str, Any]:
    """Mean IoU of a run on a domain: as it was trained, and with the domain's own BatchNorm statistics."""
    exported = work / f"{domain.name}_model"
    if not (exported / "config.json").is_file():
        export(run, exported, batchnorm_images=domain.images_folder(recipe.data.root))
    models = {"plain": run, "on_its_images": exported}
    scores = {key: _score(model, recipe, domain, work / f"{domain.name}_{key}") for key, model in models.items()}
    return {
        "run": run.name,
        "domain": domain.name,
        **{key: found["mean_iou"] for key, found in scores.items()},
        "iou": {key: found["iou"] for key, found in scores.items()},
    }


def _score(model: Path, recipe: Recipe, domain: FolderEntry, out: Path) -> dict[str, Any]:
    results = out / "results/metrics.json"
    if not results.is_file():
        data = recipe.data.model_copy(update={"validation": [], "unseen": [domain]})
        evaluate(model, recipe.model_copy(update={"data": data}), out, pictures=False)
    return json.loads(results.read_text("utf-8"))["scores"][domain.name]


if __name__ == "__main__":
    main()
