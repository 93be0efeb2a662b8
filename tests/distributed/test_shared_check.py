import json

from deft_hf.data import shared_work
from deft_hf.data.domains import Domain
from tests import processes


def test_processes_share_a_check_and_none_waits_too_long(tmp_path):
    processes.run_ranks(2, "tests.distributed.check_script", tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = Domain.from_streets("clear", count=5, size=(16, 16)).check()
    for each in found:
        assert each["report"] == str(alone) and each["contents"] == [list(row) for row in alone.contents]
        assert each["unreadable"] == []
    assert [each["seen"] for each in found] == [["000000", "000002", "000004"], ["000001", "000003"]]


def test_alone_it_is_a_map():
    assert [*shared_work.looked_at(lambda position: position**2, 5, "squares")] == [0, 1, 4, 9, 16]
