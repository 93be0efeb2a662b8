"""Mask classification: models that predict a class and a mask per query (Mask2Former and related models).

Their targets are one mask per class of an image; their loss matches queries to targets.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deft_hf.data.collate import mask_targets
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.models.objectives import Batch, SetLoss, zeros
from deft_hf.models.views import with_module
from deft_hf.utils.errors import UserError

# "the task is semantic" in CLIP's byte-pair encoding, start and end included.
SEMANTIC_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)


def semantic_task(config: Any) -> dict[str, list[int]]:
    """OneFormer's `task_inputs` for the task "semantic", padded with zeros as its processor does."""
    return {"task_inputs": [*SEMANTIC_TASK, *[0] * (config.task_seq_len - len(SEMANTIC_TASK))]}


def semantic_task_tokenizer() -> Any:
    """A tokenizer that reads every task as `semantic_task` does, the only one that the model is trained for.

    `pipeline("image-segmentation")` asks for one. OneFormer's own has CLIP's whole vocabulary.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    start, *words, end = SEMANTIC_TASK
    names = ["the", "task", "is", "seman", "tic"]
    first, last, padding = "<|startoftext|>", "<|endoftext|>", "!"
    vocabulary = dict(zip(names, words, strict=True)) | {first: start, last: end, padding: 0}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=padding))
    tokenizer.normalizer = Replace(Regex(".+"), " ".join(names))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, start), (last, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=last, unk_token=padding, pad_token=padding
    )


def layer_outputs(config: Any) -> dict[str, bool]:
    """All layers' outputs, which MaskFormer needs to compute an auxiliary loss (as of transformers 5.23)."""
    return {"output_hidden_states": True} if config.use_auxiliary_loss else {}


def no_inputs(config: Any) -> dict[str, Any]:
    """No inputs besides the image."""
    return {}


@dataclass(frozen=True)
class MaskClassification:
    """The model's own matching loss with its own weights and auxiliary losses, normalised over the optimizer step.

    The loss of one prediction (Cheng et al., Mask2Former, CVPR 2022, arXiv 2112.01527, section 3; MaskFormer, NeurIPS
    2021, arXiv 2107.06278, eq. 1) has three terms, each times its weight in the model's config, and the total is the
    sum over the predictions of all decoder layers that the config asks for:

    * mask and dice loss: a sum over matched queries, divided by the number of target masks, at least 1;
    * classification: cross-entropy averaged over *all* queries of all images with weight 1 for matched ones and
      `no_object_weight` w0 for the others, divided by the sum of these weights.

    Both denominators are taken over all batches of an optimizer step on all ranks, as for one large batch:
    `M` target masks, and `K + w0 (N Q - K)`, where `N` images with `Q` queries have `K` matched ones, min(Q, targets)
    for each image. So the items are three counts: target masks, matched queries, other queries. (What transformers
    computes by itself averages masks over ranks, not over accumulation, and the classification over neither.)

    Pixels labelled 255 are in no target mask. An image without any object trains its queries to be none.

    Args:
        queries (`str`, *optional*, defaults to `"num_queries"`):
            Dotted name of the number of queries in the config.
        inputs (`Callable[[Any], dict[str, Any]]`, *optional*, defaults to `no_inputs`):
            Further inputs of the model, from its config; see [`Objective.inputs`].
    """

    queries: str = "num_queries"
    inputs: Callable[[Any], dict[str, Any]] = no_inputs

    auto_class: ClassVar[str] = "AutoModelForUniversalSegmentation"
    outputs: ClassVar[tuple[str, ...]] = ("class_queries_logits", "masks_queries_logits")
    needs_masks: ClassVar[bool] = True

    def forward(self, model: nn.Module, pixel_values: Tensor, **targets: Any) -> Any:
        """The model's outputs for `pixel_values` (N, 3, H, W) and, if there are `targets`, its loss in them."""
        inputs = {
            name: torch.tensor([value], device=pixel_values.device).expand(len(pixel_values), -1)
            if isinstance(value, list)
            else value
            for name, value in self.inputs(model.config).items()
        }
        return model(pixel_values=pixel_values, **inputs, **targets)

    def loss(self, model: nn.Module, batch: Batch, items: Tensor) -> Tensor:
        """Share of `batch` in the loss of an optimizer step with `items`.

        Args:
            model (`nn.Module`):
                A mask-classification model of transformers, whose loss is its submodule `criterion`.
            batch (`Batch`):
                `pixel_values` (N, 3, H, W) float; `mask_labels`, N tensors (n, H, W) bool; `class_labels`, N tensors
                (n,) int64.
            items (`Tensor`):
                The three counts of the optimizer step, as `count` gives them for a batch.

        Raises:
            UserError: If the batch has no such targets.
        """
        pixel_values, classes = batch["pixel_values"], _class_labels(batch)
        masks = [mask.to(torch.float32) for mask in batch["mask_labels"]]
        step_loss = StepLoss(model.get_submodule("criterion"), items.to(pixel_values.device))
        view = with_module(model, "criterion", step_loss)
        return self.forward(view, pixel_values, mask_labels=masks, class_labels=classes).loss

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Target masks, matched queries and other queries of `batch`: (3,) int64, on the CPU.

        Raises:
            UserError: If the batch has no targets.
        """
        targets = [len(classes) for classes in _class_labels(batch)]
        queries = attrgetter(self.queries)(model.config)
        matched = sum(min(queries, number) for number in targets)
        return torch.tensor([sum(targets), matched, len(targets) * queries - matched])

    def logits(self, outputs: Any) -> Tensor:
        """Semantic logits (N, C, h, w) float32: class scores of each pixel, summed over queries.

        A query gives a pixel its class probabilities, without the null class, times its mask probability there
        (Mask2Former, section 4.1, "semantic inference" of MaskFormer, section 3.4). They are scores from 0 up rather
        than log-probabilities: their largest is the prediction, and their mean over windows is a mean of
        probabilities.
        """
        classes = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, outputs.masks_queries_logits.float().sigmoid())

    def probabilities(self, logits: Tensor) -> Tensor:
        """The scores by their sum, which need not be 1; all equal where no query says anything."""
        total = logits.sum(1, keepdim=True)
        return torch.where(total > 0, logits / total.clamp_min(torch.finfo(logits.dtype).tiny), 1 / logits.shape[1])

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Themselves."""
        return probabilities

    def set_loss(self, device: torch.device) -> SetLoss:
        """The matching loss of a set."""
        return MaskSetLoss(self, device)


class StepLoss(nn.Module):
    """Replaces a model's `criterion` in one forward: the same terms, divided by the items of a whole step.

    Matcher, point sampling and formulas are those of the criterion, called in its order, so that it draws the same
    random points. Unlike the criterion, it does not communicate with other ranks.

    Args:
        criterion (`nn.Module`):
            The loss module of a mask-classification model of transformers.
        items (`Tensor`):
            Target masks, matched and other queries of the optimizer step: (3,), on the model's device.
    """

    criterion: Any

    def __init__(self, criterion: nn.Module, items: Tensor) -> None:
        super().__init__()
        # Not registered: a view owns no parameter.
        object.__setattr__(self, "criterion", criterion)
        masks, matched, others = items
        self.masks = masks.clamp(min=1)
        self.weight = matched + self.criterion.eos_coef * others

    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
        auxiliary_predictions: Sequence[dict[str, Tensor]] | None = None,
        **unused: Any,
    ) -> dict[str, Tensor]:
        """Unweighted terms of the loss; their names contain those by which the model looks up the weights.

        Args:
            masks_queries_logits (`Tensor`):
                (N, Q, h, w).
            class_queries_logits (`Tensor`):
                (N, Q, C + 1), the null class last.
            mask_labels (`Sequence[Tensor]`):
                N tensors (n, H, W) float.
            class_labels (`Sequence[Tensor]`):
                N tensors (n,) int64.
            auxiliary_predictions (`Sequence[dict[str, Tensor]]`, *optional*):
                Both kinds of logits for each decoder layer but the last.
            unused (`Any`):
                Inputs of OneFormer's contrastive loss, which is left out: it compares the images of a batch with each
                other and so is not a sum over items, and nothing that semantic inference reads depends on it alone.
        """
        last = {"masks_queries_logits": masks_queries_logits, "class_queries_logits": class_queries_logits}
        losses = {}
        # Sums over thousands of points need float32, as in the original code.
        with torch.autocast(device_type=masks_queries_logits.device.type, enabled=False):
            for index, layer in enumerate([last, *(auxiliary_predictions or ())]):
                masks = layer["masks_queries_logits"].float()
                classes = layer["class_queries_logits"].to(self.criterion.empty_weight.dtype)
                terms = self._terms(masks, classes, list(mask_labels), list(class_labels))
                losses.update({f"{name}_{index}": term for name, term in terms.items()})
        return losses

    def _terms(
        self, masks: Tensor, classes: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor]
    ) -> dict[str, Tensor]:
        criterion = self.criterion
        indices = criterion.matcher(masks, classes, mask_labels, class_labels)
        losses = criterion.loss_masks(masks, mask_labels, indices, self.masks)
        matched = sum(len(queries) for queries, _ in indices)
        weight = matched + criterion.eos_coef * (classes.shape[0] * classes.shape[1] - matched)
        if weight:
            mean = criterion.loss_labels(classes, class_labels, indices)["loss_cross_entropy"]
            losses["loss_cross_entropy"] = mean * (weight / self.weight)
        else:  # no object and no weight for it
            losses["loss_cross_entropy"] = classes.sum() * 0
        return losses


class MaskSetLoss:
    """The loss of [`MaskClassification`] with the denominators of a whole set, a [`SetLoss`].

    Args:
        objective (`MaskClassification`):
            Makes the outputs.
        device (`torch.device`):
            Of the sums.

    Attributes:
        totals (`Tensor`):
            The mask and dice terms and the classification, weighted and summed over queries and layers; target masks;
            and the weights of all queries.
    """

    def __init__(self, objective: MaskClassification, device: torch.device) -> None:
        self.objective = objective
        self.totals = zeros(4, device)

    def watching(self, pixel_values: Tensor, labels: Tensor) -> Any:
        """The objective, whose forward passes add to the totals."""
        return _Watched(self, tuple(pixel_values.shape[-2:]), labels)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Nothing: semantic logits do not say which query they come from."""

    def mean(self, totals: Tensor) -> float:
        """Terms by their denominators; NaN where there is no target mask, and so no valid pixel."""
        terms, classes, masks, weight = totals.tolist()
        return terms / masks + classes / weight if masks else math.nan


class _Watched:
    """The forward passes of a batch.

    Args:
        loss (`MaskSetLoss`):
            Receives the sums.
        size (`tuple[int, ...]`):
            Height and width of the images before they were padded.
        labels (`Tensor`):
            Class ids (N, H, W).
    """

    def __init__(self, loss: MaskSetLoss, size: tuple[int, ...], labels: Tensor) -> None:
        self.loss = loss
        self.size = size
        self.labels = labels

    def forward(self, model: nn.Module, pixel_values: Tensor) -> Any:
        labels, device = self.labels, pixel_values.device
        below, right = (
            round((padded - side) / side * length)
            for padded, side, length in zip(pixel_values.shape[-2:], self.size, labels.shape[-2:], strict=True)
        )
        masks, classes = zip(*map(mask_targets, F.pad(labels, (0, right, 0, below), value=IGNORE_INDEX)), strict=True)
        targets = {
            "mask_labels": [mask.to(device, torch.float32) for mask in masks],
            "class_labels": [each.to(device) for each in classes],
        }
        sums = _Sums(model.get_submodule("criterion"), device)
        outputs = self.loss.objective.forward(with_module(model, "criterion", sums), pixel_values, **targets)
        weights: Any = model.weight_dict
        counted, matched, others = self.loss.objective.count(model, targets).tolist()
        totals = self.loss.totals
        totals[0] += weights["loss_mask"] * sums.found["loss_mask"] + weights["loss_dice"] * sums.found["loss_dice"]
        totals[1] += weights["loss_cross_entropy"] * sums.found["loss_cross_entropy"]
        totals[2] += counted
        totals[3] += matched + sums.criterion.eos_coef * others
        return outputs

    def logits(self, outputs: Any) -> Tensor:
        return self.loss.objective.logits(outputs)


class _Sums(StepLoss):
    """The terms of a batch, not divided by anything, summed over layers in `found`."""

    def __init__(self, criterion: nn.Module, device: torch.device) -> None:
        super().__init__(criterion, torch.tensor([1, 1, 0], device=device))
        self.found: defaultdict[str, Any] = defaultdict(float)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().forward(*args, **kwargs)
        for name, loss in losses.items():
            self.found[name.rpartition("_")[0]] += loss
        return losses


def _class_labels(batch: Batch) -> list[Tensor]:
    if "class_labels" not in batch or "mask_labels" not in batch:
        raise UserError(
            "the batch has no mask_labels and class_labels, which a mask-classification model is trained on: "
            "make batches with deft_hf.data.collate.MaskTargets."
        )
    return batch["class_labels"]
