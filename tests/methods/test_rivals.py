"""DeFT's rivals and ablations, each a few settings of the same loop, against formulas of a few lines."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, TrainerCallback

from deft_hf.data.streets import STREETS
from deft_hf.methods import spd
from deft_hf.methods.core.batchnorm import batchnorm_modules
from deft_hf.methods.l2_sp import L2SP
from deft_hf.methods.wise_ft import best_point
from deft_hf.models.pretrained import open_pretrained
from deft_hf.publish.export import export_generalized
from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments, method_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.finish import layer_distances, starting_weights
from deft_hf.runs.provenance import Origin
from deft_hf.runs.train import fit, make_trainer
from deft_hf.scoring.inference import predict
from deft_hf.trainer.evaluation import Evaluator
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.comparison.test_plan import write_recipe
from tests.trainer.test_trainer import (
    Drawn,
    arguments,
    everything,
    history,
    plain_mean_iou,
    trainer,
    without_batchnorm,
)


class Recorder(TrainerCallback):
    """Keeps what the loop had before and after each optimizer step, gradients as the optimizer got them.

    Attributes:
        gradients, before: by step, of the usual component before it moved.
        usual, generalized: by step, the parameters once everything of the step was done.
        stages: by step.
    """

    def __init__(self):
        self.gradients, self.before, self.usual, self.generalized, self.stages = [], [], [], [], []

    def watch(self, run):
        self.run = run
        run.add_callback(self)
        return self

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        usual = dict(self.run.pathways.usual.named_parameters())
        self.stages.append(self.run.pathways.stage)
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in usual.items()})
        self.before.append({n: p.detach().clone() for n, p in usual.items()})

    def on_step_end(self, args, state, control, **kwargs):
        for kept, model in (
            (self.usual, self.run.pathways.usual),
            (self.generalized, self.run.pathways.generalized),
        ):
            kept.append({n: p.detach().clone() for n, p in model.named_parameters()})


def parameters(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differing(found, expected):
    """Names whose tensors are not equal bit for bit."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


# ---- L2-SP


@pytest.mark.parametrize("size, accumulation", [(4, 1), (2, 2)])
@pytest.mark.parametrize("method", ["joint", "lp_ft"])
def test_l2_sp_adds_its_two_pulls_to_the_gradient_of_the_task(tmp_path, method, size, accumulation):
    alpha, beta, batches = 0.7, 0.4, []
    run = trainer(
        tmp_path,
        model=without_batchnorm(),
        method=method,
        max_steps=3,
        decoder_warmup_steps=2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0,
        distance_weight=alpha,
        decoder_distance_weight=0.0,
        decoder_norm_weight=beta,
    )
    collate = run.data_collator
    run.data_collator = lambda items: batches.append(collate(items)) or batches[-1]
    seen, start = Recorder().watch(run), parameters(run.pathways.usual)
    run.train()

    reference = without_batchnorm()
    part = run.family.part_of
    for step, (found, weights, stage) in enumerate(zip(seen.gradients, seen.before, seen.stages, strict=True)):
        reference.load_state_dict({**reference.state_dict(), **weights})
        reference.zero_grad()
        own = batches[step * accumulation : (step + 1) * accumulation]
        valid = sum(int((batch["labels"] != 255).sum()) for batch in own)
        for batch in own:
            logits = F.interpolate(reference(batch["pixel_values"]).logits, size=(64, 64), mode="bilinear")
            (F.cross_entropy(logits, batch["labels"], ignore_index=255, reduction="sum") / valid).backward()
        for name, parameter in reference.named_parameters():
            if stage == "warmup" and part(name) == "encoder":
                assert found[name] is None
                continue
            if part(name) == "encoder":
                pull = alpha * (parameter - start[name])
            else:  # where weight decay would be: norms and biases go free
                pull = beta * parameter if parameter.ndim > 1 else torch.zeros_like(parameter)
            expected = parameter.grad if stage == "warmup" else parameter.grad + pull
            torch.testing.assert_close(found[name], expected.detach(), rtol=1e-4, atol=1e-6, msg=f"{step} {name}")
    moved = [name for name in start if part(name) == "encoder" and not torch.equal(weights[name], start[name])]
    assert len(moved) > 20  # so that the encoder's pull was seen


def test_the_decoder_is_pulled_to_the_warmed_up_one_unless_it_has_a_weight_of_its_own(tmp_path):
    # lp_ft's initialisation is the pretrained encoder under the decoder of the warm-up.
    run = trainer(tmp_path, method="lp_ft", max_steps=2, decoder_warmup_steps=2, distance_weight=0.7)
    seen, start = Recorder().watch(run), parameters(run.pathways.usual)
    run.train()
    warmed_up = seen.usual[1]
    assert differing(run.pathways.initial, warmed_up) == []
    moved = {name for name in start if not torch.equal(warmed_up[name], start[name])}
    assert moved and {run.family.part_of(name) for name in moved} == {"decoder"}
    assert run.composition.get(L2SP).weights == {"encoder": 0.7, "decoder": 0.7}


# ---- selective projection decay


@pytest.mark.parametrize("optim, weight", [("sgd", 1.0), ("adamw_torch", 0.6)])
def test_projection_equals_its_formula_and_touches_the_encoder_alone(tmp_path, optim, weight):
    rate = {"sgd": 0.5, "adamw_torch": 3e-3}[optim]
    run = trainer(
        tmp_path,
        method="joint",
        max_steps=5,
        optim=optim,
        learning_rate=rate,
        lr_scheduler_type="constant",
        encoder_weight_decay=0.0,
        decoder_weight_decay=0.1,
        projection_weight=weight,
    )
    seen, reference = Recorder().watch(run), copy.deepcopy(run.pathways.usual)
    start = parameters(reference)
    run.train()

    part = run.family.part_of
    named = dict(reference.named_parameters())
    decayed = [p for n, p in named.items() if part(n) == "decoder" and p.ndim > 1]
    rest = [p for p in named.values() if not any(p is other for other in decayed)]
    cls = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}[optim]
    optimizer = cls([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=rate)
    pulled = kept = 0
    for gradients, after in zip(seen.gradients, seen.usual, strict=True):
        previous = parameters(reference)
        for name, parameter in named.items():
            parameter.grad = gradients[name].clone()
        optimizer.step()
        for name, parameter in named.items():
            if part(name) == "encoder":
                drift, step = previous[name] - start[name], parameter.data - start[name]
                if -(gradients[name] * drift).sum() < 0:
                    ratio = ((step.norm() - drift.norm()) / step.norm()).clamp(0, 1)
                    parameter.data -= weight * ratio * step
                    pulled += bool(ratio > 1e-4)
                else:
                    kept += 1
            torch.testing.assert_close(after[name], parameter.data, rtol=1e-4, atol=1e-6, msg=name)
    assert pulled > 5 and kept > 5


def test_projection_counts_from_the_last_stage_on(tmp_path, monkeypatch):
    calls = []
    project = spd.project
    monkeypatch.setattr(spd, "project", lambda *args: calls.append(run.pathways.stage) or project(*args))
    run = trainer(tmp_path, method="lp_ft", max_steps=3, decoder_warmup_steps=2, projection_weight=1.0)
    run.train()
    assert calls == ["joint"] * 3


# ---- averages


@pytest.mark.parametrize("method", ["joint", "lp_ft"])
def test_swa_exports_the_mean_of_the_late_steps_at_a_rate_that_stands_still(tmp_path, method):
    run = trainer(
        tmp_path,
        method=method,
        average="swa",
        swa_start=0.4,
        max_steps=6,
        decoder_warmup_steps=3,
        learning_rate=1e-2,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 0.9, "lr_end": 0.0},
    )
    seen = Recorder().watch(run)
    run.train()
    first = 2  # floor(0.4 * 6)
    late = [values for values, stage in zip(seen.usual, seen.stages, strict=True) if stage == "joint"][first:]
    assert len(late) == 4
    for name, parameter in run.generalized_model.named_parameters():
        mean = torch.stack([values[name].double() for values in late]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=1e-5, atol=1e-7, msg=name)
        assert not torch.equal(parameter, late[-1][name]), name
    rates = [1e-2 * (1 - min(t, first) / 6) ** 0.9 for t in range(6)]
    assert history(run, "encoder_learning_rate")[-6:] == pytest.approx(rates)
    assert history(run, "decoder_learning_rate")[-6:] == pytest.approx(rates)


def test_a_rate_that_stands_still_has_risen_before(tmp_path):
    # With swa_start 0 the rate would otherwise stand still at the 0 that its warm-up starts with.
    run = trainer(tmp_path, method="joint", average="swa", swa_start=0.0, warmup_steps=2)
    run.train()
    assert history(run, "encoder_learning_rate") == pytest.approx([0.0, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2])


def test_a_rate_that_cannot_stand_still_is_refused(tmp_path):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 3}
    settings |= {"method": "joint", "metric_for_best_model": "near_mean_iou"}
    with pytest.raises(UserError, match="can neither .* nor stand still for swa: choose one that is"):
        trainer(tmp_path, average="swa", **settings).train()
    assert trainer(tmp_path, average="ema", **settings).train().global_step == 6


@pytest.mark.parametrize("method", ["joint", "deft"])
def test_debiased_ema_equals_the_closed_form(tmp_path, method):
    decays = {"encoder": 0.8, "decoder": 0.6}
    run = trainer(
        tmp_path,
        method=method,
        average="debiased_ema",
        ema_decay=decays["encoder"],
        decoder_ema_decay=decays["decoder"],
        ema_decay_steps=None,
        max_steps=5,
        decoder_warmup_steps=2,
    )
    seen = Recorder().watch(run)
    run.train()
    values = [kept for kept, stage in zip(seen.usual, seen.stages, strict=True) if stage != "warmup"]
    for name, parameter in run.generalized_model.named_parameters():
        decay = decays[run.family.part_of(name)]
        terms = [(1 - decay) * decay ** (5 - t) * values[t - 1][name].double() for t in range(1, 6)]
        closed = torch.stack(terms).sum(0) / (1 - decay**5)
        torch.testing.assert_close(parameter.double(), closed, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "method, average", [("deft", "rising_ema"), ("deft", "falling_ema"), ("joint", "falling_ema")]
)
def test_a_changing_decay_equals_its_recurrence(tmp_path, method, average):
    run = trainer(
        tmp_path,
        method=method,
        average=average,
        ema_decay=0.8,
        ema_decay_steps=None,
        max_steps=5,
        decoder_warmup_steps=2,
    )
    start, seen = parameters(run.pathways.usual), Recorder().watch(run)
    run.train()
    values = [kept for kept, stage in zip(seen.usual, seen.stages, strict=True) if stage != "warmup"]
    start = seen.usual[1] if method == "deft" else start
    sign = 1 if average == "rising_ema" else -1
    decays = [0.8 ** (1 + sign * np.cos(np.pi * (t - 0.5) / 5)) for t in range(1, 6)]
    for name, parameter in run.generalized_model.named_parameters():
        expected = start[name].double()
        for decay, value in zip(decays, values, strict=True):
            expected = decay * expected + (1 - decay) * value[name].double()
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert run.pathways.share_left()["encoder"] == pytest.approx(0.8**5)


@pytest.mark.parametrize("settings", [{"projection_weight": 1.0}, {"distance_weight": 0.7}])
def test_a_term_that_deft_gets_acts_on_its_usual_component(tmp_path, settings):
    runs_ = {}
    for own in ({}, settings):
        folder = tmp_path / str(len(own))
        run = runs_[len(own)] = trainer(
            folder,
            model=without_batchnorm(),
            max_steps=2,
            decoder_warmup_steps=0,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            ema_decay=1.0,  # both see the same gradients in the decoder pathway
            **own,
        )
        run.seen, run.start = Recorder().watch(run), parameters(run.pathways.usual)
        run.train()
    plain, pulled = runs_[0], runs_[1]
    part, encoder_moved = plain.family.part_of, 0
    for name, start in plain.start.items():
        first, gradient = plain.seen.usual[0][name], plain.seen.gradients[1][name]
        torch.testing.assert_close(pulled.seen.usual[0][name], first, rtol=1e-5, atol=1e-7)  # no distance yet
        expected, drift = first - 0.5 * gradient, first - start
        if "distance_weight" in settings:
            expected = expected - 0.5 * 0.7 * drift
        elif part(name) == "encoder" and (gradient * drift).sum() > 0:
            moved = expected - start
            expected = expected - ((moved.norm() - drift.norm()) / moved.norm()).clamp(0, 1) * moved
            encoder_moved += 1
        torch.testing.assert_close(pulled.seen.usual[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert encoder_moved > 3 or "distance_weight" in settings
    assert differing(pulled.seen.generalized[-1], pulled.start) == []


@pytest.mark.parametrize(
    "model_type, method, settings",
    [
        ("segformer", "joint", {}),
        ("segformer", "lp_ft", {}),
        ("mobilenet_v2", "lp_ft", {}),
        ("mobilenet_v2", "lp_ft", {"batchnorm": "reference"}),
        ("mobilenet_v2", "joint", {"batchnorm": "reference"}),
        ("mobilenet_v2", "joint", {"evaluate_usual": True, "eval_strategy": "steps", "eval_steps": 2}),
    ],
)
@pytest.mark.parametrize("average", ["ema", "debiased_ema"])
def test_nothing_of_an_average_flows_back(tmp_path, model_type, method, settings, average):
    runs_ = {}
    for kind in ("none", average):
        run = runs_[kind] = trainer(
            tmp_path / kind,
            model=tiny.build(model_type),
            method=method,
            average=kind,
            train=Drawn(10),
            ema_decay=0.7,
            ema_decay_steps=None,
            **settings,
        )
        run.train()
    plain, usual = (everything(runs_[kind]) for kind in ("none", average))
    own = [name for name in plain if name.startswith(("usual.", "initial.", "optimizer.")) or name == "rates"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    if not settings:  # only the exported model's are taken anew
        own = [name for name in own if not name.endswith(statistics)]
    assert len(own) > 200
    assert differing({name: usual[name] for name in own}, {name: plain[name] for name in own}) == []
    moved = differing(parameters(runs_[average].generalized_model), parameters(runs_["none"].generalized_model))
    assert len(moved) > 20
    if "eval_strategy" in settings:
        for domain in ("near", "far"):
            scores = history(runs_["none"], f"eval_{domain}_mean_iou")
            assert history(runs_[average], f"eval_{domain}_usual_mean_iou") == scores and len(scores) == 3


# ---- WiSE-FT


class Untouchable(Drawn):
    """An unseen domain that nothing may be chosen on."""

    allowed = True

    def __getitem__(self, index):
        assert self.allowed, "an unseen domain was looked at"
        return super().__getitem__(index)


@pytest.mark.parametrize("model_type", ["segformer", "mobilenet_v2"])
def test_wise_ft_is_the_point_that_the_source_domains_like_best(tmp_path, model_type):
    domains = {"near": Drawn(3, seed=1), "next": Drawn(2, seed=3), "far": Untouchable(2, seed=2)}
    run = trainer(
        tmp_path,
        model=tiny.build(model_type),
        evaluate=domains,
        method="lp_ft",
        component="interpolated",
        max_steps=5,
        decoder_warmup_steps=3,
        learning_rate=3e-2,
    )
    seen = Recorder().watch(run)
    run.train()
    start, end = seen.usual[2], seen.usual[-1]  # under the decoder of the warm-up, and after the last step
    assert differing(parameters(run.generalized_model), end) == []

    shuffled = torch.utils.data.DataLoader(
        run.train_dataset,
        batch_size=2,
        shuffle=True,
        generator=torch.Generator().manual_seed(run.args.seed),
        collate_fn=run.data_collator,
    )
    batches = [batch["pixel_values"] for batch in shuffled][:2]

    def interpolated(alpha):
        """The model at a point of the line, with BatchNorm statistics that are the mean over source batches."""
        model = copy.deepcopy(run.pathways.usual).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_((1 - alpha) * start[name].double() + alpha * end[name].double())
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train().reset_running_stats()
                    module.momentum = None
            for images in batches:
                model(images)
        return model.eval()

    liked = 0.4
    with torch.no_grad():
        for item in domains["near"].items:
            logits = F.interpolate(interpolated(liked)(item["pixel_values"]).logits, size=(64, 64), mode="bilinear")
            item["labels"] = logits.argmax(1)
            item["labels"][:, 0, 0] = (item["labels"][:, 0, 1] + 1) % 7  # of one class alone there is no mean IoU
        points = {tenth / 10: interpolated(tenth / 10) for tenth in range(11)}
        expected = {
            alpha: np.mean([plain_mean_iou(model, domains[name]) for name in ("near", "next")])
            for alpha, model in points.items()
        }
    domains["far"].allowed = False
    found = run.interpolate(["near", "next"])
    domains["far"].allowed = True
    assert found == pytest.approx(expected, abs=1e-3)  # a pixel or two may be a tie
    assert max(found, key=found.get) == best_point(found) == liked

    wanted = interpolated(liked)
    for name, parameter in run.generalized_model.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted.get_parameter(name).detach(), rtol=1e-6, atol=1e-7)
        if not torch.equal(start[name], end[name]):
            assert not torch.equal(parameter, start[name]) and not torch.equal(parameter, end[name]), name
    for name, module in batchnorm_modules(run.generalized_model).items():
        torch.testing.assert_close(module.running_mean, wanted.get_submodule(name).running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.running_var, wanted.get_submodule(name).running_var, rtol=1e-4, atol=1e-5)
    assert run.evaluate()["eval_near_mean_iou"] == pytest.approx(
        plain_mean_iou(run.generalized_model.eval(), domains["near"])
    )


def test_of_several_best_points_the_largest_is_taken():
    assert best_point({0.0: 0.1, 0.3: 0.7, 0.6: 0.7, 1.0: 0.2}) == 0.6


@pytest.mark.parametrize("best", [0, 3, 10])
def test_the_ends_of_the_line_are_the_weights_themselves(tmp_path, monkeypatch, best):
    run = trainer(tmp_path, method="joint", component="interpolated", max_steps=3)
    start = parameters(run.pathways.usual)
    run.train()
    end, tenths = parameters(run.pathways.usual), iter(range(11))
    scores = (SimpleNamespace(mean_iou=-abs(tenth - best)) for tenth in tenths)
    monkeypatch.setattr(run.evaluator, "score", lambda *args: (SimpleNamespace(compute=lambda: next(scores)), 3))
    assert list(run.interpolate(["near"]).values()) == [-abs(tenth - best) for tenth in range(11)]
    found = parameters(run.generalized_model)
    assert (differing(found, start) == []) == (best == 0)
    assert (differing(found, end) == []) == (best == 10)


# ---- LoRA


LORA = {"lora_rank": 3, "lora_alpha": 12.0}


@pytest.mark.parametrize("model_type, method", [("segformer", "lp_ft"), ("mobilenet_v2", "joint")])
def test_lora_trains_factors_and_decoder_and_gives_a_plain_model(tmp_path, model_type, method):
    pytest.importorskip("peft")
    start = tiny.build(model_type)
    run = trainer(tmp_path, model=tiny.build(model_type), method=method, save_strategy="steps", save_steps=2, **LORA)
    run.train()
    plain, adapted = run.generalized_model.eval(), run.pathways.usual.eval()
    assert type(plain) is type(start)
    assert plain.state_dict().keys() == start.state_dict().keys()
    images = tiny.batch(seed=7)["pixel_values"]
    torch.testing.assert_close(plain(images).logits, adapted(images).logits, rtol=1e-4, atol=1e-4)

    # The encoder's own weights lie still; what the adapters add to them, and the decoder, have moved.
    before, own = dict(start.named_parameters()), dict(adapted.named_parameters())
    optimized = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    encoder = {name for name in own if run.family.part_of(name) == "encoder"}
    assert {name for name in encoder if id(own[name]) in optimized} == {name for name in encoder if "lora_" in name}
    for name, parameter in own.items():
        if run.family.part_of(name) == "encoder" and "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer.", ".")]), name
    after = dict(plain.named_parameters())
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    decoder = {name for name in before if run.family.part_of(name) == "decoder" and run.family.is_trained(name)}
    factors = {name for name in own if ".lora_B." in name}
    assert moved == decoder | {name.replace(".lora_B.default.", ".") for name in factors} and factors

    for name in factors:
        second, first = own[name].flatten(1), own[name.replace("lora_B", "lora_A")].flatten(1)
        layer = name.replace(".lora_B.default.", ".")
        change = (12.0 / 3 * second @ first).view_as(before[layer])
        torch.testing.assert_close(after[layer], before[layer] + change, rtol=1e-5, atol=1e-6, msg=layer)
    assert run.evaluate()["eval_near_mean_iou"] == pytest.approx(plain_mean_iou(plain, Drawn(3, seed=1)), abs=1e-3)
    run.save_model(tmp_path / "final")
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == ["config.json", "model.safetensors"]
    for folder in (tmp_path / "final", tmp_path / f"checkpoint-{run.state.global_step}"):
        reloaded = AutoModelForSemanticSegmentation.from_pretrained(folder)
        assert type(reloaded) is type(start)
        assert differing(reloaded.state_dict(), plain.state_dict()) == []


@pytest.mark.parametrize("model_type", ["segformer", "mobilenet_v2"])
def test_deft_over_adapters_shares_the_frozen_weights_and_averages_the_factors(tmp_path, model_type):
    pytest.importorskip("peft")
    settings = {"ema_decay": 0.8, "ema_decay_steps": None, "batchnorm": "reference", **LORA}
    run = trainer(tmp_path, model=tiny.build(model_type), max_steps=4, decoder_warmup_steps=2, **settings)
    seen = Recorder().watch(run)
    run.train()
    usual, generalized = (dict(m.named_parameters()) for m in (run.pathways.usual, run.pathways.generalized))
    trained = {name for name in usual if run.family.is_trained(name)}
    assert {name for name in usual if usual[name] is not generalized[name]} == trained
    factors = {name for name in trained if run.family.part_of(name) == "encoder"}
    assert factors and all("lora_" in name for name in factors)
    for name in trained:
        expected = seen.usual[1][name]
        for values in seen.usual[2:]:
            expected = 0.8 * expected + 0.2 * values[name]
        torch.testing.assert_close(generalized[name].detach(), expected, rtol=1e-5, atol=1e-6, msg=name)
    run.save_model(tmp_path / "final")
    plain = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "final").eval()
    images = tiny.batch(seed=7)["pixel_values"]
    adapted = run.pathways.generalized.eval()(images).logits
    torch.testing.assert_close(plain(images).logits, adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_every_layer_has_its_distance_with_adapters_too(tmp_path, rank):
    pytest.importorskip("peft")
    tiny.mobilenet_v2().save_pretrained(tmp_path / "model")
    changes = {"model": {"checkpoint": str(tmp_path / "model")}, "method": {"name": "joint", "lora_rank": rank}}
    recipe = Recipe.load(write_recipe(tmp_path, **changes), [f"training.output_dir={tmp_path / 'out'}"])
    domains = load_domains(recipe.data)
    run = make_trainer(method_arguments(recipe, "joint"), recipe.model, recipe.data, domains)
    merged, initial = run.generalized_model, run.pathways.whole_initial()
    before = starting_weights(recipe.model, recipe.data, domains, run.args.seed, initial)
    found = layer_distances(merged, before)
    weights = {name.removesuffix(".weight") for name, p in merged.named_parameters() if p.ndim > 1}
    assert weights - found.keys() == {"mobilenet_v2.conv_1x1.convolution"}  # which segmentation does not use


# ---- ablations of DeFT


def test_a_generalized_component_that_never_moves_and_the_usual_one_exported(tmp_path):
    run = trainer(tmp_path, ema_decay=1.0, component="usual", decoder_warmup_steps=2, max_steps=4)
    seen = Recorder().watch(run)
    run.train()
    assert seen.stages == ["warmup"] * 2 + ["decoupled"] * 4
    snapshot = seen.usual[1]
    for values in seen.generalized[1:]:
        assert differing(values, snapshot) == []
    assert run.generalized_model is run.pathways.usual
    assert differing(parameters(run.generalized_model), seen.usual[-1]) == []
    assert len(differing(seen.usual[-1], snapshot)) == len(snapshot)
    # The figures are the usual component's.
    metrics = run.evaluate()
    assert metrics["eval_near_mean_iou"] == plain_mean_iou(run.pathways.usual.eval(), Drawn(3, seed=1))
    assert metrics["eval_near_mean_iou"] != plain_mean_iou(run.pathways.generalized.eval(), Drawn(3, seed=1))


@pytest.mark.parametrize("still, following", [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_decay_of_0_leaves_one_generalized_part(tmp_path, still, following):
    decays = {"encoder": 0.9999, "decoder": 0.9999, following: 0.0}
    run = trainer(
        tmp_path,
        ema_decay=decays["encoder"],
        decoder_ema_decay=decays["decoder"],
        decoder_warmup_steps=1,
        max_steps=3,
    )
    seen = Recorder().watch(run)
    run.train()
    for usual, generalized in list(zip(seen.usual, seen.generalized, strict=True))[1:]:
        apart = differing(generalized, usual)
        assert {run.family.part_of(name) for name in apart} == {still}
        assert len(apart) > 10


def test_without_a_warmup_the_first_stage_is_the_decoupled_one(tmp_path):
    run = trainer(tmp_path, decoder_warmup_steps=0, max_steps=3)
    seen, start = Recorder().watch(run), parameters(run.pathways.usual)
    assert run.train().global_step == 3
    assert seen.stages == ["decoupled"] * 3
    assert differing(run.pathways.initial, start) == []
    assert len(differing(seen.usual[0], start)) == len(start)


# ---- checkpoints


LDT = {"method": "ldt", "variance_steps": 3}
GMIXOUT = {"mixout_probability": 0.6, "mixout_anchor": "average", "mixout_period": 2}


@pytest.mark.parametrize(
    "model_type, settings, stop",
    [
        ("segformer", {"component": "usual"}, 7),
        ("mobilenet_v2", {"component": "usual", "ema_decay": 1.0}, 3),
        ("segformer", {"method": "lp_ft", **LORA}, 3),
        ("segformer", {"method": "lp_ft", **LORA}, 7),
        ("mobilenet_v2", {"method": "joint", **LORA}, 3),
        ("segformer", {"method": "joint", "average": "swa"}, 4),
        ("segformer", {"average": "debiased_ema"}, 7),
        ("mobilenet_v2", {"method": "joint", "projection_weight": 1.0}, 3),
        (
            "mobilenet_v2",
            {"method": "joint", "distance_weight": 0.1, "decoder_distance_weight": 0.0, "decoder_norm_weight": 0.1},
            3,
        ),
        ("mobilenet_v2", {"method": "lp_ft", "component": "interpolated"}, 7),
        ("mobilenet_v2", {"freeze_embedding": True}, 7),
        ("mobilenet_v2", {"method": "lp_ft", "gradient_projection_rate": 0.3}, 5),
        ("segformer", {"gradient_projection_rate": 0.3}, 2),
        ("segformer", LORA, 5),
        ("mobilenet_v2", {"lora_init": "smallest", **LORA}, 5),
        ("mobilenet_v2", {"batchnorm": "reference", **LORA}, 7),
        ("mobilenet_v2", {"method": "lp_ft", "mixout_probability": 0.6}, 5),
        ("segformer", {"method": "joint", "average": "ema", **GMIXOUT}, 3),
        ("segformer", {"average": "rising_ema", "ema_decay_steps": 20_000}, 5),
        ("segformer", {"method": "joint", "average": "falling_ema", "ema_decay_steps": 20_000}, 3),
        ("mobilenet_v2", {"projection_weight": 1.0, "distance_weight": 0.1, "decoder_norm_weight": 0.1}, 5),
        ("segformer", {**LDT, "batchnorm": "reference"}, 3),
        ("mobilenet_v2", LDT, 8),
        ("segformer", {**LDT, "branches": "single"}, 8),
        ("segformer", {**LDT, **LORA}, 7),
    ],
)
def test_a_rival_resumed_equals_the_unbroken_one_bit_for_bit(tmp_path, model_type, settings, stop):
    if "lora_rank" in settings:
        pytest.importorskip("peft")

    def run(folder, **changes):
        return trainer(
            tmp_path / folder,
            model=tiny.build(model_type).to(memory_format=torch.channels_last),
            train=Drawn(10),
            max_steps=6,
            decoder_warmup_steps=2,
            lr_scheduler_type="polynomial",
            **settings,
            **changes,
        )

    unbroken = run("a", save_strategy="steps", save_steps=stop)
    unbroken.train()
    resumed = run("b", save_strategy="steps", save_steps=stop)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
    if settings.get("component") == "interpolated":
        assert unbroken.interpolate(["near"]) == resumed.interpolate(["near"])
    assert differing(everything(resumed), everything(unbroken)) == []
    exported = unbroken.generalized_model.state_dict()
    assert differing(resumed.generalized_model.state_dict(), exported) == []
    unbroken.save_model(tmp_path / "final")
    reloaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "final")
    assert differing(reloaded.state_dict(), exported) == []
    if settings.get("component") == "usual":
        assert differing(unbroken.pathways.usual.state_dict(), exported) == []
        assert differing(unbroken.pathways.generalized.state_dict(), exported) != []


def test_a_checkpoint_of_another_average_or_component_is_refused(tmp_path):
    trainer(tmp_path, method="joint", average="ema", save_strategy="steps", save_steps=3).train()
    checkpoint = str(tmp_path / "checkpoint-3")
    for changes, message in (
        ({"average": "swa"}, "made with average ema, this run has swa"),
        ({"average": "ema", "component": "usual"}, "no checkpoint of this method.*generalized.safetensors is missing"),
        ({"average": "none"}, "made with average ema, this run has None"),
        ({"average": "none", "component": "interpolated"}, "made with average ema, this run has None"),
    ):
        with pytest.raises(UserError, match=message):
            trainer(tmp_path / "b", method="joint", **changes).train(resume_from_checkpoint=checkpoint)


def resumed(folder, **settings):
    return trainer(folder / "resumed", **settings).train(resume_from_checkpoint=str(folder / "checkpoint-3"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"component": "interpolated"}, "component generalized, this run has interpolated"),
        ({"distance_weight": 0.1}, "distance_weight 0.0, this run has 0.1"),
        ({"decoder_distance_weight": 0.2}, "decoder_distance_weight None, this run has 0.2"),
        ({"decoder_norm_weight": 0.3}, "decoder_norm_weight 0.0, this run has 0.3"),
        ({"projection_weight": 0.4}, "projection_weight 0.0, this run has 0.4"),
        ({"gradient_projection_rate": 0.5}, "gradient_projection_rate 0.0, this run has 0.5"),
        ({"mixout_probability": 0.5}, "mixout_probability 0.0, this run has 0.5"),
    ],
)
def test_a_checkpoint_of_another_rival_is_refused(tmp_path, changes, message):
    trainer(tmp_path, method="joint", max_steps=4, save_strategy="steps", save_steps=3).train()
    with pytest.raises(UserError, match=f"^the checkpoint was made with {message}: resume with the same"):
        resumed(tmp_path, method="joint", max_steps=4, **changes)
    assert resumed(tmp_path, method="joint", max_steps=4, swa_start=0.25).global_step == 4  # which means nothing here


def test_a_checkpoint_of_adapters_of_another_scale_or_start_is_refused(tmp_path):
    pytest.importorskip("peft")
    settings = {"method": "joint", "max_steps": 4, **LORA}
    trainer(tmp_path, save_strategy="steps", save_steps=3, **settings).train()
    for changes, message in (
        ({"lora_alpha": 6.0}, "made with lora_alpha 12.0, this run has 6.0"),
        ({"lora_init": "smallest"}, "made with lora_init zero, this run has smallest"),
    ):
        with pytest.raises(UserError, match=message):
            resumed(tmp_path, **settings | changes)


def test_a_checkpoint_of_an_average_that_started_elsewhere_is_refused(tmp_path):
    settings = {"method": "joint", "average": "swa", "max_steps": 4}
    trainer(tmp_path, save_strategy="steps", save_steps=3, **settings).train()
    with pytest.raises(UserError, match="made with swa_start 0.5, this run has 0.25"):
        resumed(tmp_path, swa_start=0.25, **settings)
    assert resumed(tmp_path, **settings).global_step == 4


# ---- what excludes what


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"average": "mean"},
            "average is 'mean': expected one of none, ema, rising_ema, falling_ema, debiased_ema, swa, layer_ema",
        ),
        ({"average": True}, "average is True: expected one of none"),
        ({"component": "both"}, "component is 'both': expected one of generalized, usual, interpolated"),
        ({"average": "none"}, "method deft needs an average.*set ema_decay: 1 and component: usual"),
        ({"method": "frozen", "average": "swa"}, "method frozen has no average: leave average out"),
        ({"method": "frozen", "component": "interpolated"}, "method frozen leaves the encoder where it was"),
        ({"component": "interpolated"}, "component interpolated goes with average: none"),
        (
            {"method": "joint", "average": "swa", "component": "interpolated"},
            "component interpolated goes with average: none",
        ),
        ({"lora_rank": 4, "method": "frozen"}, "lora_rank goes with a method that trains the encoder, which frozen"),
        (
            {"lora_rank": 4, "method": "joint", "distance_weight": 0.1},
            "lora_rank keeps the encoder's weights: leave distance_weight",
        ),
        ({"lora_rank": 4, "method": "joint", "projection_weight": 0.1}, "projection_weight.* out"),
        ({"lora_rank": 4, "method": "joint", "component": "interpolated"}, "interpolation out"),
        ({"lora_rank": -1}, "lora_rank is -1: expected 0 or more"),
        ({"lora_rank": 4, "lora_init": "largest"}, "lora_init is 'largest': expected one of zero, smallest"),
        ({"lora_rank": 4, "method": "joint", "lora_alpha": 0.0}, "lora_alpha is 0.0: expected a positive number"),
        ({"swa_start": 1.0}, "swa_start is 1.0: expected a share from 0, below 1"),
        ({"swa_start": -0.1}, "swa_start is -0.1: expected a share from 0"),
        ({"decoder_distance_weight": -1.0}, "decoder_distance_weight is -1.0: expected 0 or more"),
        ({"decoder_norm_weight": -1.0}, "decoder_norm_weight is -1.0: expected 0 or more"),
        ({"mixout_probability": 0.5}, "mixout_probability goes with method joint or lp_ft"),
        ({"method": "joint", **GMIXOUT}, "mixout_anchor average needs an average: set average: ema"),
        ({"mixout_probability": 1.0}, "mixout_probability is 1.0: expected a share from 0, below 1"),
        ({"mixout_period": 0}, "mixout_period is 0: expected 1 or more"),
        ({"lora_rank": 4, "method": "joint", "mixout_probability": 0.5}, "mixout_probability, interpolation out"),
        ({"projection_weight": -1.0}, "projection_weight is -1.0: expected 0 or more"),
    ],
)
def test_settings_that_exclude_each_other(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **overrides)
    assert arguments(tmp_path)


@pytest.mark.parametrize(
    "settings, average",
    [
        ({}, "ema"),
        ({"method": "joint"}, None),
        ({"method": "lp_ft", "average": "none"}, None),
        ({"method": "joint", "average": "swa", "component": "usual"}, "swa"),
        ({"method": "joint", "component": "interpolated"}, None),
        ({"method": "lp_ft", "lora_rank": 4, "decoder_norm_weight": 0.1}, None),
        ({"lora_rank": 4}, "ema"),
        ({"method": "joint", "lora_rank": 4, "average": "ema"}, "ema"),
        ({"projection_weight": 1.0, "distance_weight": 0.1}, "ema"),
        ({"method": "ldt"}, "layer_ema"),
        ({"method": "ldt", "average": "swa", "gradient_projection_rate": 0.1}, "swa"),
    ],
)
def test_settings_that_go_together(tmp_path, settings, average):
    assert arguments(tmp_path, **settings).averages == average


# ---- from a recipe


@pytest.fixture
def recipe(tmp_path):
    """A function that makes a recipe over drawn streets, with a tiny checkpoint, from overrides."""
    tiny.build("mobilenet_v2").save_pretrained(tmp_path / "checkpoint")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
model: {{checkpoint: {tmp_path / "checkpoint"}}}
method: {{name: joint, batchnorm_batches: 2}}
data:
  labels: streets
  source: [{{streets: clear, count: 6, name: town}}]
  validation: [{{streets: clear, count: 5, seed: 1, name: val}}]
  unseen: [{{streets: night, count: 4, seed: 2, name: night}}]
  image_size: [48, 64]
  crop_size: [32, 48]
  check: false
training:
  output_dir: {tmp_path / "out"}
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 1e-2
  save_strategy: "no"
  use_cpu: true
  disable_tqdm: true
  report_to: none
"""
    )
    return lambda *overrides: Recipe.load(path, overrides)


def fitted(recipe, **kwargs):
    domains = load_domains(recipe.data)
    run = make_trainer(method_arguments(recipe, recipe.method.name), recipe.model, recipe.data, domains)
    return run, domains, fit(run, recipe.data, domains, Origin.of(recipe), **kwargs)


def test_interpolation_needs_source_data_to_choose_on(recipe):
    with pytest.raises(UserError, match="data.validation: missing, expected source data, on which method.component"):
        recipe("method.component=interpolated", "data.validation=[]")


def test_a_baseline_has_an_average_and_a_component_of_its_own(recipe):
    found = recipe("method.name=lp_ft", "method.component=interpolated", "method.baselines=[joint, frozen, deft]")
    check_arguments(found)
    assert method_arguments(found, "lp_ft").component == "interpolated"
    for method, average in (("joint", None), ("frozen", None), ("deft", "ema")):
        args = method_arguments(found, method)
        assert (args.method, args.component, args.averages) == (method, "generalized", average)


def test_channels_last_changes_the_layout_and_nothing_else(recipe, tmp_path):
    plain, *_ = open_pretrained("embedded", STREETS)
    model, *_ = open_pretrained("embedded", STREETS, channels_last=True)
    assert differing(model.state_dict(), plain.state_dict()) == []
    images = tiny.batch()["pixel_values"]
    torch.testing.assert_close(model.eval()(images).logits, plain.eval()(images).logits, rtol=0, atol=1e-5)

    def convolutions(model):
        return [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[-1] > 1]

    assert convolutions(model) and not any(
        p.is_contiguous(memory_format=torch.channels_last) for p in convolutions(plain)
    )
    run, _, _ = fitted(recipe("model.channels_last=true", "method.name=deft", "method.decoder_warmup_steps=1"))
    for component in (run.pathways.usual, run.pathways.generalized):
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions(component))
    export_generalized(run.generalized_model, tmp_path / "final", run.processing_class)
    reloaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "final").eval()
    assert differing(reloaded.state_dict(), run.generalized_model.state_dict()) == []
    torch.testing.assert_close(reloaded(images).logits, run.generalized_model.eval()(images).logits, rtol=0, atol=1e-5)


class Watched(TrainerCallback):
    """By evaluation while training, the pixels of each domain that were scored."""

    def __init__(self, run):
        self.run, self.pixels = run, []
        run.add_callback(self)

    def on_evaluate(self, args, state, control, **kwargs):
        self.pixels.append({name: scores.pixels for name, scores in self.run.scores.items()})


def test_fewer_images_are_scored_while_training_and_all_at_the_end(recipe):
    settings = ("data.images_while_training=2", "training.eval_strategy=steps", "training.eval_steps=2")
    thinned = recipe(*settings)
    domains = load_domains(thinned.data)
    valid = {
        domain.name: [int((domain.load(i)[1] != 255).sum()) for i in range(len(domain))]
        for domain in domains.evaluated
    }
    run = make_trainer(method_arguments(thinned, "joint"), thinned.model, thinned.data, domains)
    for name, chosen in (("val", [0, 2]), ("night", [0, 2])):  # of 5, and of 4
        (domain,) = [domain for domain in domains.evaluated if domain.name == name]
        assert run.eval_dataset[name].domain.ids == [domain.ids[index] for index in chosen]
        for place, index in enumerate(chosen):
            assert np.array_equal(run.eval_dataset[name].domain.load(place)[1], domain.load(index)[1])
    seen = Watched(run)
    facts = fit(run, thinned.data, domains, Origin.of(thinned))
    while_training = {f"eval_{name}": counts[0] + counts[2] for name, counts in valid.items()}
    assert len(seen.pixels) == 6  # twice while training and once at the end, one domain after the other
    assert seen.pixels[1] == seen.pixels[3] == while_training
    assert {name: scores["pixels"] for name, scores in facts.scores.items()} == {
        name: sum(counts) for name, counts in valid.items()
    }
    whole, _, others = fitted(recipe(f"training.output_dir={run.args.output_dir}-whole"))
    assert others.scores == facts.scores
    assert len(whole.eval_dataset["val"]) == 5


def test_counts_of_the_images_sum_to_the_domain(recipe):
    run, domains, facts = fitted(
        recipe("method.average=ema", "method.evaluate_usual=true", "training.per_device_eval_batch_size=2"),
        keep_images=True,
    )
    keys = {f"eval_{domain.name}{usual}" for domain in domains.evaluated for usual in ("", "_usual")}
    assert run.evaluator.image_counts.keys() == keys
    for domain in domains.evaluated:
        for usual, model in (("", run.generalized_model), ("_usual", run.pathways.usual)):
            counts = run.evaluator.image_counts[f"eval_{domain.name}{usual}"]
            assert counts.dtype == torch.int64 and counts.shape == (
                len(domain),
                len(STREETS.names),
                len(STREETS.names),
            )
            for index, found in enumerate(counts):
                item = run.eval_dataset[domain.name][index]
                truth = item["labels"].numpy()
                classes = predict(model, run.family, item["pixel_values"][None], truth.shape)[0].numpy()
                expected = np.zeros(found.shape, np.int64)
                np.add.at(expected, (truth[truth != 255], classes[truth != 255]), 1)
                assert np.array_equal(found.numpy(), expected)
            total = counts.sum(0).double()
            iou = total.diag() / (total.sum(0) + total.sum(1) - total.diag())
            scores = run.scores[f"eval_{domain.name}{usual}"]
            np.testing.assert_allclose(iou.numpy(), scores.iou)
            assert int(total.sum()) == scores.pixels
    assert facts.usual_scores.keys() == facts.scores.keys() == {"val", "night"}


def test_the_facts_of_an_interpolated_run_tell_its_point(recipe, monkeypatch):
    score, found = Evaluator.score, iter([0.1, 0.2, 0.3, 0.9, *[0.5] * 7])

    def liked(*args):
        matrix, images = score(*args)
        scores = matrix.compute()
        chosen = replace(scores, mean_iou=next(found, scores.mean_iou))
        return SimpleNamespace(counts=matrix.counts, compute=lambda *names: chosen), images

    monkeypatch.setattr(Evaluator, "score", liked)
    run, _, facts = fitted(recipe("method.name=lp_ft", "method.component=interpolated"))
    points = {float(alpha): value for alpha, value in facts.interpolation.items()}
    assert sorted(points) == pytest.approx([tenth / 10 for tenth in range(11)])
    assert best_point(points) == 0.3
    assert facts.initial_share == pytest.approx({"encoder": 0.7, "decoder": 0.7})
    assert facts.distance == run.pathways.distances(run.generalized_model)
    assert facts.component == "interpolated" and facts.average is None and facts.decays is None


def test_an_average_without_a_decay_reports_none(recipe):
    _, _, facts = fitted(recipe("method.average=swa"))
    assert facts.decays is None and facts.average == "swa"
    assert facts.initial_share == {"encoder": 0.0, "decoder": 0.0}
