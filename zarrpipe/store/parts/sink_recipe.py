"""A sink as a recipe, which another process opens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from zarr.storage import MemoryStore

from zarrpipe.errors import ArgumentTypeError
from zarrpipe.store.backend.location import Root, StoreLike

Sink = TypeVar("Sink")


@dataclass(frozen=True)
class SinkRecipe(Generic[Sink]):
    """How to open the sink of one part; small, and pickled to the process that does it.

    `ZarrData.for_part` makes it. Nothing is opened, created or locked before `open`.

    Attributes
    ----------
    store : StoreLike
        The parent of the parts.
    part : str
        Name of the part, or "auto".
    options : mapping
        Further arguments of the sink.
    """

    kind: type[Sink]
    store: StoreLike
    part: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> Sink:
        """Open the sink, in whichever process this is.

        Raises
        ------
        ZarrPipeError
            As ``ZarrData(store, part=part)``.
        """
        return self.kind(self.store, part=self.part, **self.options)  # type: ignore[call-arg]

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(Root.of(self.store).path.store, MemoryStore):
            raise ArgumentTypeError(
                f"the store of part {self.part!r} is in the memory of this process, and another "
                "process would write into a copy of it: give the parts a path or a URL"
            )
        return self.__dict__
