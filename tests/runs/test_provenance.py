import os
import subprocess

import pytest

from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.runs.provenance import data_lists, git_state, list_hash


def git(folder, *arguments):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_told_and_whether_something_differs(tmp_path):
    assert git_state(tmp_path) is None
    try:
        git(tmp_path, "init")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "file.py").write_text("1")
    (tmp_path / "other.txt").write_text("1")
    assert git_state(tmp_path / "code") is None, "nothing of it is tracked"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path / "code")
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "other.txt").write_text("2")
    assert git_state(tmp_path / "code")["dirty"] is False, "outside of it"
    (tmp_path / "code" / "file.py").write_text("2")
    assert git_state(tmp_path / "code") == {**clean, "dirty": True}


def test_without_git_there_is_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(os.path.dirname(__file__)) is None


def test_a_list_of_data_has_a_hash_of_its_ids_their_order_and_the_sizes_of_the_files():
    domain = Domain.from_streets("clear", count=3, size=(16, 16))
    first = list_hash(domain)
    assert list_hash(Domain.from_streets("clear", count=3, size=(16, 16))) == first
    others = [
        domain.select([0, 1]),
        domain.select([1, 0, 2]),
        Domain.from_streets("clear", count=3, size=(16, 24)),
        corrupted(domain, "fog", 2),
        corrupted(domain, "fog", 3),
        corrupted(domain, "snow", 2),
    ]
    assert len({first, *map(list_hash, others)}) == 7
    assert data_lists(source=[domain], unseen=[]) == {
        "source": [{"name": "clear", "images": 3, "sha256": first}],
        "unseen": [],
    }


def test_the_size_of_a_file_counts(tmp_path):
    domain = Domain.from_streets("clear", count=2, size=(16, 16))
    for kind in ("image", "mask"):
        (tmp_path / f"{kind}s").mkdir()
        for row in domain.dataset:
            (tmp_path / f"{kind}s" / f"{row['id']}.png").write_bytes(row[kind]["bytes"])
    found = Domain.from_folder(tmp_path, domain.labels)
    first = list_hash(found)
    assert first == list_hash(domain), "wherever the same pairs lie"
    path = next((tmp_path / "masks").iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    second = list_hash(found)
    path.unlink()
    assert len({first, second, list_hash(found)}) == 3
