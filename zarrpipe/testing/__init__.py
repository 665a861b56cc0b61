"""For tests, here and elsewhere: random batches, comparison by value, and the contract of a sink.

A store kind of your own is held to what `ZarrData` promises by one fixture::

    class TestMyStore(SinkContract):
        @pytest.fixture
        def make_sink(self, tmp_path):
            return lambda capacity=1000: ZarrData(MyStore(tmp_path), capacity)

pytest is imported where it is used, so that importing this module needs none.
"""

from zarrpipe.testing.batches import (
    assert_batches_equal,
    assert_plain_zarr,
    numbered_batch,
    random_batch,
)
from zarrpipe.testing.contract import SinkContract
from zarrpipe.testing.trees import stored_bytes, unchanged

__all__ = [
    "SinkContract",
    "assert_batches_equal",
    "assert_plain_zarr",
    "numbered_batch",
    "random_batch",
    "stored_bytes",
    "unchanged",
]
