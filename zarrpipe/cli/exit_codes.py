"""How a command ends."""

from types import MappingProxyType

GOOD, FOUND, UNUSABLE = 0, 1, 2

MEANINGS = MappingProxyType(
    {
        GOOD: "done; there may be warnings",
        FOUND: "check: the store has errors; import: some frames could not be read",
        UNUSABLE: "nothing was done, or not all: wrong arguments, no such store, an interrupt, ...",
    }
)
"""What each exit code means, for the help."""
