"""Can an encoder-only model be decoupled? A small EoMT on the drawn streets, its blocks against its queries and heads.

EoMT has no decoder: its queries go through the last ViT blocks together with the patches. What is pretrained
(embeddings, blocks, norm) is taken for the encoder here, what is new (queries, upscaling, heads) for the
decoder, although one is no function of the other's output.

A small EoMT is trained on every look of the streets but `clear`. A run starts from its encoder, with queries and
heads drawn anew; it is fine-tuned on `clear` and scored on clear streets that it has not seen, and on the other looks.

    OMP_NUM_THREADS=1 python benchmarks/eomt_split.py --pretraining 400 --steps 120 > eomt_split.json
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time

import torch
from torch import nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from deft_hf.data.collate import MaskTargets
from deft_hf.data.domains import Domain
from deft_hf.data.sampling import EvaluationSet
from deft_hf.data.streets import LOOKS, STREETS
from deft_hf.data.transforms import EvalTransform
from deft_hf.methods.core.cost import step_flops
from deft_hf.methods.core.ema import EMA, run_decay
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import FAMILIES
from deft_hf.scoring.inference import score_batches

SIDE, BATCH = 64, 8
UNSEEN = tuple(look for look in LOOKS if look != "clear")


FAMILY = FAMILIES["eomt"]


def drawn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = EomtConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        mlp_ratio=2,
        num_blocks=2,
        num_upscale_blocks=1,
        num_queries=16,
        num_register_tokens=0,
        hidden_dropout_prob=0.0,
        train_num_points=256,
        num_labels=STREETS.num_labels,
        id2label=STREETS.id2label,
        label2id=STREETS.label2id,
    )
    return EomtForUniversalSegmentation(config)


def images(look: str, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    data = EvaluationSet(
        Domain.from_streets(look, count=count, seed=seed, size=(SIDE, SIDE)), EvalTransform((SIDE, SIDE))
    )
    return [data[index] for index in range(count)]


def train(model: nn.Module, data: list, stages: list[tuple[str, int]], rate: float, seed: int) -> DualPathway:
    pathways = DualPathway(model, FAMILY, EMA()).train()
    torch.manual_seed(seed)
    for stage, steps in stages:
        decay = run_decay(0.9999, steps, 80_000) if stage == "decoupled" else 0.0
        pathways.enter(stage, EMA(decay, decay))
        pathways.snapshot()
        optimizer = torch.optim.AdamW([p for p in pathways.usual.parameters() if p.requires_grad], lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            samples = []
            for index in torch.randint(len(data), (BATCH,)).tolist():
                flip = torch.rand(()) < 0.5
                samples.append({name: value.flip(-1) if flip else value for name, value in data[index].items()})
            optimizer.zero_grad()
            pathways(**MaskTargets()(samples))["loss"].backward()
            nn.utils.clip_grad_norm_(pathways.usual.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            pathways.update_generalized()
    return pathways


def score(model: nn.Module, data: list) -> float:
    batches = [
        {name: torch.stack([sample[name] for sample in data[i : i + BATCH]]) for name in data[i]}
        for i in range(0, len(data), BATCH)
    ]
    return 100 * score_batches(model, FAMILY, batches, STREETS.num_labels, "cpu").compute().mean_iou


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining", type=int, default=1000, help="steps")
    parser.add_argument("--steps", type=int, default=300, help="of the last stage; the warm-up has a third of them")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="learning rates")
    options = parser.parse_args()
    torch.set_num_threads(1)

    start = time.perf_counter()
    broad = [sample for number, look in enumerate(UNSEEN) for sample in images(look, 40, 100 + number)]
    pretrained = train(drawn(0), broad, [("joint", options.pretraining)], 1e-3, 0).usual
    tests = {"clear": images("clear", 24, 1)} | {look: images(look, 16, 2) for look in UNSEEN}
    source = images("clear", 120, 0)
    warmup = ("warmup", options.steps // 3)
    runs = {
        "joint": [("joint", options.steps)],
        "lp_ft": [warmup, ("joint", options.steps)],
        "deft": [warmup, ("decoupled", options.steps)],
    }
    result: dict = {"pretrained": {name: score(pretrained, data) for name, data in tests.items()}, "runs": []}
    for seed in range(options.seeds):
        for method, stages in runs.items():
            for rate in options.rates:
                model = drawn(1 + seed)
                for path in FAMILY.encoders:
                    model.get_submodule(path).load_state_dict(pretrained.get_submodule(path).state_dict())
                pathways = train(model, source, stages, rate, seed)
                exported = pathways.generalized if method == "deft" else pathways.usual
                scores = {name: round(score(exported, data), 2) for name, data in tests.items()}
                unseen = round(sum(scores[look] for look in UNSEEN) / len(UNSEEN), 2)
                result["runs"].append({"method": method, "rate": rate, "seed": seed, "unseen": unseen, **scores})
                print(json.dumps(result["runs"][-1]), file=sys.stderr, flush=True)
    batch = MaskTargets()(source[:2])
    pathways = DualPathway(copy.deepcopy(pretrained), FAMILY)
    flops = {}
    for stage in ("warmup", "decoupled", "joint"):
        pathways.enter(stage)
        flops[stage] = step_flops(pathways, batch)
    result["flops over joint"] = {stage: round(count / flops["joint"], 3) for stage, count in flops.items()}
    result["seconds"] = round(time.perf_counter() - start)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
