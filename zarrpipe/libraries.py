"""Optional libraries, imported where they are used. Imports no torch, unlike the adapters."""

import importlib
from types import ModuleType

from zarrpipe.errors import MissingLibraryError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibraryError(
            f"{module!r} is needed here and cannot be imported ({error}): "
            f"install it with pip install 'zarrpipe[{extra}]'"
        ) from error
