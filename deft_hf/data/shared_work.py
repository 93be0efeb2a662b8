"""A look at many files, by the threads of one process or of all processes that a launcher started.

Recipes are read without torch, which Accelerate imports: it is imported where processes talk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import TypeVar

from tqdm.auto import tqdm

Found = TypeVar("Found")
# How many files a process looks at before it tells the others, which so never wait for long.
_ROUND = 32
_NOTHING = object()


def looked_at(
    look: Callable[[int], Found], count: int, description: str, progress: bool = False, shared: bool = False
) -> Generator[Found, None, None]:
    """What `look` finds at the positions from 0 to `count`, in order.

    Threads, since decoders work outside of Python's lock.

    Args:
        look (`Callable[[int], Any]`):
            Called with a position. What it returns has to be pickled where it is shared.
        count (`int`):
            How many positions there are.
        description (`str`):
            What the progress bar says.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
        shared (`bool`, *optional*, defaults to `False`):
            Whether every process of a launcher calls it, those of one machine on the same files. Each looks at its
            share, and all are told everything. They speak to each other after every few files, so that none waits
            longer than `ddp_timeout` for the others.
    """
    with tqdm(desc=description, total=count, disable=not progress) as bar:
        ranks = _processes_here() if shared else 1
        with ThreadPoolExecutor(max((os.cpu_count() or 1) // ranks, 1)) as pool:
            if not shared:
                for found in pool.map(look, range(count)):
                    bar.update()
                    yield found
                return
            from accelerate import PartialState
            from accelerate.utils import gather_object

            state = PartialState()
            first, rank = state.process_index - state.local_process_index, state.local_process_index
            mine = range(rank, count, ranks)
            for start in range(0, max(gather_object([len(mine)])), _ROUND):
                told = gather_object([list(pool.map(look, mine[start : start + _ROUND]))])
                for step in zip_longest(*told[first : first + ranks], fillvalue=_NOTHING):
                    for found in step:
                        if found is not _NOTHING:
                            bar.update()
                            yield found


def anywhere(positions: Iterable[int], shared: bool) -> list[int]:
    """Positions, in order, that are given here or, where work is `shared`, in any other process.

    Args:
        positions (`Iterable[int]`):
            Those given here.
        shared (`bool`):
            As for [`looked_at`].
    """
    if not shared:
        return sorted(positions)
    from accelerate.utils import gather_object

    return sorted(set().union(*gather_object([[*positions]])))


def _processes_here() -> int:
    """Processes of this machine, which have the ranks from that of the first one on."""
    from accelerate import PartialState

    state = PartialState()
    return int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)) if state.num_processes > 1 else 1
