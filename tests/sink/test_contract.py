"""The sink's contract on every kind of store and for every kind of array."""

import uuid
from collections.abc import Callable, Iterator

import pytest
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath

from zarrpipe import ZarrData
from zarrpipe.testing import SinkContract

Kinds = dict[str, Callable[[], object]]


@pytest.fixture
def memory_url() -> Iterator[str]:
    """Place of its own in fsspec's memory, which all tests of a process share."""
    fsspec = pytest.importorskip("fsspec")
    name = f"memory://{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").store.clear()


def fsspec_store(url: str) -> FsspecStore:
    return FsspecStore.from_url(url)


class TestStores(SinkContract):
    @pytest.fixture(
        params=[
            "str",
            "path",
            "local",
            "memory",
            "fsspec",
            "store_path",
            "dict",
        ]
    )
    def make_sink(self, request, tmp_path, memory_url):
        place = tmp_path / "deep" / "run.zarr"
        store = {
            "str": lambda: str(place),
            "path": lambda: place,
            "local": lambda: LocalStore(place),
            "memory": MemoryStore,
            "store_path": lambda: StorePath(LocalStore(tmp_path), "runs/part-0"),
            "fsspec": lambda: fsspec_store(memory_url),
            "dict": dict,
        }[request.param]()
        return lambda capacity=1000: ZarrData(store, capacity)


ZSTD = (zarr.codecs.ZstdCodec(level=1),)
CONFIGS = {
    "compressed_with_overrides": {
        "core": {"compressors": ({"name": "zstd", "configuration": {"level": 1}},)},
        "meta": {"compressors": zarr.codecs.ZstdCodec(level=1)},
        "field_overrides": {
            "positions": {"chunk_size": 7},
            "atomic_numbers": {"serializer": zarr.codecs.BytesCodec(endian="big")},
            "energy": {"compressors": (zarr.codecs.GzipCodec(),), "write_empty_chunks": False},
            "tag": {"chunk_size": 2, "shard_size": 4},
        },
    },
    "sharded": {
        group: {"chunk_size": 4, "shard_size": 16, "compressors": ZSTD}
        for group in ("meta", "core", "custom")
    },
    "small_chunks": {group: {"chunk_size": 3} for group in ("meta", "core", "custom")},
}


class TestConfigs(SinkContract):
    @pytest.fixture(params=[*CONFIGS])
    def make_sink(self, request, tmp_path):
        store = MemoryStore() if request.param == "sharded" else tmp_path / "run.zarr"
        return lambda capacity=1000: ZarrData(store, capacity, config=CONFIGS[request.param])
