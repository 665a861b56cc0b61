"""What was written, and what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Written:
    """What `write_out` or `write_card` wrote.

    Attributes
    ----------
    path : Path
        The file, or the directory of a format that has several files.
    format : str
        Name of the format.
    num_samples : int
        Number of samples in it; of a card, number of samples that it describes.
    left_out : mapping of str to str
        Why something is not in it, by the name of the field, or of what else it is.
    """

    path: Path
    format: str
    num_samples: int
    left_out: Mapping[str, str] = field(default_factory=dict)
