"""One Zarr store that a simulation writes into and a training run reads out of."""

from typing import TYPE_CHECKING, Any

from zarrpipe.data.atomic import AtomicData
from zarrpipe.data.batch import Batch
from zarrpipe.dataset import ZarrDataset, collate
from zarrpipe.samplers import GraphBatchSampler
from zarrpipe.sink import ZarrData
from zarrpipe.store.config import ZarrArrayConfig, ZarrWriteConfig
from zarrpipe.store.merge import compact, merge
from zarrpipe.store.reader import AtomicDataZarrReader
from zarrpipe.store.writer import AtomicDataZarrWriter

if TYPE_CHECKING:
    from zarrpipe.datamodule import ZarrDataModule

__all__ = [
    "AtomicData",
    "AtomicDataZarrReader",
    "AtomicDataZarrWriter",
    "Batch",
    "GraphBatchSampler",
    "ZarrArrayConfig",
    "ZarrData",
    "ZarrDataModule",
    "ZarrDataset",
    "ZarrWriteConfig",
    "collate",
    "compact",
    "merge",
]


def __getattr__(name: str) -> Any:
    """Import Lightning only when its part is asked for."""
    if name == "ZarrDataModule":
        from zarrpipe.datamodule import ZarrDataModule  # noqa: PLC0415  Lightning takes a second

        return ZarrDataModule
    raise AttributeError(f"module 'zarrpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
