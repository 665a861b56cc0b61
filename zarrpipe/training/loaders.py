"""The loader of each side of a data module, and the settings that loaders are made by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from zarrpipe.data.fields import Level
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError
from zarrpipe.training.epoch.mixing import Weights
from zarrpipe.training.epoch.plans import IndexArray
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.transforms.compose import as_transform

_BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Settings:
    """What loaders are made by; each as `ZarrDataModule` says it."""

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
        """Those of arguments, with a size of batches where none is given."""
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
        """Sampler of a side; weights and balance are for one that shuffles."""
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
        self, dataset: ZarrDataset, sampler: GraphBatchSampler, *, training: bool = False
    ) -> GraphLoader:
        """Loader of what a sampler decides."""
        return GraphLoader(
            dataset,
            sampler,
            num_workers=self.num_workers,
            prefetch=self.prefetch,
            transform=self.train_transform if training else None,  # type: ignore[arg-type]
        )

    def check(self, dataset: ZarrDataset) -> None:
        """Refuse a budget of edges where no store has edges, as it would limit nothing."""
        levels = {field.level for field in dataset.schema.values()}
        if self.max_edges is not None and len(dataset) and Level.EDGE not in levels:
            raise ArgumentError(
                f"max_edges is {self.max_edges}, and no store has a neighbor_list or other edges, "
                "so it would limit nothing: those that a transform finds are added when batches "
                "are made already; expected max_atoms or batch_size"
            )

    @property
    def packed(self) -> bool:
        """Whether the batches of an epoch are as many as its budgets make them."""
        return self.balance or self.max_atoms is not None or self.max_edges is not None


class Loaders:
    """The loaders that a data module gave, with their workers.

    A loader goes on with what it was made by, to the end of its epoch; where other settings were
    given meanwhile, the next one is made anew.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._kept: dict[str, tuple[Settings, GraphLoader]] = {}

    def change(self, **given: Any) -> None:
        """Make the loaders that come by other settings; those that cannot be change nothing.

        Nor do those that are there already, but for what may have been changed in itself.
        """
        settings = replace(self.settings, **given)
        if not all(_same(getattr(self.settings, name), value) for name, value in given.items()):
            self.settings = settings

    def get(self, name: str) -> GraphLoader | None:
        """The last loader of a side."""
        return self._kept[name][1] if name in self._kept else None

    def current(self, name: str) -> GraphLoader | None:
        """The last loader of a side if it has the settings of now."""
        made_by, loader = self._kept.get(name, (None, None))
        return loader if made_by is self.settings else None

    def keep(self, name: str, loader: GraphLoader) -> None:
        """Put a loader in the place of the last one of its side, whose workers end."""
        last = self.get(name)
        if last is not None:
            last.close()
        self._kept[name] = self.settings, loader

    def close(self) -> None:
        """Let go of all loaders and end their workers."""
        for _, loader in self._kept.values():
            loader.close()
        self._kept = {}


def _same(known: object, given: object) -> bool:
    """Whether a value is one that was known, and cannot have been changed meanwhile."""
    if not isinstance(known, int | str | None):
        return False
    return type(known) is type(given) and known == given


class Setting:
    """An argument of a data module that may be assigned: checked then, obeyed by later loaders.

    What a subclass assigns before the data module is made stands until then.
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
    """An argument of a data module that decides what its datasets and sides are, for good."""

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
    """Whether a data module has its arguments."""
    return "_loaders" in vars(module)


def checked_device(name: str | torch.device) -> torch.device:
    """A device by its name."""
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"device is {name!r}, expected what torch.device takes, such as 'cpu' or 'cuda:1'"
        ) from error


def check_device(device: torch.device | None) -> None:
    """Refuse a CUDA device that is not here, before anything is moved to it."""
    if device is not None and device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ArgumentError(
                f"device is '{device}', and the number of CUDA devices that torch finds here is "
                f"{count}: expected one of these, or None for where Lightning has the model"
            )
