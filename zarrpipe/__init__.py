"""One Zarr store that a simulation writes into and a training run reads out of."""


from zarrpipe.data.atomic import AtomicData
from zarrpipe.data.batch import Batch
from zarrpipe.sink import ZarrData
from zarrpipe.store.config import ZarrArrayConfig, ZarrWriteConfig
from zarrpipe.store.reader import AtomicDataZarrReader
from zarrpipe.store.writer import AtomicDataZarrWriter

__all__ = [
    "AtomicData",
    "AtomicDataZarrReader",
    "AtomicDataZarrWriter",
    "Batch",
    "ZarrArrayConfig",
    "ZarrData",
    "ZarrWriteConfig",
]
