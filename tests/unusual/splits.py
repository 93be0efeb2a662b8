"""Splits and folders: what split.json may hold, ids that escape the folder, files without a partner."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace

Given = object | Callable[[Path], object]
E_COMPOSED, E_APART = "\u00e9", unicodedata.normalize("NFD", "\u00e9")


def outcome(given: Given, place: Path) -> list[str]:
    """Ids of the split `train` of `town`, whose split.json is this text or value, or was changed."""
    town = place / "town"
    if callable(given):
        given(town)
    elif isinstance(given, bytes):
        (town / "split.json").write_bytes(given)
    else:
        (town / "split.json").write_text(json.dumps(given))
    domain = Domain.from_folder(town, LabelSpace(("wall", "door")), split="train")
    domain.check().raise_if_bad()
    return domain.ids


def renamed(old: str, new: str, listed: list[str]) -> Callable[[Path], object]:
    """Image and mask under another name; split.json lists these ids."""

    def change(town: Path) -> None:
        for kind in ("images", "masks"):
            target = town / kind / new
            target.parent.mkdir(parents=True, exist_ok=True)
            (town / kind / old).rename(target)
        (town / "split.json").write_text(json.dumps({"train": listed}))

    return change


def removed(name: str, listed: list[str] | None = None) -> Callable[[Path], object]:
    def change(town: Path) -> None:
        (town / name).unlink()
        if listed is not None:
            (town / "split.json").write_text(json.dumps({"train": listed}))

    return change


def linked_outside(town: Path) -> None:
    (town / "images" / "more").symlink_to("../../coast/images")
    (town / "split.json").write_text(json.dumps({"train": ["more/0"]}))


def both_linked(town: Path) -> None:
    linked_outside(town)
    (town / "masks" / "more").symlink_to("../../coast/masks")


def escaped(*ids: object) -> dict:
    return {"train": ["0", *ids]}


RIGHT = {
    "one-id": ({"train": ["1"]}, ["1"]),
    "order-of-the-list": ({"train": ["2", "0"]}, ["2", "0"]),
    "other-splits-do-not-matter": ({"train": ["0"], "val": "?", "note": 7}, ["0"]),
    "white-space": (b'\n\t{"train"\n:[ "0" ]}\n\n', ["0"]),
    "escaped-text": (b'{"tr\\u0061in": ["\\u0030"]}', ["0"]),
    "folders-below": (renamed("0.png", "a/b/0.png", ["a/b/0"]), ["a/b/0"]),
    "composed-and-apart": (renamed("0.png", f"{E_APART}.png", [E_COMPOSED]), [E_COMPOSED]),
    "apart-and-composed": (renamed("0.png", f"{E_COMPOSED}.png", [E_APART]), [E_COMPOSED]),
    "several-dots": (renamed("0.png", "a.b.c.png", ["a.b.c"]), ["a.b.c"]),
    "capitals": (renamed("0.png", "A.PNG", ["A"]), ["A"]),
    "markup": (renamed("0.png", "<b>&.png", ["<b>&"]), ["<b>&"]),
    "a-percent-sign": (renamed("0.png", "%2e%2e.png", ["%2e%2e"]), ["%2e%2e"]),
    "a-dollar-sign": (renamed("0.png", "$HOME ~.png", ["$HOME ~"]), ["$HOME ~"]),
    "a-line-break": (renamed("0.png", "a\nb.png", ["a\nb"]), ["a\nb"]),
    "a-link-out-of-both": (both_linked, ["more/0"]),
    "an-image-without-mask": (removed("masks/2.png", ["0", "1"]), ["0", "1"]),
    "a-mask-without-image": (removed("images/2.png", ["0", "1"]), ["0", "1"]),
    "hidden-files": (lambda town: (town / "images" / ".0.png").write_bytes(b""), ["0", "1"]),
    "files-of-other-types": (lambda town: (town / "images" / "Thumbs.db").write_bytes(b""), ["0", "1"]),
}
REFUSED = {
    "empty": (b"", "split.json: is no valid JSON"),
    "torn": (b'{"train": ["0"', "split.json: is no valid JSON"),
    "utf-16": ('{"train": ["0"]}'.encode("utf-16"), "split.json: is no valid JSON"),
    "yaml": (b"train: ['0']\n", "split.json: is no valid JSON"),
    "comment": (b'{"train": ["0"]} // all', "split.json: is no valid JSON"),
    "single-quotes": (b"{'train': ['0']}", "split.json: is no valid JSON"),
    "comma-at-the-end": (b'{"train": ["0",]}', "split.json: is no valid JSON"),
    "deep": (b"[" * 200_000, "split.json: is no valid JSON"),
    "digits-without-end": (b'{"train": ' + b"9" * 5000 + b"}", "split.json: is no valid JSON"),
    "pickle": (b"cos\nsystem\n(S'touch ran'\ntR.", "split.json: is no valid JSON"),
    "a-list": (["0", "1"], "has no split 'train'; found list"),
    "a-number": (7, "has no split 'train'; found int"),
    "null": (None, "has no split 'train'; found NoneType"),
    "another-split": ({"val": ["0"]}, "has no split 'train'; found val"),
    "in-capitals": ({"Train": ["0"]}, "has no split 'train'; found Train"),
    "twice": (b'{"train": ["0"], "train": ["1"]}', "split.json: is no valid JSON ('train' is there twice; keep one)"),
    "no-ids": ({"train": []}, "is empty or lists an id more than once"),
    "an-id-twice": ({"train": ["0", "0"]}, "more than once"),
    "an-id-twice-composed-and-apart": ({"train": [E_COMPOSED, E_APART]}, "more than once"),
    "a-text": ({"train": "01"}, "expected a list of ids"),
    "numbers": ({"train": [0, 1]}, "expected a list of ids"),
    "null-among-ids": (escaped(None), "expected a list of ids"),
    "lists-of-ids": ({"train": [["0"], ["1"]]}, "expected a list of ids"),
    "a-mapping": ({"train": {"0": 1}}, "expected a list of ids"),
    "not-a-number": (b'{"train": NaN}', "expected a list of ids"),
    "with-suffix": ({"train": ["0.png"]}, "are no pairs: 0.png"),
    "missing": (escaped("9"), "1 of the 2 ids of 'train' are no pairs: 9"),
    "many-missing": (escaped(*"abcdefgh"), "and 3 more"),
    "an-empty-id": (escaped(""), "are no pairs"),
    "in-another-folder": (escaped("../coast/images/0"), "are no pairs: ../coast/images/0"),
    "the-same-by-another-path": (escaped("./1"), "are no pairs: ./1"),
    "absolute": (escaped("/etc/passwd"), "are no pairs: /etc/passwd"),
    "far-up": (escaped("../" * 9 + "escaped"), "are no pairs: ../../"),
    "of-windows": (escaped("..\\1"), "are no pairs"),
    "of-nul": (escaped("1\0"), "are no pairs"),
    "a-pattern": (escaped("*"), "are no pairs: *"),
    "a-surrogate": (b'{"train": ["\\ud800"]}', "are no pairs"),
    "image-gone": (removed("images/1.png"), "are no pairs: 1"),
    "mask-gone": (removed("masks/1.png"), "are no pairs: 1"),
    "images-linked-masks-not": (linked_outside, "are no pairs: more/0"),
    "a-loop-of-links": (lambda town: (town / "images" / "loop").symlink_to(".."), "links to a folder that it lies in"),
    "file-gone": (removed("split.json"), "split.json: no such file"),
    "a-folder": (
        lambda town: (removed("split.json")(town), (town / "split.json").mkdir()),
        "split.json: no such file",
    ),
    "no-pair-at-all": (
        lambda town: [path.rename(path.with_name(f"m{path.name}")) for path in (town / "masks").iterdir()],
        "no image of images has a mask in masks",
    ),
    "no-image-at-all": (lambda town: [path.unlink() for path in (town / "images").iterdir()], "holds no file"),
    "names-without-utf-8": (
        lambda town: (town / "images" / "\udcff.png").write_bytes(b""),
        "the name is not valid UTF-8",
    ),
    "empty-suffix": (lambda town: (town / "images" / "0.bmp").write_bytes(b""), "has the same id (0)"),
}
