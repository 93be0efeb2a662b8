"""Learning rates beside each other on small data, on source validation: where the defaults of recipes come from.

    python benchmarks/default_rates.py --backbone WEIGHTS --data street7=DATA/camvid_day --pairs 5e-5:5e-5,1e-4:1e-3

`streets` is the drawn world. A pair is the rate of the encoder and the rate of the fresh head. One line of JSON a run.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import yaml
from transformers.utils import logging

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.train import make_trainer

STREET7 = ["drivable", "non-drivable", "living things", "vehicles", "roadside objects", "far objects", "sky"]
NAMES = {"street7": STREET7, "nuclei2": ["background", "nucleus"], "crack3": ["background", "crack"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="folder of a backbone")
    parser.add_argument("--head", help="upernet or dpt, for backbones that no segmentation model has")
    parser.add_argument("--data", default="streets", help="streets, or NAME=FOLDER")
    parser.add_argument("--pairs", required=True, help="ENCODER:HEAD,...")
    parser.add_argument("--optim", default="adamw_torch")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--method", default="joint")
    parser.add_argument("--warmup", type=int, help="steps of the decoder warm-up")
    parser.add_argument("--schedule", default="linear")
    parser.add_argument("--rise", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs=4, default=[96, 128, 96, 96], help="image and crop")
    options = parser.parse_args()
    logging.set_verbosity_error()
    for pair in options.pairs.split(","):
        encoder, head = map(float, pair.split(":"))
        started = time.perf_counter()
        scores = run(options, encoder, head)
        line = vars(options) | {"pair": pair, "seconds": round(time.perf_counter() - started), **scores}
        line["backbone"] = Path(options.backbone).name
        line["data"] = options.data.partition("=")[0]
        print(json.dumps(line), flush=True)


def run(options: argparse.Namespace, encoder: float, head: float) -> dict[str, float]:
    """Train once; scores on source validation, and of predicting the commonest class everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(_written(options, encoder, head, Path(folder)))
        domains = load_domains(recipe.data)
        domains.source[0] = domains.source[0].select(_spread(len(domains.source[0]), options.images))
        trainer = make_trainer(method_arguments(recipe, options.method), recipe.model, recipe.data, domains)
        trainer.train()
        trainer.evaluate()
        scores = trainer.scores[f"eval_{domains.validation[0].name}"]
        counts = trainer.evaluator.confusions[f"eval_{domains.validation[0].name}"].sum(1)
        share = float(counts.max() / counts.sum())
        return {
            "mean_iou": round(100 * scores.mean_iou, 1),
            "one_class": round(100 * share / int((counts > 0).sum()), 1),
            "loss": round([line["loss"] for line in trainer.state.log_history if "loss" in line][-1], 3),
        }


def _written(options: argparse.Namespace, encoder: float, head: float, folder: Path) -> Path:
    name, _, place = options.data.partition("=")
    own = [{"streets": "clear", "count": 96, "size": [96, 128]}]
    data = {
        "labels": "streets" if name == "streets" else {"names": NAMES[name]},
        "source": own if name == "streets" else [{"folder": place, "split": "train"}],
        "validation": [own[0] | {"seed": 1, "count": 32}]
        if name == "streets"
        else [{"folder": place, "split": "val"}],
        "image_size": options.sizes[:2],
        "crop_size": options.sizes[2:],
        "scale": [0.75, 1.5],
        "check": False,
    }
    model = {"backbone": options.backbone, "head": options.head} if options.head else {"checkpoint": options.backbone}
    if options.head:
        model["head_config"] = {"hidden_size": 64}
        model["config"] = {"out_indices": [3, 6, 9, 12]}
    sections = {
        "model": model,
        "method": {
            "name": options.method,
            "encoder_learning_rate": encoder,
            "decoder_learning_rate": head,
            "decoder_warmup_steps": options.warmup,
            "batchnorm_batches": 8,
        },
        "data": data,
        "training": {
            "output_dir": str(folder / "out"),
            "seed": options.seed,
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "per_device_eval_batch_size": 16,
            "optim": options.optim,
            "optim_args": "momentum=0.9" if options.optim == "sgd" else None,
            "weight_decay": 1e-4 if options.optim == "sgd" else 1e-2,
            "lr_scheduler_type": options.schedule,
            "warmup_steps": options.rise,
            "logging_steps": 10,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def _spread(length: int, wished: int) -> list[int]:
    """`wished` of `length` positions, evenly spaced: neighbouring frames are alike."""
    return [index * length // wished for index in range(min(wished, length))]


if __name__ == "__main__":
    main()
