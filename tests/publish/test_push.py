"""Pushing, by the real client, to a small Hub on loopback."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from deft_hf import push
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.publish.push import PushFailed, push_folder, without_token
from deft_hf.utils.errors import UserError, run_command
from tests import tiny
from tests.hub import TOKEN, Repository

PUBLISHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "results/metrics.json",
    "figures/domains.png",
}
KEPT_BACK = {
    "checkpoint-5/model.safetensors",
    "checkpoint-5/optimizer.pt",
    ".checkpoint-5.partial/model.safetensors",
    "baselines/joint/model.safetensors",
    "training_args.bin",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "final run"
    export_generalized(tiny.build("segformer"), folder, segmentation_processor(None, (64, 96)), "# A card")
    for name in (PUBLISHED | KEPT_BACK) - {path.name for path in folder.iterdir()}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def again(message):
    """The arguments of the command that a message tells to push again with."""
    python, m, module, *arguments = shlex.split(message[message.index("push again: ") + len("push again: ") :])
    assert (python, m, module) == ("python", "-m", "deft_hf.push")
    return arguments


def test_create_push_and_reload_by_name(folder, hub, tmp_path):
    assert push_folder(folder, "town", private=True) == f"{hub.endpoint}/ana/town"
    assert hub.repositories["ana/town"].private
    assert hub.files("ana/town") == {name: (folder / name).read_bytes() for name in PUBLISHED}
    code = (
        "import sys; sys.modules['deft_hf'] = None\n"
        "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation\n"
        "print(AutoImageProcessor.from_pretrained('ana/town').size)\n"
        "AutoModelForSemanticSegmentation.from_pretrained('ana/town').save_pretrained(sys.argv[1])\n"
    )
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    settings |= {"HF_HOME": str(tmp_path / "cache"), "DISABLE_SAFETENSORS_CONVERSION": "1"}
    reloaded = [sys.executable, "-c", code, str(tmp_path / "reloaded")]
    printed = subprocess.run(reloaded, env=os.environ | settings, capture_output=True, text=True, check=True).stdout
    assert "height=64, width=96" in printed
    expected = tiny.build("segformer").state_dict()
    found = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "reloaded").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_push_to_a_branch_of_an_organisation_with_a_given_token(folder, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    push_folder(folder, "lab/town", private=False, token=TOKEN, revision="v2", message="Second try")
    assert not hub.repositories["lab/town"].private
    assert set(hub.files("lab/town", "v2")) == PUBLISHED and hub.files("lab/town") == {}
    assert hub.repositories["lab/town"].commits == ["Second try"]


def test_a_repository_that_exists_keeps_what_is_others_and_loses_stale_weights(folder, hub):
    hub.repositories["ana/town"] = Repository(private=True)
    stale = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "mine.txt": b"mine"}
    hub.repositories["ana/town"].branches["main"] |= stale
    push_folder(folder, "ana/town", private=True)
    assert set(hub.files("ana/town")) == PUBLISHED | {"mine.txt"}
    push_folder(folder, "ana/town", private=True)
    assert hub.repositories["ana/town"].commits == ["Upload model"]  # nothing changed


def test_what_is_meant_to_be_private_is_not_pushed_where_everybody_reads(folder, hub):
    hub.repositories["ana/town"] = Repository(private=False)
    with pytest.raises(PushFailed, match="ana/town exists and is public, but this push is private") as raised:
        push_folder(folder, "ana/town", private=True)
    assert raised.value.refused and hub.files("ana/town") == {}
    push_folder(folder, "ana/town", private=False)
    assert set(hub.files("ana/town")) == PUBLISHED


def fail_on_third_upload(status):
    def fault(method, path, seen=[]):  # noqa: B006
        if method == "PUT":
            seen.append(path)
            if path in list(dict.fromkeys(seen))[2:]:
                return status

    return fault


@pytest.mark.parametrize("fault", [500, "cut"])
def test_a_push_that_breaks_off_is_gone_on_with(folder, hub, fault):
    for index in range(4):
        (folder / "figures" / f"{index}.png").write_bytes(bytes([index]) * 200_000)
    hub.fault = fail_on_third_upload(fault)
    with pytest.raises(PushFailed, match="Error while uploading '.*Everything is safe in ") as raised:
        push_folder(folder, "ana/town", private=True)
    assert not raised.value.refused and str(raised.value).count("\n") == 0
    assert TOKEN not in str(raised.value)
    assert hub.files("ana/town") == {}  # nobody sees half a model
    sent = set(hub.blobs)
    assert len(sent) >= 2
    hub.fault, hub.requests[:] = lambda method, path: None, []
    push.main(again(str(raised.value)))
    assert set(hub.files("ana/town")) == PUBLISHED | {f"figures/{index}.png" for index in range(4)}
    assert not any(f"PUT /storage/{oid}" in hub.requests for oid in sent)


def test_a_short_failure_is_tried_again_and_a_slow_hub_waited_for(folder, hub):
    failures = iter([503, "cut", 0.3, 0.3])
    hub.fault = lambda method, path: next(failures, None) if method == "PUT" else None
    push_folder(folder, "ana/town", private=True)
    assert set(hub.files("ana/town")) == PUBLISHED
    assert next(failures, None) is None


@pytest.mark.parametrize(
    "token, repo, message",
    [
        ("hf_wrongtokenofana", "ana/town", r"401.*Log in \(hf auth login, or HF_TOKEN\) with a token that may write"),
        ("hf_broken\ntoken", "ana/town", "Everything is safe"),
        (TOKEN, "stranger/town", "403.*You don't have the rights to write to stranger/town.*Log in"),
        (TOKEN, "a/b/c", "Repo id must"),
    ],
)
def test_a_refused_push_names_the_way_out_and_never_the_token(folder, hub, monkeypatch, token, repo, message, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_anothersecret")
    with pytest.raises(PushFailed, match=message) as raised:
        push_folder(folder, repo, private=False, token=token, revision="v2")
    told = str(raised.value) + caplog.text
    assert not re.search(r"hf_(?!TOKEN)\w", told) and "secret" not in told and "token-of" not in told
    assert again(str(raised.value)) == [str(folder), repo, "--public", "--revision", "v2"]
    assert hub.repositories == {}


def test_tokens_are_cut_out_of_whatever_a_client_says(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "odd-secret\n")
    told = without_token(r"Illegal header value b'Bearer odd-secret\n', not hf_abcdefghijkl or given", "given")
    assert told == "Illegal header value b'Bearer (token)', not (token) or (token)"


def test_push_without_network(folder, monkeypatch):
    with pytest.raises(PushFailed, match="(?i)offline mode is enabled.*Without HF_HUB_OFFLINE, push again:") as raised:
        push_folder(folder, "ana/town", private=True)
    assert not raised.value.refused


def test_the_command(folder, hub, capsys):
    push.main([str(folder), "ana/town", "--json", "--quiet"])
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts == {"folder": str(folder), "url": f"{hub.endpoint}/ana/town", "revision": "main"}
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="holds no model"):
        push.main([str(folder), "ana/town"])
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: push.main(["--private", "--public", "a", "b"]), "")
    assert "not allowed with argument" in capsys.readouterr().err
