"""Stores and length of a training run, from its config."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunConfig:
    """Stores, and the numbers of steps and epochs, None for no limit."""

    stores: tuple[str, ...] = ()
    max_steps: int | None = None
    max_epochs: int | None = None


def read_config(path: Path) -> RunConfig:
    """Config of a run by LightningCLI or `DataMonitor`; an empty one where it says nothing."""
    import yaml  # noqa: PLC0415  Lightning needs it too

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml is not followed
        """Leaves out what only Python understands, as hyperparameters may be."""

    Loader.add_multi_constructor("", lambda *_: None)
    try:
        config = yaml.load(path.read_text(), Loader)  # noqa: S506  a SafeLoader
    except (OSError, ValueError, yaml.YAMLError):  # it may be half written
        return RunConfig()
    data, trainer = _part(config, "data"), _part(config, "trainer")
    stores = data.get("store", _part(data, "init_args").get("store"))
    named = [stores] if isinstance(stores, str) else stores if isinstance(stores, list) else []
    return RunConfig(
        tuple(_places(map(str, named), path.parent)),
        _limit(trainer.get("max_steps")),
        _limit(trainer.get("max_epochs")),
    )


def _part(config: Any, name: str) -> Mapping[str, Any]:
    part = config.get(name) if isinstance(config, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _places(stores: Iterable[str], directory: Path) -> Iterable[str]:
    """Stores as seen from here: a relative path is that of the folder where the run was started."""
    for store in stores:
        if "://" in store:
            yield store
            continue
        bases = [Path(), *directory.absolute().parents]
        yield str(next((base / store for base in bases if (base / store).exists()), Path(store)))
