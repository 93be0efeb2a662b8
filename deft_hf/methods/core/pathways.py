"""DeFT's two pathways over two copies of one model, in a single `forward`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from deft_hf.methods.core.distance import squared_distance
from deft_hf.methods.core.ema import EMA, share_left, update_average
from deft_hf.methods.core.halves import halves
from deft_hf.methods.core.layers import GROUPS, Group, Layers, branches
from deft_hf.methods.core.losses import losses_by_group
from deft_hf.methods.core.shards import cut, is_sharded, join, piece, sum_over_pieces, whole_shape
from deft_hf.methods.core.stages import PARTS, Part, Stage
from deft_hf.models.families import SegmentationFamily
from deft_hf.models.views import with_module
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Penalties = Callable[["DualPathway"], Iterable[Tensor]]


def takes_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter: not to norms, biases and layer scales, which have one dimension."""
    return len(whole_shape(parameter)) > 1 and not name.endswith("bias")


class DualPathway(nn.Module):
    """The usual and the generalized component of one model, and the losses that train them.

    `usual` is the copy that gradients train, `generalized` the one that only the moving average moves; both are
    complete models of the original class. One `forward` gives every loss of a step for one backward, which DDP, ZeRO
    and FSDP need.

    What a step computes depends on the stage (D: decoder, E: encoder, uc: usual, gc: generalized):

    | stage | loss | moved by gradients | generalized component after the step |
    |---|---|---|---|
    | `warmup` | loss(D_uc(E_gc(x)), y) | D_uc | D_gc follows D_uc |
    | `decoupled` | loss(D_gc(E_uc(x)), y) + loss(D_uc(E_gc(x)), y) | E_uc, D_uc | gc <- m gc + (1 - m) uc |
    | `split` | as `decoupled`, with every other image of the batch in each pathway | E_uc, D_uc | as `decoupled` |
    | `joint` | loss(D_uc(E_uc(x)), y) | E_uc, D_uc | gc <- m gc + (1 - m) uc |
    | `measure` | as `joint` | the method takes the step back | stays |
    | `alternating` | one of `decoupled`'s in turn, the first at the first step | its part | as `decoupled` |

    In `split` each loss is over the items of its own images; the BatchNorm layers of a pathway see its images alone,
    and a batch of fewer than four goes through both pathways whole, since one image is no batch to them.
    After `divide`, the stable and the unstable tensors are in the place of encoder and decoder in `decoupled` and
    `alternating`.

    With `average=None` the two components are one and the same model: ordinary fine-tuning on the same loop. The last
    column is that of [`~deft_hf.methods.core.ema.EMA`]; for others see `deft_hf.methods.averages`.

    Args:
        model (`nn.Module`):
            A segmentation model; becomes `usual`, in float32 (or float64 if it is that already).
        family (`SegmentationFamily`):
            Its encoder/decoder split and objective.
        average (`EMA`, *optional*, defaults to `EMA()`):
            How the generalized copy follows, until `enter` says otherwise; `None` keeps no copy.
        penalties (`Penalties`, *optional*):
            Terms to add to the loss of an optimizer step after the warm-up, float32 scalars, from this object.
        view (`Callable`, *optional*):
            The model that the loss of a joint step is of, from this object, over the weights of `usual`, the default.
        exported (`Literal["generalized", "usual"]`, *optional*, defaults to `"generalized"`):
            The component that evaluation, checkpoints and the export are of.
        exports_copy (`bool`, *optional*, defaults to `False`):
            Whether the export is a changed copy of it, in which adapters are merged, for example.
        initial_at_hand (`bool`, *optional*, defaults to `False`):
            Whether to keep the initialisation on the device of the parameters rather than on the CPU, which saves a
            transfer at each step if a regulariser reads it.
        share_untrained (`bool`, *optional*, defaults to `True`):
            Whether the components share tensors that no gradient ever reaches.

    Example:

    ```python
    >>> import torch
    >>> from deft_hf import DualPathway, resolve_family
    >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation

    >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3))
    >>> pathways = DualPathway(model, resolve_family(model))
    >>> pathways.enter("decoupled")
    >>> pathways.snapshot()
    >>> optimizer = torch.optim.SGD(pathways.usual.parameters(), lr=0.01)
    >>> losses = pathways.train()(torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)))
    >>> sorted(losses)
    ['decoder_loss', 'encoder_loss', 'loss']
    >>> losses["loss"].backward()
    >>> optimizer.step()
    >>> pathways.update_generalized()

    ```
    """

    # Trainer then counts the items of the whole optimizer step and hands them over.
    accepts_loss_kwargs = True

    updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        family: SegmentationFamily,
        average: EMA | None = EMA(),  # noqa: B008 (frozen)
        penalties: Penalties | None = None,
        view: Callable[[DualPathway], nn.Module] | None = None,
        exported: Literal["generalized", "usual"] = "generalized",
        exports_copy: bool = False,
        initial_at_hand: bool = False,
        share_untrained: bool = True,
    ) -> None:
        super().__init__()
        self.family = family = family.without_frozen(model)
        self.average = average
        self.penalties = penalties
        self.view = view
        self.usual = model if next(model.parameters()).dtype == torch.float64 else model.float()
        for tensor in [*self.usual.parameters(), *self.usual.buffers()]:
            # Weights read from a file lie wherever the file has them, and the CPU's kernels round differently at other
            # alignments: without this copy, two runs of one seed would not be equal.
            tensor.data = tensor.data.clone()
        for name, parameter in self.usual.named_parameters():
            parameter.requires_grad_(family.is_trained(name))
        untrained = {
            id(p): p for n, p in self.usual.named_parameters() if share_untrained and not family.is_trained(n)
        }
        self.generalized = self.usual
        if average is not None:
            self.generalized = copy.deepcopy(self.usual, untrained).requires_grad_(False)
        self.exports_usual = exported == "usual" or average is None
        self.exports_copy = exports_copy
        self.initial_at_hand = initial_at_hand
        # Where a launcher has no autocast of its own; the parameters stay float32.
        self.autocast: torch.dtype | None = None
        # The optimizer step that the next batches belong to, where a trainer says so: its items and forward passes;
        # and the processes over which gradients are averaged afterwards.
        self.step: tuple[Tensor, int] | None = None
        self.ranks = 1
        self.seed = 0  # of what an ingredient draws
        self.stage: Stage = "joint"
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.initial: dict[str, Tensor] = {}
        # What `decoupled` takes apart; models whose losses train the groups, where those are not the parts; tensors.
        self.groups: tuple[Part, Part] | tuple[Group, Group] = PARTS
        self.branches: dict[str, nn.Module] = {}
        self.trained_by: dict[str, list[nn.Parameter]] = {}
        self.turn = 0  # whether `updates` is odd, known to the host
        self._averaged: dict[Part, tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
        self._decayed: dict[Part, list[nn.Parameter]] = {}
        self._followed: list[tuple[Tensor, Tensor]] = []
        self.whole = True

    @property
    def config(self) -> PreTrainedConfig:
        """That of a `transformers` model; what other models call so is their own."""
        from transformers import PreTrainedConfig

        config = self.usual.config
        if not isinstance(config, PreTrainedConfig):
            raise AttributeError("config")
        return config

    @property
    def _no_split_modules(self) -> Any:
        """Classes of the blocks that FSDP2 shards one by one, which Accelerate asks the model for."""
        return getattr(self.usual, "_no_split_modules", None)

    @property
    def averages(self) -> bool:
        """Whether the generalized component is a model of its own."""
        return self.generalized is not self.usual

    @property
    def exported(self) -> nn.Module:
        """The component that is evaluated, saved and exported."""
        return self.usual if self.exports_usual else self.generalized

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        items: Tensor | None = None,
        passes: int = 1,
        **targets: Any,
    ) -> Any:
        """In training mode the losses of the current stage; in eval mode the exported model's outputs.

        Args:
            pixel_values (`Tensor`):
                Images, float (N, 3, H, W).
            labels (`Tensor`, *optional*):
                Class ids, int64 (N, H, W), 255 = ignored; required in training.
            items (`Tensor`, *optional*):
                The objective's items (valid pixels, say) of the whole optimizer step, as `count` gives them for each
                batch; by default those of the step that a trainer is at, or else those of this batch.
            passes (`int`, *optional*, defaults to `1`):
                With `items`, number of forward passes of the optimizer step, over accumulation and ranks; penalties
                are divided by it.
            targets (`Any`):
                Further targets of the objective.

        Returns:
            `PathwayLosses`: In training, scalars: `loss` for the backward, and its detached terms (`encoder_loss` and
            `decoder_loss`, one of them, or `joint_loss`).

        Raises:
            UserError: There are no labels in training.
        """
        if not self.training:
            return self.family.objective.forward(self.exported, pixel_values)
        if labels is None:
            raise UserError(
                "training: found a batch without labels; a step has several pathways, each with a loss of its own and "
                "none with logits for another: leave `labels` in the inputs and take `outputs.loss`."
            )
        from deft_hf.models.outputs import PathwayLosses  # of transformers, which this module does without

        batch = {"pixel_values": pixel_values, "labels": labels, **targets}
        if items is None:
            items, passes = self.step or (self.count(batch, self.stage), passes)
        device = pixel_values.device.type
        with torch.autocast(device, self.autocast) if self.autocast else nullcontext():
            losses = {f"{name}_loss": loss for name, loss in self._losses(batch, items).items()}
        total = torch.stack(list(losses.values())).sum()
        if self.penalties is not None and self.stage != "warmup" and (terms := list(self.penalties(self))):
            total = total + torch.stack(terms).sum() / passes
        total = total * self.ranks if self.ranks > 1 else total
        return PathwayLosses(loss=total, **{name: loss.detach() for name, loss in losses.items()})

    def _losses(self, batch: Mapping[str, Any], items: Tensor) -> dict[str, Tensor]:
        if self.stage in ("joint", "measure"):
            model = self.usual if self.view is None else self.view(self)
            return {"joint": self.family.objective.loss(model, batch, items)}
        ahead = self.trained_by[self.groups[1]] if self.whole else []  # shards are gathered by the backward
        return losses_by_group(self._loss_of, self.groups, self.stage, batch, items, self.turn, ahead)

    def _loss_of(self, group: str, batch: Mapping[str, Any], items: Tensor) -> Tensor:
        pair = (self.usual, self.generalized) if group == "encoder" else (self.generalized, self.usual)
        return self.family.objective.loss(self.branches.get(group) or self.pathway(*pair), batch, items)

    def count(self, batch: Mapping[str, Any], stage: Stage) -> Tensor:
        """The objective's items of a batch; where a stage splits batches, those of each pathway in turn, stacked."""
        count = self.family.objective.count
        if stage != "split":
            return count(self.usual, batch)
        return torch.stack([count(self.usual, half) for half in halves(batch)])

    def pathway(self, encoder: nn.Module, decoder: nn.Module) -> nn.Module:
        """A view: the model `decoder` in which the encoder is that of `encoder`."""
        view = decoder
        for path in self.family.encoders:
            view = with_module(view, path, encoder.get_submodule(path))
        return view

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Trade compute for memory in both components; `kwargs` are those of the models' own method."""
        models: set[Any] = {self.usual, self.generalized}
        for model in models:
            model.activation_checkpointing_enable(**kwargs)

    def enter(self, stage: Stage, average: EMA | None = None) -> None:
        """Switch to `stage`, and, where the generalized component is a model of its own, to its average there.

        The encoder takes no gradient in the warm-up. The groups of `decoupled` are encoder and decoder.
        """
        self.stage, self.groups, self.branches = stage, PARTS, {}
        self.turn = int(self.updates) % 2
        self.whole = not is_sharded(self.usual)
        if average is not None and self.averages:
            self.average = average
        usual, generalized = self._trained(self.usual), self._trained(self.generalized)
        for name, parameter in usual.items():
            parameter.requires_grad_(stage != "warmup" or self.family.part_of(name) == "decoder")
        # Gathered here, not at every step: a walk over the modules costs milliseconds.
        for part in PARTS:
            names = [name for name in usual if self.family.part_of(name) == part]
            self._averaged[part] = [generalized[name] for name in names], [usual[name] for name in names]
            self._decayed[part] = [usual[name] for name in names if takes_decay(name, usual[name])]
        self.trained_by = {part: self.trained(part) for part in PARTS}
        # In the warm-up D_gc is to be D_uc. In the joint stage no batch passes through the generalized model, so that
        # its own BatchNorm statistics would stay at the start.
        parts = {"warmup": ("decoder",), "joint": PARTS}.get(stage, ())
        targets = dict(self.generalized.named_buffers())
        self._followed = [(targets[n], b) for n, b in self.usual.named_buffers() if self.family.part_of(n) in parts]

    def divide(self, layers: Layers) -> None:
        """Put the groups of `layers` in the place of encoder and decoder, until a stage is entered again."""
        self.groups, self.branches = GROUPS, branches(self.usual, self.generalized, layers)
        usual = self._trained(self.usual)
        self.trained_by = {group: [usual[name] for name in getattr(layers, group)] for group in GROUPS}

    @torch.no_grad()
    def snapshot(self) -> None:
        """Make the usual component's parameters the initialisation: distances and the average start from there.

        BatchNorm statistics stay each component's own where pathways are two: the generalized encoder has those of the
        warm-up. In the joint stage the usual encoder continues with them, as without an average.
        """
        if self.stage == "joint":
            warmed_up = dict(self.generalized.named_buffers())
            for name, buffer in self.usual.named_buffers():
                if self.family.part_of(name) == "encoder":
                    buffer.copy_(warmed_up[name])
        self.updates.zero_()
        self.turn = 0
        usual, generalized = self._trained(self.usual), self._trained(self.generalized)
        for name, parameter in usual.items():
            piece(generalized[name]).copy_(piece(parameter))
        self.initial = {
            name: piece(parameter).clone() if self.initial_at_hand else piece(parameter).to("cpu", copy=True)
            for name, parameter in usual.items()
        }

    @torch.no_grad()
    def update_generalized(self) -> None:
        """Move the generalized component after an optimizer step; see the table above."""
        if self.stage == "measure":
            return
        self.updates += 1
        self.turn = 1 - self.turn
        if not self.averages or self.average is None:
            return
        # The plain average does not ask how many updates there were, which would make the host wait for the device.
        updates = int(self.updates) if self.average.needs_count else 0
        parts: tuple[Part, ...] = PARTS if self.stage != "warmup" else ("decoder",)
        for part in parts:
            average, current = self._averaged[part]
            weight = self.average.weight(part, updates) if self.stage != "warmup" else 1.0
            update_average([piece(p) for p in average], [piece(p) for p in current], weight)
        for target, source in self._followed:
            target.copy_(source)

    def trained(self, part: Part) -> list[nn.Parameter]:
        """The usual component's trained parameters of a part."""
        return self._averaged[part][1]

    def decayed(self, part: Part) -> list[nn.Parameter]:
        """Those of `trained` for which `takes_decay` holds."""
        return self._decayed[part]

    def start(self, part: Part) -> list[Tensor]:
        """The initialisation of `trained`, tensor by tensor, on its device."""
        device = self.updates.device
        return [value.to(device) for name, value in self.initial.items() if self.family.part_of(name) == part]

    def whole_initial(self, keep: bool = True) -> dict[str, Tensor]:
        """The initialisation with whole tensors; collective, as `deft_hf.methods.core.shards.whole_state` is."""
        parameters = self._trained(self.usual)
        whole = ((name, join(held, parameters[name])) for name, held in self.initial.items())
        return {name: tensor.contiguous() for name, tensor in whole if keep}

    def set_initial(self, whole: Mapping[str, Tensor]) -> None:
        """Take `whole`, by name, as the initialisation; this rank keeps its pieces.

        Raises:
            ValueError: It lacks a tensor of what is trained, or has one of what is not.
        """
        device = self.updates.device if self.initial_at_hand else "cpu"
        trained = self._trained(self.usual)
        if missing := [name for name in trained if name not in whole]:
            raise ValueError(f"{len(missing)} tensors of the initialisation are missing, {missing[0]} first")
        if frozen := [name for name in whole if name not in trained]:
            raise ValueError(f"{len(frozen)} tensors that it trained are frozen here, {frozen[0]} first")
        # In the model's order: sums over all tensors then round alike.
        self.initial = {name: cut(whole[name], p).to(device, copy=True) for name, p in trained.items()}

    def share_left(self) -> dict[str, float]:
        """Weight of the initialisation in the exported component per part; 1 while it is the initialisation."""
        updates = int(self.updates)
        if self.stage == "warmup":
            return {"encoder": 1.0, "decoder": share_left(0.0, updates)}
        if self.average is None or self.exports_usual:
            return dict.fromkeys(PARTS, share_left(0.0, updates))
        return {part: self.average.share_left(part, updates) for part in PARTS}

    def distances(self, model: nn.Module) -> dict[str, float]:
        """The L2 distance of `model` (`usual` or `generalized`) to the initialisation, by part.

        Collective if parameters are sharded over ranks.
        """
        parameters = self._trained(model)
        result: dict[str, float] = {}
        for part in PARTS:
            names = [name for name in self.initial if self.family.part_of(name) == part]
            held = squared_distance([piece(parameters[n]) for n in names], [self.initial[n] for n in names])
            result[part] = float(sum_over_pieces(held, next(iter(parameters.values()))).sqrt())
        return result

    def _trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if self.family.is_trained(name)}
