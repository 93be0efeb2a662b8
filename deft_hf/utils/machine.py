"""What the machine has that a run is planned by: cores, memory, room on the disk."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What one process of a run has.

    Args:
        device (`str`, *optional*, defaults to `"cpu"`):
            `cuda`, `mps`, `cpu` or another type of torch's devices.
        cores (`int`, *optional*, defaults to `1`):
            CPU cores for each process.
        memory (`int`, *optional*, defaults to `8589934592`):
            Bytes of memory for each process: of its GPU, or its share of the machine's.
        processes (`int`, *optional*, defaults to `1`):
            How many processes train together, on all machines.
        bf16 (`bool`, *optional*, defaults to `False`):
            Whether the device computes in bfloat16 by itself.
        forks (`bool`, *optional*, defaults to `True`):
            Whether new processes are forked, which takes no time, as on Linux; on Windows and macOS each starts anew.
    """

    device: str = "cpu"
    cores: int = 1
    memory: int = 8 << 30
    processes: int = 1
    bf16: bool = False
    forks: bool = True


def this_machine(use_cpu: bool = False) -> Machine:
    """The machine that this process runs on, as a launcher has shared it out.

    Args:
        use_cpu (`bool`, *optional*, defaults to `False`):
            Train on the CPU even where there is an accelerator.
    """
    import torch

    local = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
    found = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    device = "cpu" if found is None else found.type
    return Machine(
        device=device,
        cores=max(_cores() // local, 1),
        memory=torch.cuda.get_device_properties(0).total_memory if device == "cuda" else memory() // local,
        processes=max(int(os.environ.get("WORLD_SIZE", 1)), 1),
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        forks=multiprocessing.get_start_method(allow_none=True) in (None, "fork")
        and multiprocessing.get_all_start_methods()[0] != "spawn",
    )


def _cores() -> int:
    """The cores that this process may use, which a scheduler or a container may have cut down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of the machine's memory, or of the container's if that has less; 8 GiB where nothing says."""
    found = [8 << 30]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return min(found)


def peak_memory() -> int | None:
    """Peak memory of this process in bytes: on the CUDA device where there is one; `None` where it is not known."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    # Linux lets a new process start from its parent's `ru_maxrss`.
    if status.is_file() and (own := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(own[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def free_space(folder: Path) -> int:
    """Free bytes where `folder` is, or will be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def in_units(size: float) -> str:
    """`3.2 GB` of a number of bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):,.1f} MB"
