"""Where a run comes from: the code, the machine, and the lists of data that it used."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

import deft_hf.utils.errors
from deft_hf import __version__
from deft_hf.data.domains import Domain
from deft_hf.data.own_transform import described
from deft_hf.trainer.defaults import Choice

if TYPE_CHECKING:
    from deft_hf.recipe import Recipe


@dataclass(frozen=True)
class Origin:
    """What a run was started with.

    Args:
        recipe (`Mapping[str, Any]`):
            The recipe, complete, as YAML has it.
        path (`str`):
            The file that it was read from.
        folder (`Path`):
            The output folder.
        transform (`Mapping[str, str]`, *optional*):
            Name and hash of the source of a transform of the user's own.
        choices (`tuple[Choice, ...]`, *optional*, defaults to `()`):
            Which of its values were chosen for it, and why.
    """

    recipe: Mapping[str, Any]
    path: str
    folder: Path
    transform: Mapping[str, str] | None = None
    choices: tuple[Choice, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe) -> Origin:
        """The origin of a recipe's run."""
        folder, values = Path(recipe.training.output_dir), yaml.safe_load(recipe.to_yaml())
        return cls(values, recipe.path, folder, described(recipe.data.transform), recipe.choices)


def hardware() -> str:
    """The device in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of Python, deft_hf and what it stands on."""
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy")
    own = {"python": platform.python_version(), "deft_hf": __version__}
    return own | {package: version(package) for package in packages}


def git_states(recipe: str | os.PathLike) -> dict[str, dict[str, Any] | None]:
    """`git_state` of the code of deft_hf, and of the folder that the recipe lies in."""
    return {
        "deft_hf": git_state(Path(deft_hf.utils.errors.__file__).parent),
        "recipe": git_state(Path(recipe).resolve().parent),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder stands at, and whether tracked files in it differ; None outside of a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", "."):
            return None  # a repository around it that knows nothing of it, as around site-packages
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def data_lists(**sections: list[Domain]) -> dict[str, list[dict[str, Any]]]:
    """By section of a recipe, its domains in order: name, number of images, and `list_hash`."""
    return {
        section: [{"name": domain.name, "images": len(domain), "contents": list_hash(domain)} for domain in domains]
        for section, domains in sections.items()
    }


def same_list(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two entries of `data_lists` are of the same data, as far as both say; earlier versions said less."""
    return all(before[key] == now[key] for key in before.keys() & now.keys())


def list_hash(domain: Domain) -> str:
    """SHA-256 of a domain's ids in their order, each with the digests of its image and its mask."""
    digest = hashlib.sha256()
    for key, image, mask in domain.contents:
        digest.update(f"{key}\0{image}\0{mask}\n".encode())
    return digest.hexdigest()
