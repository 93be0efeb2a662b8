"""Shares of a domain: complementary, nested, and never with look-alikes on both sides."""

import pytest

from deft_hf.data.splitting import look_alikes, take_share
from deft_hf.utils.errors import UserError

SEQUENCES = [f"seq{sequence:02}_{frame:04}" for sequence in range(1, 9) for frame in range(1, 11)]
SUBFOLDERS = [f"drive{drive}/{frame}" for drive in range(6) for frame in (1, 2, 10, 11)]
TILES = [f"field{picture}_x{256 * x}_y{256 * y}" for picture in range(7) for x in range(3) for y in range(2)]
COPIES = [f"IMG-{'abcdefgh'[photo]}_jpg.rf.{copy * 7919:032x}" for photo in range(8) for copy in range(1, 4)]
PHOTOS = [f"{number * 2654435761 % 2**64:016x}-{letter}" for number, letter in enumerate("abcdefghijklmnopqrst")]
SHARES = (0.05, 0.1, 0.2, 0.25, 0.5, 0.8)


@pytest.mark.parametrize("ids", [SEQUENCES, SUBFOLDERS, TILES, COPIES, PHOTOS, SEQUENCES[:10], ["a", "b"]])
def test_two_parts_are_all_of_it_and_grow_with_their_share(ids):
    before = set()
    for share in SHARES:
        held_out, rest = take_share(ids, -share), take_share(ids, 1 - share)
        assert held_out and rest and sorted(held_out + rest) == sorted(ids)
        assert before <= set(held_out)
        assert held_out == take_share(reversed(ids), -share)
        before = set(held_out)


@pytest.mark.parametrize("ids, count", [(SEQUENCES, 8), (SUBFOLDERS, 6), (TILES, 7), (COPIES, 8)])
def test_look_alikes_are_on_one_side(ids, count):
    groups = look_alikes(ids)
    assert len(groups) == count
    for share in SHARES:
        held_out = set(take_share(ids, -share))
        assert all(len(held_out & set(group)) in (0, len(group)) for group in groups.values())
    assert len(take_share(ids, -0.2)) == pytest.approx(0.2 * len(ids), abs=0.13 * len(ids))


def test_names_that_say_nothing_are_drawn_one_by_one_and_new_ones_leave_them_where_they_are():
    held_out = take_share(PHOTOS, -0.2)
    assert len(held_out) == 4 and held_out != PHOTOS[-4:]
    kept = set(held_out) & set(take_share([*PHOTOS, "new-one"], -0.2))
    assert len(kept) >= 3


def test_one_sequence_is_cut_once():
    frames = [f"frame_{number}" for number in range(1, 21)]
    assert take_share(frames, -0.2) == frames[-4:]
    assert take_share(frames, 0.8) == frames[:16]
    assert take_share([f"photo ({number})" for number in range(1, 11)], -0.2) == ["photo (9)", "photo (10)"]


def test_each_of_a_few_sequences_is_cut_once():
    two = [f"{place}_{frame}_left" for place in ("north", "south") for frame in range(10)]
    assert take_share(two, -0.2) == ["north_8_left", "north_9_left", "south_8_left", "south_9_left"]


def test_one_picture_is_cut_between_two_rows_of_its_tiles():
    tiles = [f"orthophoto_{row}_{column}" for row in range(7) for column in range(9)]
    assert take_share(tiles, -0.2) == [tile for tile in tiles if tile.startswith("orthophoto_6_")]


@pytest.mark.parametrize("share", [0, 1, -1, 1.5])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(UserError, match="above 0 and below 1"):
        take_share(PHOTOS, share)


def test_one_pair_cannot_be_split():
    with pytest.raises(UserError, match="found 1 pair to split by a share of 0.2"):
        take_share(["a"], -0.2)


def test_a_long_sequence_among_small_groups_is_cut_and_they_are_not():
    ids = [f"road_{frame:04}" for frame in range(30)] + [
        f"{place}_{frame}" for place in "abcdefghij" for frame in (1, 2)
    ]
    held_out = take_share(ids, -0.2)
    assert sum(key.startswith("road_") for key in held_out) == 6 and len(held_out) == 10
    assert all(f"{place}_1" in held_out for place in "abcdefghij" if f"{place}_2" in held_out)
