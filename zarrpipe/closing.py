"""What has a `close` is also a context manager."""

from types import TracebackType
from typing import Self


class Closing:
    """Base of what is closed at the end of a with statement."""

    def close(self) -> None:
        """Let go; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
