"""A model folder on the Hub."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from transformers.utils import logging

from deft_hf.publish.card import shareable_tree
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import EARLIER_RECIPES, METRICS, NOT_PUBLISHED, RECIPE
from deft_hf.utils.text import without_credentials

logger = logging.get_logger(__name__)

# Files of a run that name folders of this machine; the local copies keep them.
_WITH_PATHS = (RECIPE, EARLIER_RECIPES, METRICS)
# Weights of an earlier push under other names, which `from_pretrained` could load instead of the new ones.
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_REFUSALS = (400, 401, 402, 403, 404, 409, 422)


class PushFailed(UserError):
    """A push that failed; the message says what is safe where, and the command that pushes again.

    Attributes:
        refused (`bool`):
            Whether the Hub refused, so that trying again without a change is of no use.
    """

    def __init__(self, message: str, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a model folder to a model repository, without checkpoints, baselines and training state.

    Large files that an earlier push uploaded are not sent again, so that an interrupted push resumes.

    Args:
        folder (`str` or `os.PathLike`):
            A final folder (what `export_generalized` wrote into, with results and figures beside it) or a checkpoint.
        repo_id (`str`):
            `user/name` or `organization/name`; the repository is created if it does not exist.
        private (`bool` or `None`):
            Whether a new repository is private; `None` uses the account's default.
        token (`str`, *optional*):
            Access token of the Hub; by default `HF_TOKEN`, or the one that `hf auth login` saved.
        revision (`str`, *optional*):
            Branch to push to, created if it does not exist; `main` by default.
        message (`str`, *optional*, defaults to `"Upload model"`):
            Commit message.

    Returns:
        `str`: Address of the repository.

    Raises:
        PushFailed: If the Hub refused or could not be reached, or the repository is public and `private` was asked
            for; with the command that pushes again.
    """
    with explained(folder, repo_id, private, token, revision):
        repo_id = prepare_repository(repo_id, private, token, revision)
        upload(folder, repo_id, token=token, revision=revision, message=message)
        return f"{without_credentials(HfApi().endpoint)}/{repo_id}"


def prepare_repository(
    repo_id: str, private: bool | None, token: str | None = None, revision: str | None = None
) -> str:
    """Create repository and branch if they do not exist; returns the repository's full name.

    Raises:
        PushFailed: If the repository exists and is public although `private` was asked for.
    """
    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(name).private:
        raise PushFailed(
            f"the repository {name} exists and is public, but this push is private. Make it private on the Hub, "
            "choose another name, or push publicly",
            refused=True,
        )
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    return name


def check_repository(repo_id: str, private: bool | None, token: str | None = None, revision: str | None = None) -> str:
    """`prepare_repository` before training, to find out whether pushes will be accepted.

    Returns:
        `str`: The repository's full name; `repo_id` if the Hub cannot be reached, after a warning.

    Raises:
        PushFailed: If the Hub refused, so that no push will succeed.
    """
    try:
        return prepare_repository(repo_id, private, token, revision)
    except Exception as error:  # as in `explained`
        found, refused, way_out = _reason(error, token)
        if refused:
            message = f"{repo_id} cannot be pushed to: {found}. Nothing was trained. {way_out}start again."
            raise PushFailed(message, refused) from error
        logger.warning(f"{repo_id}: {found}. Training starts all the same; every push tries again.")
        return repo_id


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    path_in_repo: str | None = None,
    left_out: Sequence[str] = NOT_PUBLISHED,
) -> CommitInfo:
    """Upload a folder to an existing repository; raises what the Hub's client raises.

    Recipe and facts are uploaded without folders of this machine and without tokens; see `shareable_tree`.
    """
    with _shareable_copy(Path(folder), left_out) as staged:
        return HfApi(token=token).upload_folder(
            repo_id=repo_id,
            folder_path=staged,
            path_in_repo=path_in_repo,
            revision=revision,
            commit_message=message,
            ignore_patterns=[*left_out],
            delete_patterns=[*_WEIGHTS],
        )


@contextmanager
def _shareable_copy(folder: Path, left_out: Sequence[str]) -> Iterator[Path]:
    """The folder, or a temporary copy if some of its files name folders of this machine.

    The copy has cleaned versions of these files and links to all others.
    """
    cleaned = {path: text for pattern in _WITH_PATHS for path in folder.glob(pattern) if (text := _cleaned(path))}
    if not cleaned:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="deft_hf-push-") as staged:
        files = (path for path in folder.resolve().rglob("*") if path.is_file())
        names = [str(path.relative_to(folder.resolve())) for path in files]
        for name in filter_repo_objects(names, ignore_patterns=[*left_out]):
            target = Path(staged, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if folder / name in cleaned:
                target.write_text(cleaned[folder / name], "utf-8")
            else:
                _link(folder.resolve() / name, target)
        yield Path(staged)


def _cleaned(path: Path) -> str | None:
    """The file's text without folders of this machine; `None` if nothing changes or it cannot be read."""
    try:
        text = path.read_text("utf-8")
        tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    clean = shareable_tree(tree)
    if clean == tree:
        return None
    if path.suffix == ".json":
        return json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(clean, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # Windows needs a privilege for it
        shutil.copy2(source, target)


@contextmanager
def explained(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None,
    token: str | None = None,
    revision: str | None = None,
) -> Iterator[None]:
    """Wrap a push of `folder`: every failure becomes one `PushFailed`, without the token."""
    try:
        yield
    # The Hub, the network, a proxy and the storage client fail in ways that no list of exceptions covers.
    except Exception as error:
        found, refused, way_out = _reason(error, token)
        raise PushFailed(
            f"the push to {repo_id} failed: {found}. Everything is safe in {folder}. {way_out}push again: "
            f"{_command(folder, repo_id, private, revision)}",
            refused,
        ) from error


def _reason(error: BaseException, token: str | None) -> tuple[str, bool, str]:
    """What went wrong, whether the Hub or its client refused, and what to do before pushing again."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 3:
        chain.append(link)
        link = link.__cause__
    texts = dict.fromkeys(" ".join(str(each).split()).rstrip(".") or type(each).__name__ for each in chain)
    status = next((each.response.status_code for each in chain if isinstance(each, HfHubHTTPError)), None)
    refused = status in _REFUSALS or isinstance(error, HFValidationError | PushFailed)
    way_out = "Then " if isinstance(error, PushFailed | HFValidationError) else "When the Hub can be reached, "
    if status in (401, 403, 404):
        way_out = "Log in (hf auth login, or HF_TOKEN) with a token that may write there, then "
    elif isinstance(error, OfflineModeIsEnabled):
        way_out = "Without HF_HUB_OFFLINE, "
    return without_token("; ".join(texts), token), refused, way_out


def without_token(text: str, token: str | None = None) -> str:
    """`text` without access tokens and passwords: `token`, those of this machine, and what looks like one."""
    try:
        tokens = [token, os.environ.get("HF_TOKEN"), get_token()]
    except OSError:  # the file of the token cannot be read
        tokens = [token, os.environ.get("HF_TOKEN")]
    for secret in filter(None, tokens):
        for form in sorted({secret, secret.strip(), repr(secret)[1:-1]} - {""}, key=len, reverse=True):
            text = text.replace(form, "(token)")
    return re.sub(r"\bhf_\w{8,}", "(token)", without_credentials(text))


def _command(folder: str | os.PathLike, repo_id: str, private: bool | None, revision: str | None) -> str:
    words = ["python", "-m", "deft_hf.push", str(Path(folder).resolve()), repo_id]
    words += [] if private is None else ["--private" if private else "--public"]
    words += [] if revision is None else ["--revision", revision]
    return shlex.join(words)
