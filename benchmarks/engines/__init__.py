"""The engines: zarrpipe, what else there is, and the floors."""

from benchmarks.engines import hdf5, lmdb_records, memory, others, ours
from benchmarks.engines.base import Engine

ENGINES: tuple[Engine, ...] = (
    *ours.ENGINES,
    *memory.ENGINES,
    *lmdb_records.ENGINES,
    *hdf5.ENGINES,
    *others.ENGINES,
)
"""Every engine, zarrpipe first."""


def chosen(names: tuple[str, ...]) -> list[Engine]:
    """Engines of these names, all for none; those that are not installed are left out.

    Raises
    ------
    ValueError
        If there is no engine of a name.
    """
    known = {engine.name: engine for engine in ENGINES}
    for name in names:
        if name not in known:
            raise ValueError(f"no engine {name!r}; there are {', '.join(known)}")
    return [engine for engine in ENGINES if engine.installed and engine.name in (names or known)]
