"""How `DeFTTrainer` pushes to the Hub: loadable folders, beside the training, which no failure of a push ends."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from deft_hf.publish.push import PushFailed, check_repository, explained, prepare_repository, upload
from deft_hf.trainer.arguments import DeFTTrainingArguments

logger = logging.get_logger(__name__)

_STAGED = ".push-"


class Pusher:
    """Pushes checkpoints in the background and the finished folder at the end; for the main process.

    `args.hub_strategy`: `every_save` pushes each checkpoint's model; `checkpoint` and `all_checkpoints` add what a run
    resumes from, in `last-checkpoint` and `checkpoint-N`, with Trainer's pickles; `end` pushes at `push_to_hub` alone.

    Args:
        args (`DeFTTrainingArguments`):
            Repository, token, revision and strategy.

    Attributes:
        in_progress (`threading.Thread`, *optional*):
            The push of a checkpoint.
        repo_id (`str`):
            The repository; empty until `prepare` has found its full name.
    """

    def __init__(self, args: DeFTTrainingArguments) -> None:
        self.args = args
        self.in_progress: threading.Thread | None = None
        self.repo_id = ""

    def prepare(self, token: str | None = None, private: bool | None = None) -> str:
        """Make the repository, before any training; returns its name.

        Raises:
            PushFailed: The Hub refused, so that no push will succeed. A Hub that cannot be reached is a warning.
        """
        name = self.args.hub_model_id or self.args.folder.absolute().name
        self.repo_id = check_repository(name, **self.target(token, private))
        return self.repo_id

    def target(
        self, token: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> dict[str, Any]:
        """Visibility, token and branch, the arguments' where none are given."""
        return {
            "private": self.args.hub_private_repo if private is None else private,
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
        }

    def push_checkpoint(self, folder: Path, step: int, on_begin: Callable[[], None]) -> None:
        """Push a checkpoint in the background. A push that fails is a warning, and the next save tries again.

        Args:
            folder (`Path`):
                The checkpoint.
            step (`int`):
                Optimizer step of the checkpoint.
            on_begin (`Callable`):
                Called where a push is begun.
        """
        if self.args.hub_strategy == HubStrategy.END:
            return
        before = self.in_progress
        if before is not None and before.is_alive() and not self.args.hub_always_push:
            logger.warning(f"{folder} is not pushed: the push before it is still in progress.")
            return
        on_begin()
        # Links to the files, which stay when the checkpoint makes room for later ones.
        staged = folder.with_name(f"{_STAGED}{step}")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(folder, staged, copy_function=_link)
        message = f"Training in progress, step {step}"

        def push() -> None:
            try:
                if before is not None:
                    before.join()
                with explained(folder, self.repo_id, **self.target()):
                    self._push_staged(staged, folder.name, message)
            except PushFailed as error:
                logger.warning(f"{error}. Training continues.")
            finally:
                shutil.rmtree(staged, ignore_errors=True)

        # A daemon: a Hub that does not answer must not keep a process alive that was told to end.
        self.in_progress = threading.Thread(target=push, name="push to the Hub", daemon=True)
        self.in_progress.start()

    def _push_staged(self, staged: Path, name: str, message: str) -> None:
        target, strategy = self.target(), self.args.hub_strategy
        self.repo_id = prepare_repository(self.repo_id, **target)
        common = {"token": target["token"], "revision": target["revision"]}
        upload(staged, self.repo_id, message=message, **common)
        if strategy != HubStrategy.EVERY_SAVE:
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else name
            message = f"{message}, checkpoint"
            upload(staged, self.repo_id, message=message, path_in_repo=place, left_out=(), **common)

    def finish(self) -> None:
        """Wait for the push in progress; clear what pushes that were killed left."""
        if self.in_progress is not None and self.in_progress.is_alive():
            logger.warning("Waiting for the push of a checkpoint; everything is saved, Ctrl-C loses the push alone.")
            self.in_progress.join()
        if self.args.push_to_hub:
            for staged in self.args.folder.glob(f"{_STAGED}*"):
                shutil.rmtree(staged, ignore_errors=True)

    def push_folder(
        self, message: str, blocking: bool, token: str | None, private: bool | None, revision: str | None
    ) -> CommitInfo | Future[CommitInfo]:
        """Push `args.output_dir`, without checkpoints.

        Returns:
            `CommitInfo` or `Future[CommitInfo]`: The commit, or a Future of it without `blocking`.

        Raises:
            PushFailed: With the command that pushes again; everything is saved.
        """
        folder, target = self.args.folder, self.target(token, private, revision)

        def push() -> CommitInfo:
            with explained(folder, self.repo_id, **target):
                self.repo_id = prepare_repository(self.repo_id, **target)
                return upload(
                    folder, self.repo_id, token=target["token"], revision=target["revision"], message=message
                )

        return push() if blocking else HfApi().run_as_future(push)


class PushingTrainer(Trainer):
    """The overrides of `Trainer` that push, by a [`Pusher`]."""

    args: DeFTTrainingArguments
    pusher: Pusher

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, before any training; a Hub that refuses raises `PushFailed`, one out of reach warns."""
        if self.is_world_process_zero():
            self.hub_model_id = self.pusher.prepare(token, private)  # type: ignore[assignment]  # typed as None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            self.pusher.push_checkpoint(Path(checkpoint_folder), self.state.global_step, self._on_push_begin)

    def _on_push_begin(self) -> None:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)

    def _finish_current_push(self) -> None:
        if self.is_world_process_zero():
            self.pusher.finish()

    def push_to_hub(  # type: ignore[override]  # Trainer's is annotated as if it always blocked, on every rank
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the model into `args.output_dir` and push that folder, without checkpoints; arguments are `Trainer`'s.

        Returns:
            `CommitInfo`, `Future` or `None`: The commit; a future of it without `blocking`; `None` on other processes.

        Raises:
            PushFailed: With the command that pushes again; everything is saved.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self._on_push_begin()
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        card = self.args.folder / "README.md"
        if not card.exists() or "generated_from_trainer" in card.read_text("utf-8"):
            kwargs.setdefault("model_name", str(self.hub_model_id).split("/")[-1])
            self.create_model_card(**kwargs)
        self._finish_current_push()
        return self.pusher.push_folder(commit_message or "Upload model", blocking, token, private, revision)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target
