"""Facts about the machine and the libraries, and the core that everything runs on."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "zarrpipe",
    "zarr",
    "numpy",
    "torch",
    "numba",
    "lightning",
    "mace-torch",
    "atompack-db",
    "h5py",
    "lmdb",
    "ase",
    "torch_geometric",
    "nvalchemi-toolkit",
)


def facts() -> dict[str, Any]:
    """CPU, cores, memory, versions, date and commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """Commit of the checkout, with "+" where it has changes; "" outside of one."""
    here = Path(__file__).parent
    commands = (
        ["git", "rev-parse", "--short", "HEAD"],
        ["git", "status", "--porcelain", "--untracked-files=no", "--", "../zarrpipe"],
    )
    try:
        commit, changes = (
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.strip() + ("+" if changes.strip() else "")


@contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """Run on these cores only, with one torch thread; None leaves that as it is."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def every_core() -> set[int]:
    """Numbers of all cores."""
    return set(range(os.cpu_count() or 1))
