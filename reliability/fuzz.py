"""Damaged stores through opening and reading everything, each in a process that must not die.

A case copies one of a few stores, damages it, and reads it through a view and, every other time, a
dataset, a reader or a sink that appends, in a process that is forked for it, with limits on memory
and time. It must give the rows that were written or an error of zarrpipe's tree, an OSError or an
IndexError. A case is met again by its number::

    python -m reliability fuzz --seed 1 --only 4711

What is read wrongly after chunk bytes alone were changed cannot be known without checksums, and is
counted as such. Damage to anything else must be seen.
"""

import json
import os
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from reliability.fuzz_bases import flattened, make_bases
from reliability.fuzz_damage import damage
from reliability.lives import load_compiled
from reliability.report import Findings, Order
from reliability.truth import numbers_of, samples
from zarrpipe import AtomicDataZarrReader, Batch, ZarrData, ZarrDataset
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.levels import Level
from zarrpipe.errors import ZarrPipeError
from zarrpipe.store.read.view import StoreView

_PROMISED = (ZarrPipeError, OSError, IndexError)
_MEMORY, _SECONDS = 6 << 30, 20
_COUNT = 10_000
_BYTES_ALONE = ("flip chunk", "flip meta", "pointer", "swap")

Truth = dict[str, AnyArray]


@dataclass
class Outcome:
    """What came of a case.

    Parameters
    ----------
    what
        "same", "fewer" (a prefix of the samples, or not all fields), "error", "wrong", "foreign"
        (an exception that is not promised), "killed" or "hung".
    told
        The message, or what is wrong.
    base, done
        The store, and how it was damaged.
    """

    what: str
    told: str = ""
    base: str = ""
    done: str = ""


def run(order: Order) -> Findings:
    """Run cases from 0 on, or the one whose number `only` says."""
    torch.set_num_threads(1)
    load_compiled()  # not once more in every child
    bases, truths = _prepared(order.work)
    findings = Findings()
    table: Counter[str] = Counter()
    cases = [int(order.only)] if order.only else range(order.count or _COUNT)
    started = time.monotonic()
    for case in cases:
        if order.minutes and time.monotonic() - started > order.minutes * 60:
            break
        outcome = _case(order, case, bases, truths)
        if order.only:
            print(outcome)
        _count(findings, table, order.seed, case, outcome)
    findings.facts["outcomes"] = dict(sorted(table.items()))
    return findings


def _prepared(work: Path) -> tuple[list[str], dict[str, Truth]]:
    """Stores to damage, made by a child so that this process never starts Zarr's thread."""
    folder = work / "bases"
    folder.mkdir(parents=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(make_bases(folder)).encode())
        except BaseException:  # noqa: BLE001  a child that was forked must not go on
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        names = json.loads(file.read())
    os.waitpid(child, 0)
    return names, {name: dict(np.load(folder / f"{name}.npz")) for name in names}


def _case(order: Order, case: int, bases: list[str], truths: dict[str, Truth]) -> Outcome:
    """Damage a copy of a store and read it in a child."""
    rng = np.random.default_rng([order.seed, case])
    base = str(rng.choice(bases))
    store = order.work / f"case{case}"
    shutil.copytree(order.work / "bases" / base, store)
    try:
        done = damage(store, rng)
        outcome = _in_child(lambda: _read(store, truths[base], case))
    finally:
        if not order.only:
            shutil.rmtree(store)
            store.with_name(f"{store.name}.annex").unlink(missing_ok=True)
    outcome.base, outcome.done = base, done
    return outcome


def _in_child(read: Callable[[], Outcome]) -> Outcome:
    """Outcome of a function in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = Outcome("foreign", "the child ended early")
        try:
            os.close(reader)
            _limit()
            outcome = read()
        except BaseException:  # noqa: BLE001  a child that was forked must not go on
            outcome = Outcome("foreign", traceback.format_exc())
        finally:
            os.write(writer, json.dumps(asdict(outcome)).encode()[:60_000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        content = file.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hung = number in (signal.SIGALRM, signal.SIGXCPU)
        return Outcome("hung" if hung else "killed", signal.Signals(number).name)
    return Outcome(**json.loads(content))


def _limit() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, now + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Of the processor, since a busy machine may let a child wait; the alarm is for a deadlock.
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 5))
    signal.alarm(15 * _SECONDS)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


def _read(store: Path, truth: Truth, case: int) -> Outcome:
    """Read all of a store, every other time in a second way; the worse of what came of it."""
    seconds = (_dataset, _reader, _append)[case % 6 : case % 6 + 1]
    outcomes = [_tried(way, store, truth) for way in (_view, *seconds)]
    ranks = ("foreign", "wrong", "error", "fewer", "same")
    return min(outcomes, key=lambda outcome: ranks.index(outcome.what))


def _tried(read: Callable[[Path, Truth], str], store: Path, truth: Truth) -> Outcome:
    try:
        told = read(store, truth)
    except _PROMISED as error:
        return Outcome("error", f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001  the finding
        return Outcome("foreign", f"{read.__name__}: {traceback.format_exc()}")
    if told.startswith("fewer"):
        return Outcome("fewer", told)
    return Outcome("wrong" if told else "same", f"{read.__name__}: {told}" if told else "")


def _view(store: Path, truth: Truth) -> str:
    view = StoreView(store)
    count = view.num_samples
    if not count:
        return "fewer: none"
    atoms = np.diff(truth[":atoms"])
    found = view.gather(np.arange(count))
    told = _difference(found, truth)
    view.refresh()
    for name in view.schema:
        view.present(name)
    if len(view.ids) != count or len(view.num_edges) != count:
        return "lengths differ"
    if not told and view.num_atoms.tolist() != atoms[:count].tolist():
        return "num_atoms differs"
    view.close()
    return told


def _dataset(store: Path, truth: Truth) -> str:
    dataset = ZarrDataset(store)
    if not len(dataset):
        return "fewer: none"
    dataset[0]
    index = np.arange(len(dataset))
    dataset.prefetch(index)
    told = _difference(dataset.__getitems__(index), truth)
    dataset.refresh()
    return told


def _reader(store: Path, truth: Truth) -> str:
    reader = AtomicDataZarrReader(store)
    if not len(reader):
        return "fewer: none"
    fields, _ = reader[len(reader) - 1]
    first, last = truth[":atoms"][len(reader) - 1 : len(reader) + 1]
    wanted = truth["positions"][first:last]
    return "" if np.array_equal(fields["positions"].numpy(), wanted) else "positions differs"


def _append(store: Path, truth: Truth) -> str:
    """Append; what was read before must be read after, and what is new as well."""
    before = StoreView(store)
    count = before.num_samples
    there = before.gather(np.arange(count)) if count else None
    before.close()
    new = samples(numbers_of(5000, 3))
    with ZarrData(store) as sink:
        sink.write(new)
    view = StoreView(store)
    if view.num_samples != count + 3:
        return f"{view.num_samples} samples after {count} and 3 were appended"
    told = ""
    if there is not None:
        have, found = flattened(there), view.gather(np.arange(count))
        if Level.EDGE not in there.levels.values():  # what is new may have edges
            have[":edges"] = flattened(found)[":edges"]
        told = _difference(found, have)
    if told:
        return f"what stood there before an append: {told}"
    energy = view.gather(np.arange(count, count + 3), ["energy"])["energy"].numpy()
    return "" if np.array_equal(energy, new["energy"].numpy()) else "what was appended differs"


def _difference(found: Batch, truth: Truth) -> str:
    """What of a batch is not as it was written; empty if nothing."""
    have, count = flattened(found), found.num_graphs
    if Level.EDGE not in found.levels.values():  # then edges are not asked for
        have[":edges"] = truth[":edges"][: count + 1]
    pointers = [name for name in truth if name.startswith(":")]
    for name in pointers:
        if name in have and not np.array_equal(have[name], truth[name][: count + 1]):
            return f"{name} differs"
    lacking = [name for name in truth if name not in have]
    for name in truth.keys() & have.keys() - {*pointers}:
        ends = truth.get(f":{found.levels.get(name)}s")
        wanted = truth[name][: count if ends is None else int(ends[count])]
        same = np.array_equal(have[name], wanted, equal_nan=wanted.dtype.kind == "f")
        if not same or have[name].dtype != wanted.dtype:
            return f"{name} differs"
    if lacking:
        return f"fewer: without {lacking[0]}"
    return "" if count == len(truth[":atoms"]) - 1 else f"fewer: {count} samples"


def _count(findings: Findings, table: Counter[str], seed: int, case: int, outcome: Outcome) -> None:
    findings.done["cases"] += 1
    findings.done[outcome.what] += 1
    kinds = sorted({part.partition(":")[0] for part in outcome.done.split("; ")})
    table[f"{' + '.join(kinds) if len(kinds) == 1 else 'several'}: {outcome.what}"] += 1
    told = f"seed {seed} case {case} ({outcome.base}; {outcome.done}): {outcome.told}"
    if outcome.what == "foreign":
        findings.add("unclear", told)
    elif outcome.what in ("killed", "hung"):
        findings.add("crashed", f"{outcome.what} {told}")
    elif outcome.what == "wrong":
        reason = _not_to_be_known(outcome)
        if reason:
            findings.done[f"wrong, {reason}"] += 1
        else:
            findings.add("wrong", told)


def _not_to_be_known(outcome: Outcome) -> str:
    """Why no reader can know that rows are wrong without checksums; empty if one must."""
    for part in outcome.done.split("; "):
        kind, _, told = part.partition(": ")
        if kind in _BYTES_ALONE:
            return "chunk bytes were changed"
        if kind == "remove" and "/c/" in told and outcome.base in ("zstd", "sharded", "foreign"):
            return "a chunk is not there, which to Zarr means fill"
        own = kind == "edit" and told.startswith(("custom/", "levels/"))
        if own and "data_type" in told:
            return "a user's own field is said to have another dtype of the same size"
        if own and "zarr.json 1 = " in told:
            return "a user's own field is said to have rows of another shape"
    return ""
