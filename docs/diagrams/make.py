"""Draw the diagrams of the documentation: ``python docs/diagrams/make.py``."""

from collections.abc import Callable
from pathlib import Path

from drawing import Drawing
from store_pictures import append, emptying, growth, overview
from training_pictures import batch, epoch, splits

HERE = Path(__file__).parent

PICTURES: dict[str, Callable[[], Drawing]] = {
    "overview": overview,
    "batch": batch,
    "append": append,
    "growth": growth,
    "emptying": emptying,
    "epoch": epoch,
    "splits": splits,
}
"""Every picture, by the name of its file."""


def main() -> None:
    """Write every picture beside this script."""
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
