import os
import subprocess

import pytest

from deft_hf.data.contents import digest
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


def test_a_list_of_data_has_a_hash_of_its_ids_their_order_and_what_the_files_hold():
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
        "source": [{"name": "clear", "images": 3, "contents": first}],
        "unseen": [],
    }


def test_every_byte_of_a_file_counts(tmp_path):
    domain = Domain.from_streets("clear", count=2, size=(16, 16))
    for kind in ("image", "mask"):
        (tmp_path / f"{kind}s").mkdir()
        for row in domain.dataset:
            (tmp_path / f"{kind}s" / f"{row['id']}.png").write_bytes(row[kind]["bytes"])

    def found():
        return list_hash(Domain.from_folder(tmp_path, domain.labels))

    first = found()
    assert first == list_hash(domain), "wherever the same pairs lie"
    path = next((tmp_path / "masks").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert len(path.read_bytes()) == len(content)
    second = found()
    path.unlink()
    assert len({first, second, found()}) == 3


def test_a_check_has_the_digests_and_reads_no_file_again(tmp_path, monkeypatch):
    domain = Domain.from_streets("clear", count=2, size=(16, 16))
    alone = Domain.from_streets("clear", count=2, size=(16, 16)).contents
    domain.check()
    monkeypatch.setattr("deft_hf.data.domains.digests", lambda row: pytest.fail("read again"))
    assert domain.contents == alone and len(set(map(len, alone[0]))) == 2


def test_what_cannot_be_read_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for stored in (None, *({"bytes": None, "path": str(tmp_path / name)} for name in ("pipe", "gone", "."))):
        assert digest(stored) == ""
    assert digest({"bytes": b"a", "path": None}) != digest({"bytes": b"b", "path": None})
    (tmp_path / "file").write_bytes(b"a")
    assert digest({"bytes": None, "path": str(tmp_path / "file")}) == digest({"bytes": b"a", "path": None})
