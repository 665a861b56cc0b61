"""The views of a place: of the store that it is, or of the parts that it has."""

import threading
from collections.abc import Mapping
from typing import Any

from zarrpipe.errors import StoreNotFoundError, StorePartsError
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.parts import part_names, part_store
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.read.view import StoreView


class PartViews:
    """Views of the store at a place, named None, or of its parts by name, each opened once.

    Raises what `StoreView` does for a place without parts.
    """

    def __init__(self, store: StoreLike, cache_config: CacheConfig | None = None) -> None:
        self.store, self._cache_config = store, cache_config
        self._views: dict[str | None, StoreView] = {}
        self._lock = threading.Lock()
        self._root = Root.of(store)
        try:
            self._views[None] = StoreView(store, cache_config)
            self.is_parent = False
        except StorePartsError:
            self.is_parent = True

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def view(self, name: str | None) -> StoreView:
        """View of a part, which is opened at its first use; None for a place without parts.

        Raises StoreNotFoundError if there is no such part.
        """
        with self._lock:
            if name not in self._views:
                if name is None or not self.is_parent:
                    raise StoreNotFoundError(
                        f"{self._root} {'has' if self.is_parent else 'is a store without'} parts, "
                        f"expected {'one store' if name is None else f'one with part {name!r}'}"
                    )
                self._views[name] = StoreView(part_store(self.store, name), self._cache_config)
            return self._views[name]

    def found(self, but: str | None = None) -> dict[str | None, StoreView]:
        """Views of the parts that exist now, in natural order; of the store without parts.

        A part named `but` is left out.
        """
        if not self.is_parent:
            return {None: self.view(None)}
        found: dict[str | None, StoreView] = {}
        for name in part_names(self._root):
            if name == but:
                continue
            try:
                found[name] = self.view(name)
            except StoreNotFoundError:  # its writer has not written yet
                continue
        return found
