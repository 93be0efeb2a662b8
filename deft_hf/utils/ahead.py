"""Work that is done ahead of whoever needs what comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def done_ahead(
    work: Callable[[Item], Found],
    items: Iterable[Item],
    size: Callable[[Item], int],
    workers: int,
    most: int,
) -> Generator[Found, None, None]:
    """What `work` makes of each item, in order; that of the next ones is made in threads meanwhile.

    Args:
        work (`Callable[[Item], Found]`):
            Called in a thread. What it raises is raised where its result would come.
        items (`Iterable[Item]`):
            What to work on.
        size (`Callable[[Item], int]`):
            How large the result of an item will be.
        workers (`int`):
            Threads, and results that wait at most.
        most (`int`):
            How large the results that wait may be together; a larger one is made when those before it are taken.
    """
    waiting: deque[tuple[int, Future[Found]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            larger = size(item)
            while waiting and (len(waiting) >= workers or sum(each for each, _ in waiting) + larger > most):
                yield waiting.popleft()[1].result()
            waiting.append((larger, pool.submit(work, item)))
        while waiting:
            yield waiting.popleft()[1].result()
