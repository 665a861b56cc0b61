"""Protocol of transforms, and several of them as one."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from zarrpipe.data.batch import Batch
from zarrpipe.data.ids import UInt64Array
from zarrpipe.errors import ArgumentTypeError
from zarrpipe.transforms.random_numbers import child_keys

Transform = Callable[..., Batch]
"""Called with a `Batch`, and with keys if it is random; returns the `Batch` to use."""


@runtime_checkable
class RandomTransform(Protocol):
    """A transform that draws for each sample."""

    random: bool
    """True: it takes ``keys [B] uint64`` beside the batch."""

    def __call__(self, batch: Batch, keys: UInt64Array) -> Batch:
        """The batch to use, as `keys` decide."""
        ...


def is_random(transform: object) -> bool:
    """Whether a transform takes keys."""
    return getattr(transform, "random", False) is True


def apply(transform: Transform, batch: Batch, keys: UInt64Array | None = None) -> Batch:
    """Call a transform, with keys [B] if it is random, and check that it returns a `Batch`."""
    try:
        made: object = transform(batch) if keys is None else transform(batch, keys)
    except StopIteration as error:  # would end the iteration over batches
        raise RuntimeError(f"{transform!r} raised StopIteration") from error
    if not isinstance(made, Batch):
        raise ArgumentTypeError(
            f"{transform!r} returned a {type(made).__name__}, expected the Batch to use"
        )
    return made


def fields_read(transform: object) -> tuple[str, ...]:
    """Fields that change what a transform does: its attribute ``reads``."""
    return tuple(getattr(transform, "reads", ()))


class Compose:
    """Transforms, one after the other.

    Parameters
    ----------
    transforms : sequence of callable
        Each gets the batch that the one before it gave. Random ones draw independently. One that
        is a `Compose` itself contributes its transforms.

    Attributes
    ----------
    random : bool
        Whether one of them is.
    reads : tuple of str
        Fields that one of them needs where a store has them.

    Raises
    ------
    TypeError
        If one is not a transform, or returns something other than a `Batch`.

    Examples
    --------
    >>> from zarrpipe.transforms import ConvertUnits, GaussianNoise
    >>> Compose([GaussianNoise(0.01), ConvertUnits(energy="kcal/mol")]).random
    True
    """

    transforms: tuple[Transform, ...]

    def __init__(self, transforms: Sequence[Callable[..., Any]]) -> None:
        if not isinstance(transforms, list | tuple):
            raise ArgumentTypeError(f"transforms is {transforms!r}, expected a list of transforms")
        every: list[Transform] = []
        for one in map(checked, transforms):
            every += one.transforms if isinstance(one, Compose) else [one]
        self.transforms = tuple(every)
        self.random = any(map(is_random, self.transforms))
        self.reads = tuple({name: None for one in self.transforms for name in fields_read(one)})

    def __call__(self, batch: Batch, keys: UInt64Array | None = None) -> Batch:
        """The batch after all of them; `keys` [B] are needed if one is random."""
        number = 0
        for transform in self.transforms:
            if is_random(transform):
                if keys is None:
                    raise ArgumentTypeError(
                        f"{transform!r} draws by sample: call this with keys too, one for each "
                        "system, as zarrpipe.transforms.sample_keys gives them"
                    )
                batch = apply(transform, batch, child_keys(keys, number))
                number += 1
            else:
                batch = apply(transform, batch)
        return batch

    def __repr__(self) -> str:
        return f"Compose({list(self.transforms)})"


def checked(transform: object, what: str = "a transform") -> Transform:
    """The transform itself; refuses an object that cannot be called, and a class."""
    if not callable(transform):
        raise ArgumentTypeError(f"{what} is {transform!r}, expected a function of a Batch")
    if isinstance(transform, type):
        name = f"{_public_module(transform)}.{transform.__qualname__}"
        raise ArgumentTypeError(
            f"{what} is the class {name}, expected an instance: {transform.__name__}(...), or "
            f"in a configuration file 'class_path: {name}'"
        )
    return cast("Transform", transform)


def _public_module(kind: type) -> str:
    """Shortest name of a module or package from which a class can be imported."""
    parts = kind.__module__.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    exporting = (name for name in names if getattr(sys.modules[name], kind.__name__, None) is kind)
    return next(exporting, kind.__module__)


def as_transform(
    given: Transform | Sequence[Transform] | None, what: str = "transform"
) -> Transform | None:
    """Transform of an argument: None, one transform or a list of them."""
    if given is None:
        return None
    return Compose(given) if isinstance(given, list | tuple) else checked(given, what)


def joined(first: Transform | None, second: Transform | None) -> Transform | None:
    """Two transforms as one."""
    if first is None or second is None:
        return second if first is None else first
    return Compose([first, second])
