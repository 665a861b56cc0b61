"""Several writers at once: on one store, where one gets in, and on parts of one data set."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import FsspecStore, MemoryStore

from reliability.lives import CONFIGS
from reliability.report import Findings, Order
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe import ZarrData, ZarrDataset, check, collate, copy
from zarrpipe.errors import StoreLockedError
from zarrpipe.store.backend.location import StoreLike

_PARTS, _WRITES, _EACH = 4, 40, 25
_SECONDS = 120.0
_COPIES = 5


def run(order: Order) -> Findings:
    """Let writers meet, `order.count` times in each way."""
    found, rng = Findings(), np.random.default_rng(order.seed)
    for number in range(order.count or 1):
        for party in PARTIES:
            name = party.__name__.strip("_").replace("_", " ")
            if order.only not in name:
                continue
            work = order.work / f"{party.__name__}-{number}"
            work.mkdir()
            try:
                party(work, rng, found)
            except Exception as error:  # noqa: BLE001  it is told
                found.add("stuck", f"{name}: {type(error).__name__}: {error}")
            found.done[name] += 1
    return found


def _second_sink_on_a_path(work: Path, rng: np.random.Generator, found: Findings) -> None:
    """The second is told who has the store, and gets in once the first was killed."""
    store = work / "store"
    first = _start("write", store, "small", 0, 10_000)
    acknowledged = _read_line(first)
    second = ZarrData(store)
    text = ""
    try:
        second.write(samples(numbers_of(10**6, 3)))
    except StoreLockedError as error:
        text = str(error)
    host, year = os.uname().nodename, time.strftime("%Y-")
    if not all(part in text for part in (f"process {first.pid} on {host}", f"since {year}")):
        found.add("unclear", f"a second sink on a path was told {text!r}")
    time.sleep(float(rng.uniform(0, 0.1)))
    os.kill(first.pid, signal.SIGKILL)
    rest = first.communicate(timeout=_SECONDS)[0].split()
    acknowledged = max([acknowledged, *map(int, rest)])
    second.write(samples(numbers_of(10**6, 3)))
    second.close()
    numbers = serials(there := everything(store))
    expected = numbers_of(0, len(numbers) - 3).tolist()
    if len(expected) < acknowledged:
        found.add("lost", f"{len(expected)} of {acknowledged} samples after a sink was killed")
    if numbers[:-3] != expected or (wrong := wrong_values(there)):
        found.add("torn", f"the store of two sinks: {wrong if numbers[:-3] == expected else ''}")


def _two_sinks_without_locks(work: Path, rng: np.random.Generator, found: Findings) -> None:
    """In memory, behind fsspec: of those that write in turn one goes on, and nothing is torn."""
    for name, store in (("memory", MemoryStore()), ("fsspec", _remote(work))):
        sinks = [ZarrData(store, config=CONFIGS["small"]) for _ in range(2)]
        written: list[list[int]] = [[], []]
        refused = 0
        for turn in range(12):
            which = int(rng.integers(2))
            numbers = numbers_of(1000 * turn, 7)
            try:
                sinks[which].write(samples(numbers))
                written[which] += numbers.tolist()
            except StoreLockedError:
                refused += 1
        for sink in sinks:
            try:
                sink.close()
            except StoreLockedError:
                refused += 1
        found.done[f"refused on a store without locks ({name})"] += refused
        numbers_there = serials(there := everything(store))
        known = set(written[0]) | set(written[1])
        wrong = wrong_values(there)
        if wrong or not set(numbers_there) <= known or len(set(numbers_there)) < len(numbers_there):
            found.add("torn", f"two sinks on a {name} store: {wrong}")
        if not any(set(one) <= set(numbers_there) for one in written):
            found.add("lost", f"two sinks on a {name} store: what both of them wrote")


def _remote(work: Path) -> StoreLike:
    return FsspecStore.from_url(f"memory://{work.parent.name}-{work.name}/store")


def _four_parts(work: Path, rng: np.random.Generator, found: Findings) -> None:
    """A sink in each of four processes, one of them killed, and one data set of all of them."""
    run = work / "run"
    host, counts = _start("write_parts", run), [0] * _PARTS
    assert host.stdout is not None
    victim, alive = int(rng.integers(_PARTS)), True
    for line in host.stdout:
        part, pid, count = map(int, line.split())
        counts[part] = count
        if alive and part == victim:
            os.kill(pid, signal.SIGKILL)
            alive = False
    host.communicate(timeout=_SECONDS)
    stores = [run / f"part-{part}" for part in range(_PARTS)]
    dataset = ZarrDataset(stores)
    batch = collate(dataset.__getitems__(list(range(len(dataset)))))
    if wrong := wrong_values(batch):
        found.add("wrong", f"four parts: {wrong}")
    there = np.asarray(serials(batch))
    for part in range(_PARTS):
        mine = there[there // 10**6 == part]
        least = counts[part]
        if len(mine) < least or (part != victim and len(mine) != _WRITES * _EACH):
            found.add("lost", f"part {part} has {len(mine)} samples, {least} were acknowledged")
        if mine.tolist() != numbers_of(part * 10**6, len(mine)).tolist():
            found.add("torn", f"part {part} has other samples than it was given")
    found.done["samples of four parts"] += len(there)


def _copies_of_a_growing_store(work: Path, rng: np.random.Generator, found: Findings) -> None:
    """A writer appends as fast as it can; each copy is what it had stored at one moment, whole."""
    for kind in ("default", "mapped", "compressed"):
        store = work / kind
        job = _start("write_on", store, kind)
        try:
            _read_line(job)
            for _ in range(_COPIES):
                time.sleep(float(rng.uniform(0, 0.05)))
                _copy(store, work / f"{kind}-copy", found)
            if job.poll() is not None:
                found.add("stuck", f"the writer of {kind}: exit code {job.returncode}")
        finally:
            job.kill()
            job.communicate(timeout=_SECONDS)


def _copy(store: Path, copied: Path, found: Findings) -> None:
    """Copy a store that `write_on` writes, and look the copy through."""
    least = _acknowledged(store)
    count = copy(store, copied, overwrite=True)
    most = _acknowledged(store) + _EACH
    numbers = serials(there := everything(copied))
    if numbers != [*range(count)] or (wrong := wrong_values(there)):
        found.add("torn", f"{copied.name}: {wrong if numbers == [*range(count)] else numbers[:9]}")
    if not least <= count <= most:
        found.add("lost", f"{copied.name}: {count} samples, not {least} to {most}")
    if not (report := check(copied, progress=False)).ok:
        found.add("wrong", f"{copied.name}: {report}")
    found.done["copies"] += 1
    found.done["copies of a store that grew meanwhile"] += least < most - _EACH


PARTIES: tuple[Callable[[Path, np.random.Generator, Findings], None], ...] = (
    _second_sink_on_a_path,
    _two_sinks_without_locks,
    _four_parts,
    _copies_of_a_growing_store,
)


def _start(what: str, *given: Any) -> subprocess.Popen[str]:
    """A process that writes, and tells how many samples it has written after each time."""
    listed = json.dumps([str(one) if isinstance(one, Path) else one for one in given])
    return subprocess.Popen(
        [sys.executable, "-c", f"from reliability.parties import {what}; {what}()", listed],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _read_line(job: subprocess.Popen[str]) -> int:
    assert job.stdout is not None
    return int(job.stdout.readline())


def write() -> None:
    """Write batches into a store and say how many samples it has."""
    store, kind, start, times = json.loads(sys.argv[1])
    for count in _written(store, kind, start, times):
        print(count, flush=True)


def write_on() -> None:
    """Write into a store until killed, with fields and strings that appear as it grows."""
    store, kind = json.loads(sys.argv[1])
    start = 0
    told = Path(f"{store}.acknowledged")
    with told.open("wb") as file, ZarrData(store, config=CONFIGS[kind]) as sink:
        while True:
            sink.write(samples(numbers_of(start, _EACH, None)))
            start += _EACH
            os.pwrite(file.fileno(), start.to_bytes(8, "little"), 0)
            if start == _EACH:
                print(start, flush=True)


def _acknowledged(store: Path) -> int:
    """How many samples `write_on` has written."""
    return int.from_bytes(Path(f"{store}.acknowledged").read_bytes(), "little")


def write_parts() -> None:
    """Write a part of a data set in each of four processes, and say who has written how much."""
    (run,) = json.loads(sys.argv[1])
    kinds, children = list(CONFIGS), []
    for part in range(_PARTS):
        child = os.fork()  # before zarr has a thread
        if child == 0:
            store = f"{run}/part-{part}"
            for count in _written(store, kinds[part % len(kinds)], part * 10**6, _WRITES):
                os.write(1, f"{part} {os.getpid()} {count}\n".encode())
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _written(store: str, kind: str, start: int, times: int) -> Iterator[int]:
    """Write batches into a store; how many samples it has after each."""
    with ZarrData(store, config=CONFIGS[kind]) as sink:
        for _ in range(times):
            numbers = numbers_of(start, _EACH)
            sink.write(samples(numbers))
            start = int(numbers[-1]) + 1
            yield len(sink)
