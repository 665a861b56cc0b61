"""A sampler fills the store that two ranks in processes of their own train on."""

import json
import threading
import time
from collections import Counter
from itertools import chain

import zarrpipe as zp
from zarrpipe.testing import numbered_batch

FIRST, ADDED, AT_ONCE, PAUSE = 200, 3000, 100, 0.04


class Sampler(threading.Thread):
    """Appends once training has begun, and the second half once an epoch has some of the first."""

    def __init__(self, store, notes):
        super().__init__()
        self.store, self.notes = store, notes
        self.committed, self.over = [(0.0, FIRST)], threading.Event()

    def run(self):
        self._wait_for(lambda counts: counts)
        with zp.ZarrData(self.store) as sink:
            for count in range(FIRST, FIRST + ADDED, AT_ONCE):
                if count == FIRST + ADDED // 2:
                    self._wait_for(lambda counts: counts[-1] > counts[0])
                sink.write(numbered_batch(range(count, count + AT_ONCE)))
                self.committed.append((time.monotonic(), count + AT_ONCE))
                self.over.wait(PAUSE)

    def _wait_for(self, condition):
        """Wait until the numbers of samples of the epochs that were begun meet a condition."""
        while not self.over.is_set() and not condition(self._counts()):
            self.over.wait(PAUSE)

    def _counts(self):
        if not self.notes.exists():
            return []
        lines = self.notes.read_text().splitlines(keepends=True)
        notes = [json.loads(line) for line in lines if line.endswith("\n")]
        return [note[2] for note in notes if note[0] == "epoch"]


def test_samples_arrive_while_two_ranks_train(training, tmp_path):
    """Each epoch has all samples that were committed before it, and each of them once."""
    store, output = tmp_path / "store.zarr", tmp_path / "run"
    with zp.ZarrData(store) as sink:
        sink.write(numbered_batch(range(FIRST)))
    sampler = Sampler(store, output / "rank0.jsonl")
    sampler.start()
    try:
        run = training(
            output,
            world=2,
            module={"store": str(store), "batch_size": 64, "split": [1.0, 0.0, 0.0]},
            trainer={"max_epochs": 1000},
            saving={"every_n_epochs": 1000},
            until=FIRST + ADDED,
        )
    finally:
        sampler.over.set()
        sampler.join()
    assert run.codes == [0, 0], run.text
    assert run.of("epoch", 0) == run.of("epoch", 1)
    counts = [samples for _, samples, *_ in run["epoch"]]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2, "the store did not grow while training ran"
    for epoch, samples, length, _ in run["epoch"]:
        seen = [
            [serials for _, when, *_, serials in run.of("train", rank) if when == epoch]
            for rank in (0, 1)
        ]
        assert [len(batches) for batches in seen] == [length, length]
        assert Counter(chain(*seen[0], *seen[1])) == Counter(range(samples))
    for [ended], after in zip(run["time"], counts[1:], strict=False):
        there = max(count for when, count in sampler.committed if when < ended)
        assert after >= there, "samples committed before the epoch are not in it"
