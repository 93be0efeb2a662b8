"""Models that are built anew for each training, and the search for hyperparameters on source validation."""

from __future__ import annotations

import gc
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS
from transformers.trainer_utils import BestRun, HPSearchBackend
from transformers.utils import logging

from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.shards import fill
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.errors import TrainingDiverged, UserError, first_line
from deft_hf.utils.randomness import own_randomness

logger = logging.get_logger(__name__)

ModelInit = Callable[..., nn.Module]
_OPTUNA = HPSearchBackend.OPTUNA


def built(model_init: ModelInit, trial: Any = None) -> nn.Module:
    """A model of `model_init`, which takes nothing or a trial.

    Raises:
        UserError: It takes more, or returns nothing.
    """
    takes = len(inspect.signature(model_init).parameters)
    if takes > 1:
        raise UserError(f"model_init: takes {takes} arguments, expected none, or one that is the trial of a search")
    model = model_init(trial) if takes else model_init()
    if model is None:
        raise UserError("model_init: returned None, expected a model")
    return model


def refill(pathways: DualPathway, model: nn.Module) -> None:
    """Put the weights and statistics of a model that was built anew into both components.

    Args:
        pathways (`DualPathway`):
            The components.
        model (`nn.Module`):
            A model like the one that they were made of, adapted like it.

    Raises:
        UserError: It is another one.
    """
    state = model.state_dict()
    try:
        for component in {pathways.usual, pathways.generalized}:
            fill(component, state)
    except ValueError as error:
        raise UserError(f"model_init: returned another model than the first time ({error})") from error


def search(
    trainer: Any,
    hp_space: Callable[[Any], Mapping[str, Any]] | None,
    compute_objective: Callable[[dict[str, float]], float] | None,
    n_trials: int,
    direction: Any,
    backend: str | None,
    hp_name: Callable[[Any], str] | None,
    unseen: Collection[str],
    **kwargs: Any,
) -> BestRun | list[BestRun]:
    """Try values of training arguments, each with a model and a trainer of its own, and compare them on source data.

    A trial trains in `run-N` below `args.output_dir`. Its score is the best `args.metric_for_best_model` that an
    evaluation of the last stage found, or, where there was none, that of the trained model. The trial evaluates on
    nothing but the data set of this metric, so that no other can have a say.

    Args:
        trainer (`DeFTTrainer`):
            Has `model_init`, the arguments that the trials share, and the data.
        hp_space (`Callable`):
            From a trial of `optuna` to values of [`DeFTTrainingArguments`] by name.
        compute_objective (`Callable`, *optional*):
            Returns another score from the metrics of `evaluate` at the end of a trial, which is then of every data
            set but `unseen`.
        n_trials (`int`):
            Number of trials.
        direction (`str`, *optional*):
            `minimize` or `maximize`; by default what `args.greater_is_better` says of the metric. A list of them
            where `compute_objective` returns several scores.
        backend (`str`, *optional*):
            `optuna`.
        hp_name (`Callable`, *optional*):
            Returns the name of a trial, which its folder and trackers have, in the place of `run-N`.
        unseen (`Collection[str]`):
            Names in `eval_dataset` that nothing may be chosen on.
        kwargs (`Any`):
            Of `optuna.create_study` and `Study.optimize`. Without `sampler` and `storage` the values are drawn by
            `TPESampler` with the seed of the arguments.

    Returns:
        `BestRun`: number of the best trial, its score and its values; a list where there are several scores.

    Raises:
        UserError: There is nothing to search or to compare by, or a value is none of the arguments.
    """
    args = trainer.args
    _check(trainer, hp_space, backend, direction, compute_objective)
    evaluated = _source_data(args, trainer.eval_dataset, unseen, compute_objective is None)
    if not {"sampler", "storage"} & kwargs.keys():
        from optuna.samplers import TPESampler

        kwargs["sampler"] = TPESampler(seed=args.seed)
    if direction is None:
        direction = "maximize" if args.greater_is_better else "minimize"
    trials = _Trials(trainer, evaluated, hp_space, compute_objective, hp_name)
    try:
        return ALL_HYPERPARAMETER_SEARCH_BACKENDS[_OPTUNA]().run(trials, n_trials, direction, **kwargs)
    except ValueError as error:
        if isinstance(error, UserError) or trials.ended:
            raise
        reason = first_line(error)
        raise UserError(f"hyperparameter_search: none of {n_trials} trials ended with a score ({reason}).") from error


class _Trials:
    """What the backend takes for a `Trainer`: it has a fresh one for each trial."""

    # Read, and let go of, after each trial.
    model = model_wrapped = None
    objective: Any = None

    def __init__(
        self,
        trainer: Any,
        eval_dataset: Any,
        hp_space: Any,
        compute_objective: Callable[[dict[str, float]], float] | None,
        hp_name: Callable[[Any], str] | None,
    ) -> None:
        self.trainer, self.args, self.accelerator = trainer, trainer.args, trainer.accelerator
        self.eval_dataset = eval_dataset
        self.hp_space = hp_space
        self.compute_objective = compute_objective
        self.hp_name = hp_name
        self.ended = False

    def train(self, resume_from_checkpoint: str | None = None, trial: Any = None) -> None:
        name = f"run-{trial.number}" if self.hp_name is None else self.hp_name(trial)
        try:
            self.objective = self._tried(name, trial)
            self.ended |= self.objective is not math.nan
        except TrainingDiverged as error:
            logger.warning(f"{name}: {error}")
            self.objective = math.nan  # a trial that failed, and not the end of the search
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        finally:
            # Trainer and callbacks refer to each other: without a collection the next trial would share the memory.
            gc.collect()
            torch.cuda.empty_cache()

    def _tried(self, name: str, trial: Any) -> Any:
        trainer = self._trainer(name, trial)
        trainer.train(trial=trial)
        if self.compute_objective is not None:
            return self.compute_objective(trainer.evaluate())
        best = trainer.state.best_metric
        score = trainer.evaluate()[_key(trainer.args)] if best is None else best
        return score if math.isfinite(score) else math.nan

    def _trainer(self, name: str, trial: Any) -> Any:
        values = dict(self.hp_space(trial))
        known = [each.name for each in fields(self.args) if each.init and each.name != "output_dir"]
        if unknown := sorted(values.keys() - {*known}):
            close = get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ", expected arguments of DeFTTrainingArguments"
            raise UserError(f"hp_space: returned {unknown[0]}{hint}")
        folder = str(Path(self.args.folder, name))
        args = replace(self.args, **{"run_name": name, "push_to_hub": False, **values, "output_dir": folder})
        with own_randomness(args.seed, args.device):
            model = built(self.trainer.model_init, trial)
        data = {"train_dataset": self.trainer.train_dataset, "eval_dataset": self.eval_dataset}
        trainer = self.trainer.like_this(model, args, **data)
        there = {type(callback) for callback in trainer.callback_handler.callbacks}
        for callback in self.trainer.callback_handler.callbacks:  # those that were added later too
            if type(callback) not in there:
                trainer.add_callback(callback)
        if self.compute_objective is None:
            trainer.add_callback(_Reports(trial, _key(args), trainer.stages.in_last_stage))
        return trainer


class _Reports(TrainerCallback):
    """Tells a trial the scores on the way, and ends it where the study's pruner sees no hope."""

    def __init__(self, trial: Any, key: str, counts: Callable[[int], bool]) -> None:
        self.trial = trial
        self.key = key
        self.counts = counts

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.key not in metrics or not (state.global_step and self.counts(state.global_step)):
            return
        self.trial.report(metrics[self.key], state.global_step)
        if self.trial.should_prune():
            from optuna import TrialPruned

            raise TrialPruned


def _key(args: DeFTTrainingArguments) -> str:
    return f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"


def _check(trainer: Any, hp_space: Any, backend: Any, direction: Any, compute_objective: Any) -> None:
    args = trainer.args
    problems = {
        "model_init: found none, and each trial starts from a fresh model: pass a function that returns one, "
        "DeFTTrainer(model_init=...)": trainer.model_init is None,
        "it runs in one process: start it without a launcher": args.world_size > 1,
        f"backend: found {backend!r}, expected optuna": backend not in (None, "optuna", _OPTUNA),
        "hp_space: found none, expected a function of a trial, such as "
        "lambda trial: {'learning_rate': trial.suggest_float('learning_rate', 1e-5, 1e-2, log=True)}": hp_space
        is None,
        "metric_for_best_model: found none in the arguments, expected the score of source validation to compare "
        "trials by, such as 'city_mean_iou' (or pass compute_objective)": (
            compute_objective is None and args.metric_for_best_model is None
        ),
        "direction: found none, expected minimize or maximize with compute_objective": (
            compute_objective is not None and direction is None
        ),
    }
    better = "maximize" if args.greater_is_better else "minimize"
    problems[
        f"direction: found {direction!r}, expected {better} for metric_for_best_model {args.metric_for_best_model!r} "
        "(see greater_is_better)"
    ] = compute_objective is None and direction not in (None, better)
    for text, wrong in problems.items():
        if wrong:
            raise UserError(f"hyperparameter_search: {text}.")
    if not ALL_HYPERPARAMETER_SEARCH_BACKENDS[_OPTUNA].is_available():
        raise UserError("hyperparameter_search: needs optuna: pip install 'deft-hf[hpo]'.")


def _source_data(args: DeFTTrainingArguments, eval_dataset: Any, unseen: Collection[str], by_metric: bool) -> Any:
    """What trials are scored on.

    Raises:
        UserError: It would be an unseen domain, or `unseen` names none.
    """
    named = eval_dataset if isinstance(eval_dataset, dict) else {}
    if unknown := sorted({*unseen} - {*named}):
        names = ", ".join(named) or "none"
        raise UserError(f"hyperparameter_search: unseen: found {unknown[0]!r}, expected of eval_dataset: {names}.")
    metric = _key(args).removeprefix("eval_")
    chosen = max((name for name in named if metric.startswith(f"{name}_")), key=len, default=None)
    if chosen in unseen:
        raise UserError(
            f"hyperparameter_search: metric_for_best_model: found {args.metric_for_best_model!r}, of an unseen "
            "domain, which nothing may be chosen on; name a metric of source validation."
        )
    if by_metric and chosen is not None:
        return {chosen: named[chosen]}
    return {name: data for name, data in named.items() if name not in unseen} if named else eval_dataset
