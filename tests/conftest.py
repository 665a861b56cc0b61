"""Fixtures that all tests share, and the profiles of Hypothesis."""

import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from zarrpipe import AtomicData, Batch, ZarrData
from zarrpipe.store.backend.location import StoreLike

collect_ignore = ["fixtures"]

# A shell that runs the tests in the background ignores interrupts, and so would every child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the time of a test on a shared machine says nothing about the code. On a desk,
# examples differ from run to run, so that many runs see more of the space than one fixed sample; a
# failing example is printed as a blob that reproduces it. Continuous integration draws the same
# examples in each run, so that a change fails for what it changed.
for name, examples, same in (("quick", 10, False), ("desk", 25, False), ("ci", 25, True)):
    settings.register_profile(
        name,
        deadline=None,
        max_examples=examples,
        derandomize=same,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )

_REPEATED = ("benchmarks", "peers", "recipes", "reliability")
"""Folders of tests that repeat at length what the tests of each room do once."""


_NOT_SLOW = pytest.StashKey[set[Path]]()
_SKIPPED = pytest.StashKey[set[Path]]()
"""Modules that need what this machine does not have, such as a browser."""


def _is_quick(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "not slow"


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples are drawn; `--hypothesis-profile` has the last word."""
    if config.getoption("--hypothesis-profile") is None:
        always = "ci" if os.environ.get("CI") else "desk"
        settings.load_profile("quick" if _is_quick(config) else always)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Leave out doctests: they would skip a module that cannot be imported, its tests too."""
    collectors = yield
    return [one for one in collectors if type(one).__name__ != "DoctestModule"]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Remember the modules that are skipped as a whole."""
    report = yield
    if report.skipped:
        collector.config.stash.setdefault(_SKIPPED, set()).add(collector.path)
    return report


@pytest.hookimpl(tryfirst=True)  # before any test is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Trace neither repetitions nor slow tests: tracing can take as long as the test itself."""
    config.stash[_NOT_SLOW] = {one.path for one in items if not one.get_closest_marker("slow")}
    config.stash[_NOT_SLOW] |= config.stash.get(_SKIPPED, set())
    if not config.pluginmanager.hasplugin("_cov"):
        return
    for item in items:
        drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if drawn or item.path.parent.name in _REPEATED or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session")
def modules_not_slow(pytestconfig: pytest.Config) -> set[Path]:
    """The modules that have a test which `make test` runs, or that cannot run on this machine."""
    return pytestconfig.stash[_NOT_SLOW]


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether slow tests are left out (`make test`); the others then repeat less too."""
    return _is_quick(pytestconfig)


@pytest.fixture
def seed() -> int:
    """Differs from run to run on a desk, as examples do, unless ZARRPIPE_SEED says which."""
    given = os.environ.get("ZARRPIPE_SEED", "0" if os.environ.get("CI") else "")
    chosen = int(given) if given else secrets.randbelow(2**32)
    print(f"ZARRPIPE_SEED={chosen}")  # noqa: T201  shown when the test fails
    return chosen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Undo what importing mace-torch does, before any fixture: it lets torch.load unpickle all."""
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


def random_batch(count: int, seed: int = 0, *, edges: bool = True, tag: int = 0) -> Batch:
    """`count` systems of 1 to 6 atoms; field `serial` counts them from 1000 * tag."""
    random = np.random.default_rng([seed, tag])
    systems = []
    for serial in range(count):
        atoms = int(random.integers(1, 7))
        fields: dict[str, object] = {}
        if edges:
            shape = (int(random.integers(0, 5)), 2)
            fields["neighbor_list"] = random.integers(0, atoms, size=shape)
        systems.append(
            AtomicData(
                torch.from_numpy(random.normal(size=(atoms, 3))),
                torch.from_numpy(random.choice([1, 6, 8], size=atoms)),
                energy=torch.tensor([[float(random.normal())]], dtype=torch.float64),
                forces=torch.from_numpy(random.normal(size=(atoms, 3))),
                system={"serial": torch.tensor([serial + 1000 * tag])},
                **fields,
            )
        )
    return Batch.from_data_list(systems)


def append(store: StoreLike, batch: Batch) -> Batch:
    """Append to a store, as a sink does, and give the batch back."""
    with ZarrData(store, capacity=1000) as sink:
        sink.write(batch)
    return batch


def assert_equal(got: Batch, expected: Batch) -> None:
    assert set(got.fields) == set(expected.fields)
    assert torch.equal(got.batch_ptr, expected.batch_ptr)
    for name, value in expected.fields.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name
    assert got.partly_present == expected.partly_present
    for name in expected.partly_present:
        assert torch.equal(got.present(name), expected.present(name)), name


@pytest.fixture(scope="session")
def data() -> SimpleNamespace:
    """Helpers: ``data.batch(count, ...)``, ``data.append(store, batch)``, ``data.same(a, b)``."""
    return SimpleNamespace(batch=random_batch, append=append, same=assert_equal)


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Batch]:
    """A store of 40 systems, and the batch that was written."""
    return tmp_path / "store", append(tmp_path / "store", random_batch(40))


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module transforms.py, under a name by which worker processes import it too."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "training")
    return importlib.import_module("transforms")


@pytest.fixture(scope="session")
def two_ranks_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that test_ddp.py trains on and grows."""
    path = tmp_path_factory.mktemp("grown") / "store"
    append(path, random_batch(40))
    return path


class Trained:
    """What a run of training_runs.py left: exit codes, and what the first rank noted by kind."""

    def __init__(self, codes: list[int], output: Path) -> None:
        self.codes, self.output = codes, output
        self.ranks = [
            [json.loads(line) for line in (output / f"rank{rank}.jsonl").read_text().splitlines()]
            for rank in range(len(codes))
        ]
        self.lines = self.ranks[0]
        self.text = "\n".join(
            (output / f"rank{rank}.txt").read_text()[-9000:] for rank in range(len(codes))
        )

    def __getitem__(self, kind: str) -> list[list[Any]]:
        return self.of(kind, 0)

    def of(self, kind: str, rank: int) -> list[list[Any]]:
        """What a rank noted under a name."""
        return [rest for name, *rest in self.ranks[rank] if name == kind]

    @property
    def last(self) -> str:
        """The checkpoint to resume from."""
        return str(self.output / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="session")
def training() -> Iterator[Callable[..., Trained]]:
    """Runs a job of training_runs.py in processes of its own: ``training(output, **job)``."""
    script = Path(__file__).parent / "training" / "training_runs.py"
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(output: Path, **job: Any) -> Trained:
            output.mkdir(exist_ok=True)
            server.stdin.write(json.dumps({**job, "output": str(output)}) + "\n")
            server.stdin.flush()
            return Trained(json.loads(server.stdout.readline()), output)

        yield run
        server.stdin.close()


@pytest.fixture
def one_thread():
    """Networks this small are several times slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mace():
    """mace-torch, imported, or a skipped test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mace", reason="the extra 'mace' is not installed")
        importlib.import_module("mace.modules")
