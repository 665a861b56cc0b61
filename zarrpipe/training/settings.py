"""The arguments of a data module: how batches are made, checked when they are assigned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.epoch.batch_plan import IndexArray
from zarrpipe.training.epoch.mixing import Weights
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.transforms.compose import as_transform

_BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Settings:
    """How batches are put together and read; see the arguments of `ZarrDataModule`."""

    batch_size: int | None = None
    max_atoms: int | None = None
    max_edges: int | None = None
    balance: bool = False
    weights: Weights | None = None
    samples_per_epoch: int | None = None
    train_transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None
    seed: int = 0
    shuffle: str | None = None
    num_workers: int = 0
    prefetch: int = 0
    resident: bool = False

    def __post_init__(self) -> None:
        check_flag("balance", self.balance)
        check_flag("resident", self.resident)
        if self.shuffle not in ("samples", "blocks", None):
            raise ArgumentError(
                f"shuffle is {self.shuffle!r}, expected 'samples', 'blocks' or None"
            )
        known = as_transform(self.train_transform, "train_transform")
        object.__setattr__(self, "train_transform", known)
        self.sampler((), shuffle=True)
        for name in ("num_workers", "prefetch"):
            check_count(name, getattr(self, name), 0)
        if self.resident and self.num_workers:
            raise ArgumentError(f"num_workers is {self.num_workers}, expected 0 with resident=True")

    @classmethod
    def of(cls, **given: Any) -> "Settings":
        """Settings of arguments; without any limit of a batch it has 32 samples."""
        if all(given.get(name) is None for name in ("batch_size", "max_atoms", "max_edges")):
            given["batch_size"] = _BATCH_SIZE
        return cls(**given)

    def sampler(
        self,
        data: Any,
        *,
        shuffle: bool,
        index: IndexArray | None = None,
        in_blocks: bool = False,
    ) -> GraphBatchSampler:
        """Sampler of a split; `weights` and `balance` are for one that shuffles."""
        return GraphBatchSampler(
            data,
            self.batch_size,
            max_atoms=self.max_atoms,
            max_edges=self.max_edges,
            balance=self.balance and shuffle,
            shuffle=shuffle,
            seed=self.seed,
            index=index,
            blocks=data.blocks if in_blocks else None,
            weights=self.weights if shuffle else None,
            samples_per_epoch=self.samples_per_epoch if shuffle else None,
        )

    def loader(
        self,
        dataset: ZarrDataset,
        sampler: GraphBatchSampler,
        *,
        training: bool = False,
        convert: Callable[[Batch], Any] | None = None,
    ) -> GraphLoader:
        """Loader of the batches of a sampler."""
        return GraphLoader(
            dataset,
            sampler,
            num_workers=self.num_workers,
            prefetch=self.prefetch,
            transform=self.train_transform if training else None,  # type: ignore[arg-type]
            convert=convert,
        )

    def check(self, dataset: ZarrDataset) -> None:
        """Refuse a budget of edges where no store has edges."""
        levels = {field.level for field in dataset.schema.values()}
        if self.max_edges is not None and len(dataset) and Level.EDGE not in levels:
            raise ArgumentError(
                f"max_edges is {self.max_edges}, and no store has a neighbor_list or other edges, "
                "so it would limit nothing, as a transform adds edges to batches that are made "
                "already; expected max_atoms or batch_size"
            )

    @property
    def packed(self) -> bool:
        """Whether the number of batches depends on the sizes of samples."""
        return self.balance or self.max_atoms is not None or self.max_edges is not None


class Setting:
    """An argument that may be assigned: checked at once, used by the next loader.

    A subclass may assign it before ``super().__init__()``.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        if module is None:
            return self
        return getattr(module._loaders.settings, self._name) if _made(module) else self._own(module)

    def __set__(self, module: Any, value: Any) -> None:
        if _made(module):
            module._loaders.change(**{self._name: value})
        else:
            vars(module)[self._name] = value

    def _own(self, module: Any) -> Any:
        if self._name not in vars(module):
            raise AttributeError(
                f"{type(module).__name__} has no {self._name} yet: call super().__init__() first"
            )
        return vars(module)[self._name]


class Fixed(Setting):
    """An argument that cannot be assigned later, as datasets and splits follow from it."""

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        return self if module is None else self._own(module)

    def __set__(self, module: Any, value: Any) -> None:
        if _made(module):
            raise AttributeError(
                f"{self._name} cannot be assigned, as it decides what was read already: give it "
                f"to a new {type(module).__name__}({self._name}=...)"
            )
        vars(module)[self._name] = value


def _made(module: Any) -> bool:
    """Whether a data module was initialised."""
    return "_loaders" in vars(module)


def checked_device(name: str | torch.device) -> torch.device:
    """Device of a name; raises `ArgumentError` if torch does not know it."""
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"device is {name!r}, expected what torch.device takes, such as 'cpu' or 'cuda:1'"
        ) from error


def checked_converter(convert: Any) -> Callable[[Batch], Any] | None:
    """`convert` of a data module; refuses what cannot be called."""
    if convert is None or callable(convert):
        return convert  # type: ignore[no-any-return]
    raise ArgumentTypeError(
        f"convert is {convert!r}, expected a function of a Batch, or an object with __call__"
    )


def check_device(device: torch.device | None) -> None:
    """Refuse a CUDA device that this machine lacks."""
    if device is not None and device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ArgumentError(
                f"device is '{device}', and the number of CUDA devices that torch finds here is "
                f"{count}: expected one of these, or None for the device of the model"
            )
