"""Parts in an object store: as in any other place."""

import pytest

import zarrpipe as zp
from reliability.numbered_systems import batch, numbers_of
from zarrpipe.errors import StoreExistsError, StoreLockedError, StorePartsError


def test_parts_of_a_url(url):
    with zp.ZarrData(url, capacity=1000, part="2") as second:
        assert second.write(batch(1, 2), batch_id="a")
        union = zp.ZarrDataset(url)
        with zp.ZarrData(url, capacity=1000, part="1") as first:
            assert first.write(batch(1, 2), batch_id="a") is False
            first.write(batch(3))
        with zp.ZarrData(url, capacity=1000, part="2") as rival, pytest.raises(StoreLockedError):
            rival.write(batch(4))
        assert union.refresh() == 1
        assert numbers_of(union) == [1, 2, 3]
    assert list(zp.parts(url)) == ["1", "2"]
    assert zp.parts(url)["1"] == f"{url}/part-1"
    assert numbers_of(zp.ZarrDataset(url)) == [3, 1, 2]
    with pytest.raises(StorePartsError):
        zp.ZarrData(url)
    with pytest.raises(StoreExistsError):
        zp.ZarrData(f"{url}/part-1", part="x")
