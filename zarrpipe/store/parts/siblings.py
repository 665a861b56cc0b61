"""The other parts of a parent, as the writer of one part sees them."""

from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.parts import checked_part_name, ensure_parent, part_store
from zarrpipe.store.parts.batch_ids import StoredBatchIds
from zarrpipe.store.parts.names import auto_part_name
from zarrpipe.store.read.part_views import PartViews
from zarrpipe.store.read.view import StoreView


class Siblings:
    """One part of a parent, which is created if it does not exist, and a look at the other parts.

    `part` is the name of the part, or "auto". Raises ArgumentError for a name that a part cannot
    have, and StoreExistsError if there is something other than a parent.
    """

    def __init__(self, parent: StoreLike, part: str, *, durable: bool) -> None:
        self.name = auto_part_name() if part == "auto" else checked_part_name(part)
        self._parent = parent
        root = Root.of(parent)
        ensure_parent(root if root.directory is None else root.for_writing(durable=durable))
        self.place = part_store(parent, self.name)
        self._parts: PartViews | None = None
        self._batch_ids: dict[str, StoredBatchIds] = {}

    def _others(self) -> dict[str, StoreView]:
        """Views of the other parts, after a refresh."""
        if self._parts is None:
            self._parts = PartViews(self._parent)
        found = self._parts.found(but=self.name)
        for view in found.values():
            view.refresh()
        return {str(name): view for name, view in found.items()}

    def num_samples(self) -> int:
        """Number of samples of the other parts."""
        return sum(view.num_samples for view in self._others().values())

    def have(self, batch_id: str) -> bool:
        """Whether one of the other parts has samples of a batch."""
        return any(
            self._batch_ids.setdefault(name, StoredBatchIds()).has(view, batch_id)
            for name, view in self._others().items()
        )
