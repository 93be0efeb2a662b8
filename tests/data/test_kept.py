import json
import os

import numpy as np
import pytest
from PIL import Image

from deft_hf.data import contents, domains, kept
from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace

LABELS = LabelSpace(("wall", "door"))


@pytest.fixture
def town(tmp_path, monkeypatch):
    """Two pairs that were written long enough ago, and an empty cache."""
    monkeypatch.setattr(kept, "_SETTLED", 0)
    monkeypatch.setattr(kept.constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    for kind in ("images", "masks"):
        (tmp_path / "town" / kind).mkdir(parents=True)
        for index, key in enumerate("ab"):
            Image.fromarray(np.full((6, 8), index, np.uint8)).save(tmp_path / "town" / kind / f"{key}.png")
    return tmp_path / "town"


def checked(folder, labels=LABELS, **options):
    report = Domain.from_folder(folder, labels, **options).check(cached=True)
    return str(report), report.contents


@pytest.fixture
def unread(monkeypatch):
    def reading(*args, **options):
        raise AssertionError("a file is read")

    def forbid():
        monkeypatch.setattr(domains, "inspected", reading)
        monkeypatch.setattr(contents, "open", reading, raising=False)

    return forbid


def test_a_second_check_reads_no_file(town, unread):
    first = checked(town)
    unread()
    assert checked(town) == first
    domain = Domain.from_folder(town, LABELS)
    assert domain.contents == first[1] and "door" in first[0]
    assert corrupted(domain, "fog", 1).check(cached=True).checked == 2
    with pytest.raises(AssertionError):
        checked(town, LabelSpace(("wall", "window", "door")))
    with pytest.raises(AssertionError):
        checked(town, value_range=(0, 100))
    with pytest.raises(AssertionError):
        Domain.from_folder(town, LABELS).check()


@pytest.mark.parametrize("damage", ["[]", "{}", "null", "[1]", '[["a", 1], [6, 8], [[999], [48]], 0, 0, null]', "7"])
def test_what_is_damaged_in_the_cache_is_looked_at_again(town, unread, damage):
    first = checked(town)
    (file,) = (kept.path_of("pairs", "x").parent).glob("*.json")
    entries = json.loads(file.read_text())
    broken, _ = entries
    file.write_text(json.dumps(entries | {broken: json.loads(damage)}))
    assert checked(town) == first
    assert json.loads(file.read_text()) == entries
    unread()
    assert checked(town) == first


@pytest.mark.parametrize("how", ["other pixels", "other time", "replaced with its old time"])
def test_a_touched_file_is_read_again(town, unread, how):
    checked(town)
    mask = town / "masks" / "b.png"
    times = mask.stat().st_atime_ns, mask.stat().st_mtime_ns
    if how == "other time":
        os.utime(mask)
    else:
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(mask)
    if how == "replaced with its old time":
        os.utime(mask, ns=times)
    report = Domain.from_folder(town, LABELS).check(cached=True)
    assert report.pixels[:2].tolist() == ([48, 48] if how == "other time" else [96, 0])
    unread()
    checked(town)


def test_only_what_was_touched_is_opened(town, monkeypatch):
    """One mask is mended in a domain where another pair is as wrong as before."""
    for key, size in (("c", (6, 8)), ("d", (3, 3))):
        Image.fromarray(np.zeros(size, np.uint8)).save(town / "images" / f"{key}.png")
        Image.fromarray(np.full((6, 8), 7 * (key == "c"), np.uint8)).save(town / "masks" / f"{key}.png")
    opened = []

    def look(row, *given):
        opened.append(row["id"])
        return inspected(row, *given)

    inspected = domains.inspected
    monkeypatch.setattr(domains, "inspected", look)
    first = Domain.from_folder(town, LABELS).check(cached=True)
    assert sorted(opened) == [*"abcd"] and len(first.outside) == len(first.unequal) == 1
    opened.clear()
    Image.fromarray(np.ones((6, 8), np.uint8)).save(town / "masks" / "c.png")
    second = Domain.from_folder(town, LABELS).check(cached=True)
    assert sorted(opened) == [*"cd"]
    anew = Domain.from_folder(town, LABELS).check()
    assert str(second) == str(anew) and not second.outside and second.unequal == first.unequal
    assert second.contents == anew.contents and second.pixels.tolist() == anew.pixels.tolist()


def test_what_is_wrong_or_new_is_looked_at_again(town, monkeypatch):
    (town / "images" / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        assert len(Domain.from_folder(town, LABELS).check(cached=True).unreadable) == 1
    monkeypatch.setattr(kept, "_SETTLED", 60)
    assert kept.stamp(Domain.from_folder(town, LABELS).dataset) is None


def test_damaged_caches_are_done_without(town):
    first = checked(town)
    for path in (town.parent / "cache").rglob("*.json"):
        path.write_bytes(b"{")
    assert checked(town) == first


def test_every_process_of_a_launcher_may_keep_the_same(town, monkeypatch, caplog):
    parts = []
    monkeypatch.setattr(os, "replace", lambda part, path: parts.append(part))
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        kept.write("pairs", "name", {})
    assert len({*parts}) == 2 and {part.parent for part in parts} == {kept.path_of("pairs", "name").parent}
    assert not caplog.text


def test_palettes_of_all_masks_are_compared(town):
    for key, palette in (("a", [0, 0, 0, 255, 0, 0]), ("b", [0, 0, 0, 0, 255, 0])):
        mask = Image.fromarray(np.eye(6, 8, dtype=np.uint8)).convert("P")
        mask.putpalette(palette)
        mask.save(town / "masks" / f"{key}.png")
    for _ in range(2):  # the second from what the first kept
        report = Domain.from_folder(town, LABELS).check(cached=True)
        assert len(report.outside) == 1 and "b.png: its palette" in report.outside[0]
        assert report.pixels.sum() == 48
