import shlex
from unittest import mock

import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects

from deft_hf.errors import UserError
from deft_hf.publish.push import push_folder

PUBLISHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "results/scores.json",
    "figures/domains.png",
}
PRIVATE = {
    "checkpoint-5/model.safetensors",
    "checkpoint-5/optimizer.pt",
    "checkpoint-100/nested/state.json",
    ".checkpoint-5.partial/model.safetensors",
    ".export-x1/model.safetensors",
    "baselines/joint/model.safetensors",
    "baselines/joint/results/scores.json",
}


@pytest.fixture
def folder(tmp_path):
    for name in PUBLISHED | PRIVATE:
        path = tmp_path / "final run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "final run"


@pytest.fixture
def hub():
    """The calls that reach the Hub, with the real signatures, which answer nothing."""
    with mock.patch.multiple(
        HfApi,
        create_repo=mock.create_autospec(HfApi.create_repo, return_value=RepoUrl("https://huggingface.co/ana/town")),
        create_branch=mock.create_autospec(HfApi.create_branch),
        upload_folder=mock.create_autospec(HfApi.upload_folder),
    ):
        yield HfApi


def uploaded(folder, patterns):
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return set(filter_repo_objects(files, ignore_patterns=patterns))


def test_push_uploads_the_final_folder_without_checkpoints_and_baselines(folder, hub):
    assert push_folder(folder, "town", private=True) == "https://huggingface.co/ana/town"
    hub.create_repo.assert_called_once_with(mock.ANY, "town", private=True, exist_ok=True)
    hub.create_branch.assert_not_called()
    ((_,), call) = hub.upload_folder.call_args
    # The Hub tells the full name.
    assert (call["repo_id"], call["folder_path"], call["revision"]) == ("ana/town", folder, None)
    assert uploaded(folder, call["ignore_patterns"]) == PUBLISHED


def test_push_to_a_branch_makes_it(folder, hub):
    push_folder(folder, "ana/town", private=False, token="hf_secret", revision="v2")
    hub.create_branch.assert_called_once_with(mock.ANY, "ana/town", branch="v2", exist_ok=True)
    assert hub.upload_folder.call_args.kwargs["revision"] == "v2"
    assert hub.create_repo.call_args.args[0].token == "hf_secret"


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("failing", ["create_repo", "upload_folder"])
@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), RuntimeError("CAS service"), KeyError()])
def test_push_that_fails_tells_how_to_push_again(folder, hub, private, failing, error):
    getattr(hub, failing).side_effect = error
    with pytest.raises(UserError) as raised:
        push_folder(folder, "ana/town", private, token="hf_secret", revision="v2")
    message = str(raised.value)
    assert message.count("\n") == 0
    assert " ".join(str(error).split()) in message
    assert f"Training and export are safe in {folder}" in message
    assert "hf_secret" not in message
    assert raised.value.__cause__ is error

    hf, upload, repo, path, target, visibility, *options = shlex.split(message[message.index("hf upload") :])
    assert (hf, upload, repo, path, target) == ("hf", "upload", "ana/town", str(folder), ".")
    assert visibility == ("--private" if private else "--no-private")
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert ("--revision", "v2") in pairs
    assert uploaded(folder, [value for option, value in pairs if option == "--exclude"]) == PUBLISHED


def test_push_without_network_and_with_a_bad_name(folder):
    """Through the real client, which the tests' settings keep offline."""
    with pytest.raises(UserError, match="(?i)offline.*safe in.*hf upload ana/town"):
        push_folder(folder, "ana/town", private=True)
    with pytest.raises(UserError, match="the push to a/b/c failed: Repo id must"):
        push_folder(folder, "a/b/c", private=True)
