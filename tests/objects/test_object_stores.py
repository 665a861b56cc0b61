"""Stores in an object store, opened by URL: values, one writer, lost answers, clear errors."""

import json
import os
import subprocess
import sys

import numpy as np
import obstore
import pytest
import zarr
from zarr.storage import ObjectStore

import zarrpipe as zp
from reliability.object_server import Behaviour
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe.errors import ArgumentError, StoreLockedError
from zarrpipe.store.backend import lease
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.object_urls import is_object_url

LOCK = "meta/atoms_ptr/.lock"


def batch(start, count=5):
    return samples(numbers_of(start, count))


def check_values(url, starts, count=5):
    """Compare what a new reader sees with the batches that were written."""
    found = everything(url)
    assert wrong_values(found) is None
    expected = np.concatenate([numbers_of(start, count) for start in starts])
    assert serials(found) == expected.tolist()


def objects(url):
    return Root.of(url).path.store.store


def held_lease(url, **changes):
    """Put a lease that another process seems to hold."""
    claim = {
        "host": "elsewhere",
        "pid": 1,
        "since": 0.0,
        "machine": "another",
        "name": "x",
        "token": 7,
        "renewed": 0,
        "released": False,
    }
    obstore.put(objects(url), LOCK, json.dumps(claim | changes).encode())


@pytest.mark.parametrize("url_of", ["s3://b/x", "s3a://b/x", "gs://b/x", "az://b/x"])
def test_urls_that_obstore_opens(url_of):
    assert is_object_url(url_of)
    assert not is_object_url(url_of.replace("://", "x://"))


def test_what_is_written_is_read(url):
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(0))
        check_values(url, [0])
        sink.write(batch(100))
        assert len(sink) == 10
    check_values(url, [0, 100])
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(200))
        assert len(sink) == 15
    check_values(url, [0, 100, 200])


def test_a_store_that_is_handed_over_is_locked_too(url):
    store = ObjectStore(objects(url))
    with zp.ZarrData(store, stage=False) as sink:
        sink.write(batch(0))
        with (
            zp.ZarrData(url, stage=False) as other,
            pytest.raises(StoreLockedError, match="is held by process"),
        ):
            other.write(batch(100))
    check_values(store, [0])


def test_an_append_fetches_nothing(url, server):
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(0))
        server.behave(Behaviour())
        sink.write(batch(100))
        traffic = server.traffic()
    assert set(traffic.requests) == {"PUT"}
    check_values(url, [0, 100])


def test_bytes_of_an_append_do_not_follow_the_capacity(url, server):
    sent = {}
    for capacity in (10_000, 100_000_000):
        with zp.ZarrData(f"{url}-{capacity}", capacity=capacity, stage=False) as sink:
            sink.write(batch(0))
            server.behave(Behaviour())
            sink.write(batch(100))
            sent[capacity] = server.traffic().sent
    assert sent[100_000_000] == sent[10_000]


def test_a_second_writer_is_refused_and_changes_nothing(url):
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(0))
        with (
            zp.ZarrData(url, stage=False) as other,
            pytest.raises(StoreLockedError, match=str(os.getpid())),
        ):
            other.write(batch(100))
        sink.write(batch(200))
    with zp.ZarrData(url, stage=False) as other:
        other.write(batch(300))
    check_values(url, [0, 200, 300])


def test_the_lease_of_a_killed_process_is_taken_over_at_once(url):
    code = (
        "import os, signal, sys, zarrpipe as zp\n"
        "from reliability.truth import numbers_of, samples\n"
        "sink = zp.ZarrData(sys.argv[1], stage=False)\n"
        "sink.write(samples(numbers_of(0, 5)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, url], check=False, timeout=600)
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(100))
    check_values(url, [0, 100])


def test_a_lease_of_another_machine_expires(url, monkeypatch):
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(0))
    held_lease(url)
    sink = zp.ZarrData(url, stage=False)
    with pytest.raises(StoreLockedError, match="process 1 on elsewhere"):
        sink.write(batch(100))
    monkeypatch.setattr(lease, "EXPIRES", -2.0)
    sink.write(batch(100))
    sink.close()
    check_values(url, [0, 100])


def test_a_writer_that_lost_its_lease_cannot_commit(url):
    """The old writer has not noticed; its objects are not those that it knows."""
    old = zp.ZarrData(url, stage=False)
    old.write(batch(0))
    held_lease(url, machine=lease._machine(), pid=2**22 + 1)  # its process is gone
    with zp.ZarrData(url, stage=False) as new:
        new.write(batch(100))
        with pytest.raises((StoreLockedError, OSError)):
            old.write(batch(200))
        new.write(batch(300))
    check_values(url, [0, 100, 300])
    with zp.ZarrData(url, stage=False) as again:
        again.write(batch(400))
    check_values(url, [0, 100, 300, 400])
    old.close()
    check_values(url, [0, 100, 300, 400])


def test_a_fence_changes_the_object_of_pointers_and_no_reader_sees_it(url):
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(0))
    held_lease(url, machine=lease._machine(), pid=2**22 + 1)
    place = objects(url)
    before = obstore.head(place, "meta/atoms_ptr/c/0")["e_tag"]
    sink = zp.ZarrData(url, stage=False)
    sink.write(batch(100)[:0])
    assert sink._open_writer().num_samples == 5
    assert obstore.head(place, "meta/atoms_ptr/c/0")["e_tag"] != before
    assert zarr.open_group(ObjectStore(place), mode="r")["meta/atoms_ptr"][-1] == -8
    check_values(url, [0])
    dataset = zp.ZarrDataset(url)
    sink.write(batch(100))
    assert dataset.refresh() == 5
    sink.close()
    check_values(url, [0, 100])
    assert zp.check(url).ok


@pytest.mark.parametrize("seed", [0, 1])
def test_failing_requests_and_lost_answers_lose_and_double_nothing(url, server, seed):
    server.behave(Behaviour(fail=0.05, drop=0.03, seed=seed))
    written = []
    with zp.ZarrData(url, stage=False) as sink:
        for start in range(0, 1000, 100):
            try:
                sink.write(batch(start))
            except OSError:  # a connection that was closed while reading; the samples tell
                server.behave(Behaviour(seed=seed))
                if len(sink) == 5 * len(written):
                    continue
            written.append(start)
        server.behave(Behaviour())
    check_values(url, written)
    assert len(written) >= 5


def test_a_place_that_ignores_conditions_is_recognised(url, server):
    server.behave(Behaviour(conditional=False))
    for start in (0, 100):
        with zp.ZarrData(url, stage=False) as sink, pytest.warns(UserWarning, match="have no lock"):
            sink.write(batch(start))
    check_values(url, [0, 100])


def test_a_url_without_bucket(url):
    with pytest.raises(ArgumentError, match="names no bucket"):
        zp.ZarrData("s3://")


def test_a_bucket_that_does_not_exist(url):
    with pytest.raises(OSError, match=r"NoSuchBucket|404|bucket"):
        zp.ZarrData("s3://no-such-bucket/store").write(batch(0))
