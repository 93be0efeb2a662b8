"""The final folder on the Hub."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from huggingface_hub import HfApi

from deft_hf.errors import UserError

# Patterns of the Hub, whose `*` matches `/` too: checkpoints, whole or in writing, and the folders of baselines.
LEFT_OUT = ("checkpoint-*", "baselines/*", ".*")


def push_folder(
    folder: str | os.PathLike, repo_id: str, private: bool, token: str | None = None, revision: str | None = None
) -> str:
    """Uploads a finished run to a model repository, without checkpoints and baselines.

    Args:
        folder: what `export_generalized` wrote into, with results and figures beside it.
        repo_id: `user/name`; the repository is made where there is none. One that exists stays as visible as it is.
        private: whether a new repository is private.
        token: the Hub's access token; default: the one that `hf auth login` saved.
        revision: branch to push to, made where there is none; default: main.

    Returns:
        Address of the repository.

    Raises:
        UserError: the Hub refused or could not be reached; with the command that pushes again.
    """
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(address.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, revision=revision, ignore_patterns=[*LEFT_OUT])
    # The Hub, the network, a proxy and the storage client fail in ways that no list of exceptions covers.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the push to {repo_id} failed: {reason}. Training and export are safe in {folder}. Log in (hf auth "
            f"login) with a token that may write there, then push again: "
            f"{_command(folder, repo_id, private, revision)}"
        ) from error
    return str(address)


def _command(folder: str | os.PathLike, repo_id: str, private: bool, revision: str | None) -> str:
    words = ["hf", "upload", repo_id, str(Path(folder).resolve()), ".", "--private" if private else "--no-private"]
    words += [] if revision is None else ["--revision", revision]
    for pattern in LEFT_OUT:
        words += ["--exclude", pattern]
    return shlex.join(words)
