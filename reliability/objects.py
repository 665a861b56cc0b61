"""Writers of an object store that are killed at random, two at once, and what an append costs.

The S3 server stands behind a proxy that answers 2 % of requests by an error, closes the connection
of 1 % after they took effect, and takes 20 ms for each. Each life opens the store that the last one
left, and is killed at a random moment. What readers see is compared by value with what was
acknowledged; for half of the stores after another sink has uploaded what waited in the stage.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch

from reliability.hand import Step
from reliability.lives import Lives, Told
from reliability.model import State, explain
from reliability.object_server import Behaviour, ObjectServer, environment_of, object_server
from reliability.report import Findings, Order
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe import Batch, ZarrData, ZarrDataset
from zarrpipe.errors import StoreLockedError

_BAD = {"fail": 0.02, "drop": 0.01, "delay": 0.02}
_EACH = 25  # lives of a store
_SIZES = (1_000, 1_000_000)
_PROMISED = 1.0  # seconds until a second writer is refused


def run(order: Order) -> Findings:
    """Kill `order.count` writers, let two meet a tenth as often, and count requests."""
    found, count = Findings(), order.count or 0
    with object_server() as server, environment_of(server, order.work):
        parts = {
            "kills": lambda: _kills(server, count, order, found),
            "two writers": lambda: _two_writers(server, max(1, count // 10), order.seed, found),
            "requests": lambda: _requests(server, found),
        }
        for name, part in parts.items():
            if order.only in name:
                part()
    return found


def _kills(server: ObjectServer, count: int, order: Order, found: Findings) -> None:
    """Kill a writer after the other, and compare what each one left."""
    seed = order.seed
    rng, state, first = np.random.default_rng(seed), State(), 0
    each = min(_EACH, max(1, count // 2))
    usual = {"write": 0.6, "flush": 1.0, "close": 1.0}
    with Lives() as lives:
        for number in range(count):
            url = server.url(f"kills-{number // each}")
            stage = order.work / "stage" if number // each % 2 else None
            if number % each == 0:
                state = State()
            names = [*rng.choice(("write", "write", "flush"), 3), "write", "close"]
            steps: list[Step] = [(str(name), {}) for name in names]
            for name, given in steps:
                if name == "write":
                    given |= {"start": first, "count": int(rng.choice((1, 7, 64)))}
                    first = int(numbers_of(**given)[-1]) + 1
            armed = int(rng.integers(len(steps)))
            took = 1.2 * usual[steps[armed][0]] if stage is None or armed == 0 else 0.3
            delay = float(rng.uniform(0, took + 2.0 * (armed == 0)))
            server.behave(Behaviour(**_BAD, seed=seed + number))
            told = lives.live(url, "default", steps, armed=armed, delay=delay, stage=stage)
            server.behave(Behaviour())
            if stage is not None:
                with ZarrData(url, stage=stage) as rest:
                    found.done["samples left in the stage"] += rest._buffer.count
                found.done["kills of staged writers"] += 1
            state = _compared(url, f"life {number}", state, steps, told, found)
            found.done["kills"] += 1


def _compared(
    url: str, where: str, state: State, steps: list[Step], told: Told, found: Findings
) -> State:
    """What is there after a life, which has to be what it acknowledged."""
    for step, _ in zip(steps, told.ended, strict=False):
        state = state.after(step)
    pending = steps[told.begun - 1] if told.begun > len(told.ended) else None
    found.done[f"killed in {pending[0] if pending else 'nothing'}"] += 1
    found.done["calls acknowledged"] += len(told.ended)
    if told.error is not None:
        kind = told.error.partition(":")[0]
        found.done[f"calls that raised {kind}"] += 1
        if "Store" in kind:
            found.add("stuck", f"{where}: {told.error}")
    try:
        there = everything(url)
    except FileNotFoundError:
        there = None
    except Exception as error:  # noqa: BLE001  whatever it is, the store does not open
        found.add("unopened", f"{where}: {type(error).__name__}: {error}")
        return state
    numbers = serials(there)
    defect = explain(state, pending, numbers)
    if defect is None and (wrong := wrong_values(there)):
        defect = "wrong", wrong
    if defect is not None:
        found.add(defect[0], f"{where}: {defect[1]}")
    found.done["samples compared"] += len(numbers)
    return State(tuple(numbers))


def _two_writers(server: ObjectServer, count: int, seed: int, found: Findings) -> None:
    """Of two writers that open a store at the same moment one gets in, and the other is told."""
    slowest = 0.0
    for number in range(count):
        url, barrier = server.url(f"two-{number}"), Barrier(2)
        if number % 2:
            with ZarrData(url, stage=False) as sink:
                sink.write(samples(numbers_of(0, 5)))
        server.behave(Behaviour(delay=_BAD["delay"], seed=seed + number))

        def write(which: int, sink: ZarrData, barrier: Barrier = barrier) -> tuple[bool, float]:
            barrier.wait()
            start = time.perf_counter()
            try:
                sink.write(samples(numbers_of(1000 * (which + 1), 5)))
            except StoreLockedError:
                return False, time.perf_counter() - start
            return True, 0.0

        sinks = [ZarrData(url) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            results = [*pool.map(write, range(2), sinks)]
        server.behave(Behaviour())
        for sink in sinks:
            sink.close()
        slowest = max(slowest, *(seconds for _, seconds in results))
        expected = numbers_of(0, 5).tolist() if number % 2 else []
        for which, (written, _) in enumerate(results):
            expected += numbers_of(1000 * (which + 1), 5).tolist() if written else []
        there = everything(url)
        if sum(written for written, _ in results) != 1:
            found.add("unclear", f"pair {number}: {results}")
        if serials(there) != expected or wrong_values(there):
            found.add("torn", f"pair {number}: {serials(there)}, expected {expected}")
        found.done["pairs of writers"] += 1
    found.facts["slowest_refusal_s"] = round(slowest, 2)
    if slowest > _PROMISED:
        found.done["refusals that took longer than promised"] += 1


def _molecules(seed: int, count: int, atoms: int) -> Batch:
    """Molecules with edges, or single atoms without."""
    rng, edges = np.random.default_rng(seed), 4 * atoms if atoms > 1 else 0
    pairs = np.arange(count).repeat(edges)[:, None] * atoms + rng.integers(
        0, atoms, (count * edges, 2)
    )
    values = {
        "positions": torch.from_numpy(rng.normal(size=(count * atoms, 3))),
        "forces": torch.from_numpy(rng.normal(size=(count * atoms, 3))),
        "atomic_numbers": torch.from_numpy(rng.integers(1, 10, count * atoms)),
        "energy": torch.from_numpy(rng.normal(size=(count, 1))),
        "neighbor_list": torch.from_numpy(pairs),
    }
    return Batch(values, torch.arange(count + 1) * atoms, torch.arange(count + 1) * edges)


def _requests(server: ObjectServer, found: Findings) -> None:
    """Requests and bytes of an append of 32 molecules, of opening, and of a new reader."""
    url, there, capacity = server.url("requests"), 0, 2 * max(_SIZES)
    server.behave(Behaviour())
    for size in _SIZES:
        with ZarrData(url, capacity=capacity, stage=False) as sink:
            while there < size:
                more = min(100_000, size - there)
                sink.write(_molecules(there, more, 1))
                there += more
        facts = {}
        sink = ZarrData(url, capacity=capacity, stage=False)
        for name in ("first append", "append", "append", "close", "reader"):
            server.behave(Behaviour())
            start = time.perf_counter()
            if name == "close":
                sink.close()
            elif name == "reader":
                len(ZarrDataset(url))
            else:
                sink.write(_molecules(there, 32, 9))
                there += 32
            traffic = server.traffic()
            facts[name] = {
                "requests": traffic.total,
                "sent": traffic.sent,
                "received": traffic.received,
                "s": round(time.perf_counter() - start, 2),
            }
        found.facts[f"at_{size}"] = facts
        print(f"at {size:,}: {facts}", flush=True)
