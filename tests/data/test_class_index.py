import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import center_of_mass

from deft_hf.data import class_index
from deft_hf.data.class_index import ClassIndex, frequencies
from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.sizes import ResizedDomain, halve
from deft_hf.utils.errors import UserError
from tests.data.annotations import exports

LABELS = LabelSpace(("a", "b", "c"), ids={7: 0, 8: 1, 9: 2, 0: 255})


@pytest.fixture
def folder(tmp_path):
    """Three pairs of 40 x 50, the second without any label."""
    first = np.zeros((40, 50), np.uint8)
    first[:10, :20], first[30:35, 40:44] = 7, 9
    second = np.zeros((40, 50), np.uint8)
    third = np.full((40, 50), 8, np.uint8)
    for name in ("images", "masks"):
        (tmp_path / "town" / name).mkdir(parents=True)
    for name, mask in zip("xyz", (first, second, third), strict=True):
        Image.fromarray(mask).save(tmp_path / "town" / "masks" / f"{name}.png")
        Image.new("RGB", (50, 40)).save(tmp_path / "town" / "images" / f"{name}.png")
    return tmp_path / "town"


def test_pixels_and_centroids(folder, tmp_path):
    index = ClassIndex.of(Domain.from_folder(folder, LABELS), tile=1024, cache=tmp_path / "cache")
    assert index.pixels.tolist() == [[200, 0, 20], [0, 0, 0], [0, 2000, 0]]
    assert index.centroids.tolist() == [[0, 0, 4, 9], [0, 2, 32, 41], [2, 1, 19, 24]]
    np.testing.assert_allclose(frequencies([index]), np.array([200, 2000, 20]) / 2220)


def test_tiles_are_whole_and_begin_at_the_top_left(folder, tmp_path):
    index = ClassIndex.of(Domain.from_folder(folder, LABELS), tile=20, cache=tmp_path / "cache")
    # Two by two tiles: what lies right of column 40 is in none, in which class c is.
    assert index.centroids.tolist() == [[0, 0, 4, 9], *([2, 1, y, x] for y in (9, 29) for x in (9, 29))]
    assert index.pixels[0].tolist() == [200, 0, 20]


@pytest.mark.parametrize("tile", [16, 64, 70_000])
def test_centroids_are_the_centers_of_mass(tmp_path, tile):
    """Rounded down, as in RobustNet's code; also where a tile has more rows than 16 bits can count."""
    rng = np.random.default_rng(0)
    height, width = (66_000, 3) if tile > 2**16 else (40, 70)
    mask = rng.choice([0, 7, 9], (height, width), p=[0.1, 0.1, 0.8]).astype(np.uint8)
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "x.png")
    Image.new("RGB", (width, height)).save(tmp_path / "images" / "x.png")
    expected = []
    for top in range(0, max(height // tile, 1) * tile, tile):
        for left in range(0, max(width // tile, 1) * tile, tile):
            for each, raw in ((0, 7), (2, 9)):
                inside = mask[top : top + tile, left : left + tile] == raw
                if inside.any():
                    row, column = center_of_mass(inside)
                    expected.append([0, each, top + int(row + 1e-9), left + int(column + 1e-9)])
    found = ClassIndex.of(Domain.from_folder(tmp_path, LABELS), tile, cache=tmp_path / "cache").centroids
    assert len(expected) > 1 and found.tolist() == expected


def test_a_second_start_decodes_no_mask(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = ClassIndex.of(Domain.from_folder(folder, LABELS), 20, cache=cache)

    def decoding(*args):
        raise AssertionError("a mask is decoded")

    with monkeypatch.context() as patch:
        patch.setattr(class_index, "open_row", decoding)
        again = ClassIndex.of(Domain.from_folder(folder, LABELS), 20, cache=cache)
        assert (again.pixels == first.pixels).all() and (again.centroids == first.centroids).all()
        moved = folder.rename(folder.with_name("moved"))  # what counts is what the files hold
        ClassIndex.of(Domain.from_folder(moved, LABELS), 20, cache=cache)
        with pytest.raises(AssertionError):
            ClassIndex.of(Domain.from_folder(moved, LABELS), 10, cache=cache)
        with pytest.raises(AssertionError):
            ClassIndex.of(Domain.from_folder(moved, LabelSpace(("a", "b"), ids={7: 0, 8: 1, 9: 1})), 20, cache=cache)
        Image.new("L", (50, 40), 9).save(moved / "masks" / "y.png")
        with pytest.raises(AssertionError):
            ClassIndex.of(Domain.from_folder(moved, LABELS), 20, cache=cache)
    changed = ClassIndex.of(Domain.from_folder(moved, LABELS), 20, cache=cache)
    assert changed.pixels[1].tolist() == [0, 0, 2000]
    assert sorted(path.suffix for path in cache.iterdir()) == [".npz", ".npz"] and not [*moved.glob("*.npz")]


def test_threads_change_nothing(tmp_path):
    domain = Domain.from_streets("clear", count=6, size=(48, 64))
    one, many = (ClassIndex.of(domain, 32, workers, tmp_path / str(workers)) for workers in (1, 3))
    assert (one.pixels == many.pixels).all() and (one.centroids == many.centroids).all()
    assert (one.pixels == [np.bincount(domain.load(i)[1].ravel(), minlength=7)[:7] for i in range(6)]).all()


def test_damaged_and_unwritable_caches_are_done_without(folder, tmp_path, caplog):
    cache = tmp_path / "cache"
    domain = Domain.from_folder(folder, LABELS)
    expected = ClassIndex.of(domain, cache=cache)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(0, len(whole), 29)]
    for damage in (b"", whole[:100], b"no archive", *flipped):
        kept.write_bytes(damage)
        assert (ClassIndex.of(domain, cache=cache).pixels == expected.pixels).all()
    (tmp_path / "file").touch()
    assert (ClassIndex.of(domain, cache=tmp_path / "file").pixels == expected.pixels).all()
    assert "cannot be kept" in caplog.text


def test_an_unreadable_mask_has_no_class_and_a_wrong_id_is_an_error(folder, tmp_path):
    (folder / "masks" / "x.png").write_bytes(b"none")
    index = ClassIndex.of(Domain.from_folder(folder, LABELS), 1024, cache=tmp_path / "cache")
    assert index.pixels[0].sum() == 0 and index.centroids.tolist() == [[2, 1, 19, 24]]
    Image.new("L", (50, 40), 3).save(folder / "masks" / "x.png")
    with pytest.raises(UserError, match=r"x\.png"):
        ClassIndex.of(Domain.from_folder(folder, LABELS), 1024, cache=tmp_path / "cache")


def test_drawn_masks_are_indexed_too(tmp_path):
    exports.labelme(tmp_path / "town")
    domain = Domain.from_annotations(tmp_path / "town")
    index = ClassIndex.of(domain, cache=tmp_path / "cache")
    expected = [np.bincount(domain.load(i)[1].ravel(), minlength=len(domain.labels.names)) for i in range(len(domain))]
    assert len(expected) > 0 and (index.pixels == expected).all()


def test_changed_pairs_are_indexed_as_they_are_loaded(tmp_path):
    whole, cache = Domain.from_streets("clear", count=2, size=(48, 64)), tmp_path / "cache"
    for domain in (whole, ResizedDomain(whole, halve), corrupted(whole, "fog"), whole.select([])):
        index = ClassIndex.of(domain, 1024, cache=cache)
        masks = [domain.load(position)[1] for position in range(len(domain))]
        assert index.pixels.tolist() == [np.bincount(mask.ravel(), minlength=7)[:7].tolist() for mask in masks]
        assert not masks or (index.centroids[:, 2:] < masks[0].shape).all()
    assert len([*cache.iterdir()]) == 4


def all_sevens(row, name):
    return Image.new("L", (50, 40), 7), name


def test_a_reader_of_masks_counts(folder, tmp_path):
    plain = Domain.from_folder(folder, LABELS)
    read = Domain("town", LABELS, plain.dataset, mask_reader=all_sevens)
    first, second = (ClassIndex.of(domain, cache=tmp_path / "cache") for domain in (plain, read))
    assert first.pixels[2].tolist() == [0, 2000, 0] and (second.pixels == [2000, 0, 0]).all()
