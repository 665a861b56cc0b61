"""How a finding is made of places of samples."""

from collections.abc import Sequence

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.reporting.contents import Finding, Severity
from zarrpipe.reporting.values.measured import Measured

MOST_SAMPLES = 100
"""Numbers of samples that a finding names, at most."""

WAY_OUT = (
    "import these samples again with their unit (units=, --units), or delete them and write them "
    "converted"
)
"""Of labels in another unit."""

_ORDER = tuple(Severity)


def finding(
    one: Measured,
    severity: Severity,
    title: str,
    text: str,
    way_out: str,
    *,
    places: AnyArray | Sequence[int] = (),
    section: str = "",
) -> Finding:
    """A finding of the samples at some places among the scanned, the worst first.

    `section` is the name of the section that shows more.
    """
    chosen = np.asarray(places, dtype=np.int64)
    named = one.samples(chosen[:MOST_SAMPLES])
    return Finding(severity, title, text, way_out, named, len(chosen), section=section)


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; within each in the order in which they were found."""
    return tuple(sorted(findings, key=lambda one: _ORDER.index(one.severity)))


def count_text(count: int, what: str = "sample") -> str:
    """Number and noun, as "1 sample" or "1,204 samples".

    >>> count_text(1), count_text(1204, "atom")
    ('1 sample', '1,204 atoms')
    """
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def places_of(mask: AnyArray) -> Int64Array:
    """Places at which a mask is True."""
    return np.flatnonzero(mask)
