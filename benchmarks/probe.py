"""Measurements in a process of their own: ``python -m benchmarks.probe NAME {arguments}``."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, process_time
from types import MappingProxyType
from typing import Any

import numpy as np

import zarrpipe as zp
from benchmarks.data import SETS, Sizes, sizes
from zarrpipe.training.loader import GraphLoader


def ask(name: str, **arguments: Any) -> dict[str, float]:
    """What a probe finds in a fresh process."""
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.probe", name, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        raise RuntimeError(f"the probe {name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(store: str, epochs: int, batch_size: int) -> dict[str, float]:
    """MB that the process has grown by over `epochs` epochs that follow a first one."""
    module = zp.ZarrDataModule(store, batch_size=batch_size)
    module.setup("fit")
    loader = module.train_dataloader()
    before = (0.0, 0.0)
    for epoch in range(epochs + 1):
        for batch in loader:
            batch.num_nodes  # noqa: B018  a loop that looks at its batch
        if epoch == 0:
            before = _memory()
    after = _memory()
    return {"resident": after[0] - before[0], "private": after[1] - before[1]}


def workers(store: str, count: int, batch_size: int) -> dict[str, float]:
    """Private MB of all processes of a loader with `count` workers, after an epoch."""
    import psutil  # noqa: PLC0415  this probe alone needs it

    dataset = zp.ZarrDataset(store)
    loader = GraphLoader(dataset, zp.GraphBatchSampler(dataset, batch_size), num_workers=count)
    for batch in loader:
        batch.num_nodes  # noqa: B018  a loop that looks at its batch
    children = psutil.Process().children(recursive=True)
    private = sum(_own(child.pid) for child in children)
    loader.close()
    return {"private": private, "processes": len(children)}


def plan(store: str, batch_size: int, ranks: int) -> dict[str, float]:
    """Opening a dataset and planning one rank's epoch with the sampler."""
    start = perf_counter()
    dataset = zp.ZarrDataset(store)
    count = len(dataset)
    opened = perf_counter()
    sampler = zp.GraphBatchSampler(dataset, batch_size, rank=ranks - 1, world_size=ranks)
    taken = sum(len(batch) for batch in sampler)
    planned = perf_counter()
    return {
        "open": opened - start,
        "plan": planned - opened,
        "share": taken / count,
        **_peak(),
    }


def module(store: str, batch_size: int) -> dict[str, float]:
    """Opening, splitting by id and planning with the data module."""
    make = zp.ZarrDataModule  # which imports Lightning
    start = perf_counter()
    data = make(store, batch_size=batch_size)
    data.setup("fit")
    loader = data.train_dataloader()
    taken = loader.sampler.start().batches(0)
    next(taken)
    return {"seconds": perf_counter() - start, **_peak()}


def refresh(store: str, capacity: int) -> dict[str, float]:
    """Seeing what an append has brought, and the append."""
    dataset = zp.ZarrDataset(store)
    batch = dataset.__getitems__([0] * 32)
    start = perf_counter()
    with zp.ZarrData(store, capacity=capacity) as sink:
        sink.write(batch)
        written = perf_counter()
        new = dataset.refresh()
        seen = perf_counter()
    return {"write": written - start, "refresh": seen - written, "new": new, **_peak()}


def epoch(count: int, seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Making a sampler of structures and planning its first epoch; MB beyond what the data are."""
    kind, rng = SETS["structures"], np.random.default_rng(seed)
    fields = {
        "weight": rng.random(count, dtype=np.float32),
        "round": rng.integers(0, 3, count),
    }
    stores = (np.arange(count) // 1000) % 2  # they grew in turns
    data = Sizes(sizes(kind, count, seed), fields, stores)
    before = _memory()[0]
    start, spent = perf_counter(), process_time()
    sampler = zp.GraphBatchSampler(data, **settings, rank=0, world_size=1)
    length = len(sampler.start())
    seconds = perf_counter() - start
    spent = process_time() - spent
    return {"seconds": seconds, "spent": spent, "extra": _peak()["peak"] - before, "steps": length}


PROBES: Mapping[str, Callable[..., dict[str, float]]] = MappingProxyType(
    {probe.__name__: probe for probe in (growth, workers, plan, module, refresh, epoch)}
)


def _memory() -> tuple[float, float]:
    """Resident MB of this process, and those of its own."""
    import psutil  # noqa: PLC0415  only where memory is asked for

    return psutil.Process().memory_info().rss / 2**20, _own(os.getpid())


def _own(process: int) -> float:
    """MB that a process has written and shares with no other; pages of the store do not count."""
    rollup = Path(f"/proc/{process}/smaps_rollup")
    if rollup.exists():
        return _field(rollup, "Private_Dirty")
    import psutil  # noqa: PLC0415  only where memory is asked for

    return float(psutil.Process(process).memory_full_info().uss / 2**20)


def _field(path: Path, name: str) -> float:
    """MB that a line of a file of /proc says."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) / 2**10 for words in lines if words[0] == f"{name}:")


def _peak() -> dict[str, float]:
    """Most resident MB so far, and private MB now."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had when it started this process
        most = _field(status, "VmHWM")
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"peak": most, "private": _memory()[1]}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
