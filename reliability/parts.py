"""Eight writers of parts are killed and go on, beside two readers and a trainer on two ranks.

A writer notes a batch when its write has returned. After a kill it goes on in its part or in a new
one, and first writes again what it wrote last, with the same batch ids. In the end every noted
sample is there once and right, and no sample that nobody wrote.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reliability.report import Findings, Order
from reliability.truth import numbers_of, samples, serials, wrong_values
from zarrpipe import GraphBatchSampler, ZarrData, ZarrDataset, merge
from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.training.ranks import refresh_all_ranks

WRITERS, READERS, RANKS = 8, 2, 2
_KILLS = 20
_MOST_TASKS, _MOST_SAMPLES, _AGAIN, _BLOCK = 20_000, 40, 3, 512
_NUMBERS = 640  # room for the numbers of a task
_PATIENCE = 600.0


def run(order: Order) -> Findings:
    """Kill `order.count` writers in `order.minutes`, and look at all that is there then."""
    seconds, kills = 60 * (order.minutes or 1), _KILLS if order.count is None else order.count
    rng, store = np.random.default_rng(order.seed), order.work / "run.zarr"
    ZarrData(store, part="0-0").close()
    found, lives = Findings(), [0] * WRITERS
    writers = [_start("write", order, place, 0) for place in range(WRITERS)]
    beside = [_start("read", order, place) for place in range(READERS)]
    beside += [_start("train", order, rank) for rank in range(RANKS)]
    _wait_for_all(order.work)
    begun = time.monotonic()
    for moment in np.sort(rng.uniform(0, seconds, kills)):
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        place = int(rng.integers(WRITERS))
        writers[place].send_signal(signal.SIGKILL)
        if _ended(writers[place], found, "writer") == -signal.SIGKILL:
            found.done["writers killed"] += 1
        lives[place] += 1
        writers[place] = _start("write", order, place, lives[place])
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    (order.work / "stop").touch()
    for job in (*writers, *beside):
        if _ended(job, found, "process") != 0:
            found.add("crashed", f"{job.args!r}: exit code {job.returncode}")
    _look_at_all(order, found)
    return found


def _wait_for_all(work: Path) -> None:
    """Wait until each writer has noted a batch, and readers and ranks have begun."""
    names = [f"ledger-{writer}" for writer in range(WRITERS)]
    names += [f"read-{reader}" for reader in range(READERS)]
    names += [f"train-{rank}" for rank in range(RANKS)]
    end = time.monotonic() + _PATIENCE
    while any(not (work / name).exists() or not (work / name).stat().st_size for name in names):
        if time.monotonic() > end:
            raise TimeoutError(f"some of {names} did not begin within {_PATIENCE} s")
        time.sleep(0.1)


def _start(what: str, order: Order, *given: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from reliability.parts import {what}; {what}()",
            json.dumps([str(order.work), order.seed, *given]),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _ended(job: subprocess.Popen[str], found: Findings, what: str) -> int:
    """Exit code of a process, whose findings are added."""
    try:
        told = job.communicate(timeout=_PATIENCE)[0]
    except subprocess.TimeoutExpired:
        job.kill()
        job.communicate()
        found.add("crashed", f"a {what} hung: {job.args!r}")
        return -1
    lines = told.split("\n")[:-1]  # a kill may cut the last one off
    if lines:
        found.merge(Findings.from_json(lines[-1]))
    return job.returncode


def _given() -> tuple[Path, Any]:
    work, *numbers = json.loads(sys.argv[1])
    return Path(work), numbers


def task_numbers(writer: int, task: int) -> Int64Array:
    """Numbers of the samples of a task of a writer."""
    start = (writer * _MOST_TASKS + task) * _NUMBERS
    return numbers_of(start, 1 + (task * 7 + writer) % _MOST_SAMPLES)


def noted(work: Path, writer: int) -> list[int]:
    """Tasks that a writer has noted; a line that a kill cut off is none."""
    ledger = work / f"ledger-{writer}"
    text = ledger.read_text() if ledger.exists() else ""
    return [int(line) for line in text.split("\n")[:-1]]


def write() -> None:
    """Write tasks into a part until there is a file that says stop, but at least one.

    The first is the one that a killed writer may have written and not noted.
    """
    work, (seed, writer, life) = _given()
    found, rng = Findings(), np.random.default_rng([seed, writer, life])
    part = f"{writer}-{life if life % 2 else 0}"
    before = noted(work, writer)
    others = [(one, noted(work, one)[-_AGAIN:]) for one in range(WRITERS) if one != writer]
    begun, task = before, len(before)
    with (work / f"ledger-{writer}").open("a") as ledger:
        while task == len(begun) or (not (work / "stop").exists() and task < _MOST_TASKS):
            with ZarrData(work / "run.zarr", capacity=1 << 20, part=part) as sink:
                for owner, tasks in [(writer, before[-_AGAIN:]), *others]:
                    for again in tasks:
                        batch_id = f"{owner}/{again}"
                        if sink.write(samples(task_numbers(owner, again)), batch_id=batch_id):
                            found.add("torn", f"the retry of {batch_id} in part {part} was written")
                        found.done["retries of noted batches"] += 1
                before, others = [], []
                for _ in range(int(rng.integers(1, 60))):
                    if task > len(begun) and (work / "stop").exists():
                        break
                    new = sink.write(
                        samples(task_numbers(writer, task)), batch_id=f"{writer}/{task}"
                    )
                    found.done["batches written" if new else "batches of killed writers met"] += 1
                    time.sleep(float(rng.uniform(0, 0.3)))  # so that kills come before the note
                    ledger.write(f"{task}\n")
                    ledger.flush()
                    task += 1
            print(found.as_json(), flush=True)
    print(found.as_json())


def _wrong(batch: Batch) -> str | None:
    """What is wrong with the values of a batch."""
    return wrong_values(batch.without("batch_id") if "batch_id" in batch else batch)


def read() -> None:
    """Read the union as it grows, and again what was read before."""
    work, (seed, reader) = _given()
    found, rng = Findings(), np.random.default_rng([seed, 100, reader])
    dataset, known = ZarrDataset(work / "run.zarr"), np.zeros(0, dtype=np.int64)
    (work / f"read-{reader}").write_text("begun")
    while not (work / "stop").exists():
        dataset.refresh()
        if rng.random() < 0.05:  # one that has not grown has the same samples in another order
            fresh = ZarrDataset(work / "run.zarr")
            fresh.load_state_dict(dataset.state_dict())
            dataset = fresh
        new = np.arange(len(known), len(dataset))
        for start in range(0, len(new), _BLOCK):
            batch = dataset.read(new[start : start + _BLOCK])
            if wrong := _wrong(batch):
                found.add("wrong", f"a new sample: {wrong}")
            known = np.concatenate([known, np.array(serials(batch), dtype=np.int64)])
        if len(known):
            chosen = rng.integers(len(known), size=64)
            if serials(dataset.read(chosen)) != known[chosen].tolist():
                found.add("wrong", "an index means another sample than before")
        found.done["refreshes of readers"] += 1
        time.sleep(0.02)
    if len(set(known.tolist())) != len(known):
        found.add("torn", "a reader was given a sample twice")
    print(found.as_json())


def train() -> None:
    """Train on the union as one of two ranks: each epoch takes what is there at its beginning."""
    work, (seed, rank) = _given()
    found = Findings()
    dist.init_process_group("gloo", init_method=f"file://{work}/meet", rank=rank, world_size=RANKS)
    dataset, epoch = ZarrDataset(work / "run.zarr"), 0
    model = DistributedDataParallel(torch.nn.Linear(1, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    (work / f"train-{rank}").write_text("begun")
    while _go_on(work):
        refresh_all_ranks(dataset)
        sampler = GraphBatchSampler(dataset, batch_size=64, seed=seed, rank=rank, world_size=RANKS)
        sampler.set_epoch(epoch)
        seen: list[int] = []
        for index in sampler:
            batch = dataset.read(index)
            if wrong := _wrong(batch):
                found.add("wrong", f"a sample of training: {wrong}")
            seen += serials(batch)
            optimizer.zero_grad()
            energy = batch.energy.to(torch.float64)
            (model(energy) - energy).square().mean().backward()
            optimizer.step()
        every: list[Any] = [None] * RANKS
        dist.all_gather_object(every, (dataset.state_dict(), seen))
        if any(state != every[0][0] for state, _ in every):
            found.add("wrong", f"the ranks trained on other samples in epoch {epoch}")
        counts = Counter(number for _, own in every for number in own)
        if set(counts) != set(serials_of(dataset)):
            found.add("lost", f"epoch {epoch} went without some samples")
        found.done["epochs of ranks"] += 1
        epoch += 1
    dist.destroy_process_group()
    print(found.as_json())


def _go_on(work: Path) -> bool:
    """Whether to begin another epoch, as the first rank sees it."""
    told = [not (work / "stop").exists()]
    dist.broadcast_object_list(told)
    return told[0]


def serials_of(dataset: ZarrDataset) -> list[int]:
    """Numbers of all samples of a dataset."""
    named: list[int] = dataset.system_field("serial").tolist() if len(dataset) else []
    return named


def _look_at_all(order: Order, found: Findings) -> None:
    """Compare the union, its merge and a round of retries with what was noted."""
    store, expected = order.work / "run.zarr", Counter[int]()
    tasks = [(writer, task) for writer in range(WRITERS) for task in noted(order.work, writer)]
    for writer, task in tasks:
        expected.update(task_numbers(writer, task).tolist())
    dataset = ZarrDataset(store)
    union = Counter(serials_of(dataset))
    if lost := expected - union:
        found.add("lost", f"{len(lost)} noted samples are not there")
    if twice := [number for number, count in union.items() if count > 1]:
        found.add("torn", f"{len(twice)} samples are there twice")
    if more := union.keys() - expected.keys():  # all writers have ended and noted everything
        found.add("torn", f"{len(more)} samples were not noted")
    for start in range(0, len(dataset), _BLOCK):
        batch = dataset.read(np.arange(start, min(start + _BLOCK, len(dataset))))
        if wrong := _wrong(batch):
            found.add("wrong", f"the union: {wrong}")
    merge(store, order.work / "merged.zarr", progress=False)
    merged = ZarrDataset(order.work / "merged.zarr")
    if serials_of(merged) != serials_of(dataset):
        found.add("wrong", "the merged store has other samples than the union")
    rng = np.random.default_rng(order.seed)
    with ZarrData(store, part="retries") as sink:
        for place in rng.permutation(len(tasks))[:500]:
            writer, task = tasks[place]
            if sink.write(samples(task_numbers(writer, task)), batch_id=f"{writer}/{task}"):
                found.add("torn", f"the last retry of {writer}/{task} was written")
    if Counter(serials_of(ZarrDataset(store))) != union:
        found.add("torn", "retries changed the union")
    found.facts["samples"], found.facts["parts"] = len(dataset), len(dataset.state_dict()["parts"])
