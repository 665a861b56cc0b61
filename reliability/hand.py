"""The methods that change a store, by name, and what arguments say in JSON."""

from collections.abc import Mapping
from typing import Any

from reliability.truth import mark_values, numbers_of, samples, serials, wrong_values
from zarrpipe import AtomicDataZarrWriter, ZarrData, compact, merge
from zarrpipe.store.backend.location import StoreLike

Step = tuple[str, dict[str, Any]]
"""A method and its arguments."""


class Hand:
    """Calls methods on one store, with the object at hand that has them.

    Parameters
    ----------
    store, target
        The store, and where merges go.
    config
        Of what is written.
    stage
        Directory of the sink's stage; None for a sink that writes directly.
    """

    def __init__(
        self, store: StoreLike, target: StoreLike, config: Any, stage: str | None = None
    ) -> None:
        self.store, self.target, self._config = store, target, config
        self._options: dict[str, Any] = {"stage": stage or False, "flush_seconds": 0.2}
        self._held: ZarrData | AtomicDataZarrWriter | None = None

    def sink(self) -> ZarrData:
        """The sink, where a sink or nothing is at hand."""
        if not isinstance(self._held, ZarrData):
            self._held = ZarrData(self.store, config=self._config, **self._options)
        return self._held

    def writer(self) -> AtomicDataZarrWriter:
        """The writer, where a writer or nothing is at hand."""
        if not isinstance(self._held, AtomicDataZarrWriter):
            self._held = AtomicDataZarrWriter(self.store, self._config)
        return self._held

    def __call__(self, name: str, given: Mapping[str, Any]) -> Any:
        """Call a method; what it returned, as far as JSON can say it."""
        match name:
            case "close":
                if self._held is not None:
                    self._held.close()
                self._held = None
            case "open":
                self.writer().delete([])  # the first call that needs the store opens it
            case "write":
                self.sink().write(samples(numbers_of(**given)))
            case "drain":
                drained = self.sink().drain()
                return serials(drained), wrong_values(drained, given["marks"])
            case "zero" | "flush":
                getattr(self.sink(), name)()
            case "first":
                self.writer().write(samples(numbers_of(**given)))
            case "append":
                self.writer().append(samples(numbers_of(**given)))
            case "add_custom":
                values = mark_values(given["key"], given["numbers"])
                self.writer().add_custom(given["key"], values, "system")
            case "delete":
                self.writer().delete(given["indices"])
            case "defragment":
                self.writer().defragment()
            case "compact":
                return compact(self.store, config=self._config, progress=False)
            case "merge":
                return merge([self.store] * 2, self.target, config=self._config, progress=False)
        return None


OBJECT = {"write": "sink", "drain": "sink", "zero": "sink", "flush": "sink"}
OBJECT |= dict.fromkeys(("open", "first", "append", "add_custom", "delete", "defragment"), "writer")
"""Which object has a method; compact and merge need none, close the one that is at hand."""
