"""Data loaders that Trainer's own do not replace: for one rank alone, and with workers that leave SIGTERM to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from deft_hf.data.sampling import set_epoch, share
from deft_hf.models.objectives import Objective
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.termination import out_of_reach


class Loaders:
    """Makes the loaders of evaluation and of source batches.

    Args:
        args (`DeFTTrainingArguments`):
            Batch sizes, workers and seed.
        collator (`Callable`):
            Returns the collator in use, without the masks that some objectives are trained on.
        heard (`Tensor`):
            See [`~deft_hf.trainer.termination.StopOnSigterm`].
    """

    def __init__(
        self, args: DeFTTrainingArguments, collator: Callable[[], Callable[[list], Any]], heard: Tensor
    ) -> None:
        self.args = args
        self.collator = collator
        self.heard = heard

    def evaluation(self, dataset: Any, batch_size: int, rank: int, ranks: int) -> DataLoader:
        """This rank's share of a data set, each item on exactly one rank.

        Accelerate's loader repeats images by its settings, so that the ranks have equally many, or cuts lists.
        """
        own = share(dataset, rank, ranks)
        return self._loader(own, batch_size, prefetch_factor=self.args.dataloader_prefetch_factor)

    def source_batches(self, dataset: Any) -> Iterator[dict[str, Any]]:
        """Training batches, the same on every rank, without touching the run's own loader.

        The choice of images is fixed; their augmentation is that of the present epoch. A last batch of one image,
        which BatchNorm has no variance of, is left out: on several ranks the run's own loader has none.
        """
        streams, size = isinstance(dataset, IterableDataset), self.args.train_batch_size
        alone = not streams and 1 < size < len(dataset) and len(dataset) % size == 1
        yield from self._loader(
            dataset,
            size,
            shuffle=not streams,
            generator=torch.Generator().manual_seed(self.args.seed),
            drop_last=self.args.dataloader_drop_last or alone,
        )

    def enter_epoch(self, epoch: int, dataset: Any, loader: DataLoader) -> None:
        """Turn the training data to an epoch, before its first batch.

        Args:
            epoch (`int`):
                The epoch.
            dataset (`Dataset`):
                The training data, which turns with whatever it wraps.
            loader (`DataLoader`):
                The one that Trainer made, or Accelerate out of it.
        """
        # Accelerate reaches a data set's `set_epoch` in some shardings only, and never through a wrapper.
        set_epoch(dataset, epoch)
        # A new iterator draws the seed of its workers from the run's random numbers. One that lives on with persistent
        # workers does not, and a resumed run, whose iterator is new, would go on with other numbers.
        inner = getattr(loader, "base_dataloader", loader)
        if getattr(inner, "_iterator", None) is not None:
            torch.empty((), dtype=torch.int64).random_(generator=inner.generator)

    def out_of_reach(self, loader: DataLoader) -> DataLoader:
        """A loader of Trainer's, whose workers leave SIGTERM to this process."""
        inner = getattr(loader, "base_dataloader", loader)
        inner.worker_init_fn = partial(out_of_reach, inner.worker_init_fn, self.heard)
        return loader

    def _loader(self, dataset: Any, batch_size: int, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size,
            collate_fn=self.collator(),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            worker_init_fn=partial(out_of_reach, None, self.heard),
            **options,
        )


def keep_masks_whole(objective: Objective, dataset: Any, accelerator: Accelerator) -> None:
    """Let each rank read a stream of its own where batches hold lists of masks, which Accelerate would cut as images.

    Args:
        objective (`Objective`):
            Says whether it is trained on masks.
        dataset (`Dataset`):
            Of the training.
        accelerator (`Accelerator`):
            Prepares the loader.
    """
    if objective.needs_masks and isinstance(dataset, IterableDataset) and accelerator.num_processes > 1:
        accelerator.dataloader_config.dispatch_batches = False
