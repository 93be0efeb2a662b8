"""How `DeFTTrainer` pushes to the Hub: loadable folders, beside the training, which no failure of a push ends."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from deft_hf.publish.push import PushFailed, check_repository, explained, prepare_repository, upload

logger = logging.get_logger(__name__)

_STAGED = ".push-"


class HubMixin:
    """The Hub methods of `transformers.Trainer`.

    `args.hub_strategy`: `every_save` pushes each checkpoint's model; `checkpoint` and `all_checkpoints` add what a run
    goes on from, in `last-checkpoint` and `checkpoint-N`, with Trainer's pickles; `end` pushes at `push_to_hub` alone.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, before any training.

        Raises:
            PushFailed: the Hub refused, so that no push will succeed. A Hub that cannot be reached is a warning.
        """
        if not self.is_world_process_zero():
            return
        self.push_in_progress: threading.Thread | None = None
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.hub_model_id = check_repository(name, **self._target(token, private))

    def _target(
        self, token: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> dict[str, Any]:
        return {
            "private": self.args.hub_private_repo if private is None else private,
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
        }

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background. A push that fails is a warning, and the next save tries again."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        before = self.push_in_progress
        if before is not None and before.is_alive() and not self.args.hub_always_push:
            logger.warning(f"{checkpoint_folder} is not pushed: the push before it still goes on.")
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(checkpoint_folder)
        # Links to the files, which stay when the checkpoint makes room for later ones.
        staged = folder.with_name(f"{_STAGED}{self.state.global_step}")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(folder, staged, copy_function=_link)
        message = f"Training in progress, step {self.state.global_step}"

        def push() -> None:
            try:
                if before is not None:
                    before.join()
                with explained(folder, self.hub_model_id, **self._target()):
                    self._push_staged(staged, folder.name, message)
            except PushFailed as error:
                logger.warning(f"{error}. Training goes on.")
            finally:
                shutil.rmtree(staged, ignore_errors=True)

        # A daemon: a Hub that does not answer must not keep a process alive that was told to end.
        self.push_in_progress = threading.Thread(target=push, name="push to the Hub", daemon=True)
        self.push_in_progress.start()

    def _push_staged(self, staged: Path, name: str, message: str) -> None:
        target, strategy = self._target(), self.args.hub_strategy
        self.hub_model_id = prepare_repository(self.hub_model_id, **target)
        common = {"token": target["token"], "revision": target["revision"]}
        upload(staged, self.hub_model_id, message=message, **common)
        if strategy != HubStrategy.EVERY_SAVE:
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else name
            message = f"{message}, checkpoint"
            upload(staged, self.hub_model_id, message=message, path_in_repo=place, left_out=(), **common)

    def _finish_current_push(self) -> None:
        """Wait for the push in progress; clear what pushes that were killed left."""
        push = getattr(self, "push_in_progress", None)
        if push is not None and push.is_alive():
            logger.warning("Waiting for the push of a checkpoint; everything is saved, Ctrl-C loses the push alone.")
            push.join()
        if self.args.push_to_hub and self.is_world_process_zero():
            for staged in Path(self.args.output_dir).glob(f"{_STAGED}*"):
                shutil.rmtree(staged, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub("Model save", revision=self.args.hub_revision)
            except PushFailed as error:
                logger.error(str(error))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the model into `args.output_dir` and push that folder, without checkpoints.

        Args:
            commit_message, blocking, token, revision, private: as `Trainer` has them.
            kwargs: for `create_model_card`, which is called where the folder has no card yet, or one by `Trainer`.

        Returns:
            The commit, or a Future of it without `blocking`; None on other processes than the first.

        Raises:
            PushFailed: with the command that pushes again; everything is saved.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        folder = Path(self.args.output_dir)
        card = folder / "README.md"
        if not card.exists() or "generated_from_trainer" in card.read_text("utf-8"):
            kwargs.setdefault("model_name", self.hub_model_id.split("/")[-1])
            self.create_model_card(**kwargs)
        self._finish_current_push()

        target = self._target(token, private, revision)

        def push() -> CommitInfo:
            with explained(folder, self.hub_model_id, **target):
                self.hub_model_id = prepare_repository(self.hub_model_id, **target)
                message = commit_message or "Upload model"
                return upload(
                    folder, self.hub_model_id, token=target["token"], revision=target["revision"], message=message
                )

        return push() if blocking else HfApi().run_as_future(push)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target
