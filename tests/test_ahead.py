"""Work ahead: its order, its bounds, its errors."""

import threading
import time

import pytest

from deft_hf.utils.ahead import done_ahead


@pytest.mark.parametrize("sizes", [[1] * 9, [1, 1, 9, 1, 9, 9, 1], [0] * 5, []])
def test_results_come_in_order_and_wait_in_bounds(sizes):
    waiting, most, lock = [0, 0], [0, 0], threading.Lock()

    def change(sign, size):
        with lock:
            waiting[:] = waiting[0] + sign, waiting[1] + sign * size
            most[:] = map(max, most, waiting)

    def work(index):
        change(1, sizes[index])
        time.sleep(0.001 * (index % 3))  # later ones are done before earlier ones
        return index

    found = []
    for index in done_ahead(work, range(len(sizes)), sizes.__getitem__, workers=3, most=4):
        change(-1, sizes[index])
        found.append(index)
    assert found == list(range(len(sizes)))
    assert most[0] <= 3 and most[1] <= max([4, *sizes])


def test_an_error_comes_where_the_result_would():
    ahead = done_ahead(lambda item: 1 // item, [1, 0, 1], lambda _: 1, workers=2, most=9)
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)
