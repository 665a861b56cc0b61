import subprocess
import sys
from itertools import pairwise

import pytest
import torch

import zarrpipe as zp
from zarrpipe import adapters
from zarrpipe.adapters import registry as _registry
from zarrpipe.errors import FieldError


def system(count: int, number: int = 2) -> zp.AtomicData:
    positions = torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)
    return zp.AtomicData(positions=positions, atomic_numbers=[number] * count)


def test_public_names_are_sorted_and_complete():
    assert all(first < second for first, second in pairwise(adapters.__all__))
    assert all(hasattr(adapters, name) for name in adapters.__all__)


def test_importing_the_adapters_imports_no_other_library():
    libraries = ("ase", "torch_geometric", "torch_sim", "mace", "nvalchemi", "e3nn")
    program = (
        "import sys, zarrpipe.adapters as a, zarrpipe as zp\n"
        "a.as_batch(zp.AtomicData(positions=[[0.0, 0.0, 0.0]], atomic_numbers=[2]))\n"
        f"print([name for name in {libraries} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_batch_is_handed_back_as_it_is():
    batch = zp.Batch.from_data_list([system(2)])
    assert adapters.as_batch(batch) is batch


def test_own_objects_and_lists_of_them_keep_their_order():
    batch = adapters.as_batch([system(1), zp.Batch.from_data_list([system(2), system(3)])])
    assert batch.num_nodes_list == [1, 2, 3]
    assert adapters.as_batch(system(4)).num_nodes_list == [4]
    assert adapters.as_batch((system(4),)).num_nodes_list == [4]


@pytest.mark.parametrize("obj", [3, "water.xyz", {"positions": []}, None, object()])
def test_an_unknown_type_is_named_with_the_way_out(obj):
    name = type(obj).__qualname__
    with pytest.raises(TypeError, match=rf"{name}: expected zarrpipe.Batch.*register\(cls"):
        adapters.as_batch(obj)
    with pytest.raises(TypeError, match=name):
        adapters.as_batch([system(1), obj])


def test_an_empty_list_is_refused():
    with pytest.raises(FieldError, match="empty list"):
        adapters.as_batch([])


def test_an_option_that_the_adapter_does_not_know_is_refused():
    with pytest.raises(TypeError, match="info"):
        adapters.as_batch([system(1)], info=["temperature"])


class Frame:
    def __init__(self, count: int) -> None:
        self.count = count


class LabelledFrame(Frame):
    pass


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(_registry, "_ADAPTERS", list(_registry._ADAPTERS))


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_class_its_children_and_mixed_lists():
    adapters.register(Frame, lambda frame: system(frame.count, number=3))
    batch = adapters.as_batch([Frame(2), system(1), LabelledFrame(3), Frame(1)])
    assert batch.num_nodes_list == [2, 1, 3, 1]
    assert batch.atomic_numbers.tolist() == [3, 3, 2, 3, 3, 3, 3]


@pytest.mark.usefixtures("clean_registry")
def test_the_nearest_class_and_the_latest_registration_win():
    adapters.register(LabelledFrame, lambda frame: system(frame.count, number=5))
    adapters.register(Frame, lambda frame: system(frame.count, number=3))
    assert adapters.as_batch(LabelledFrame(1)).atomic_numbers.tolist() == [5]
    adapters.register(Frame, lambda frame: [system(1, number=7), system(2, number=7)])
    assert adapters.as_batch(Frame(9)).num_nodes_list == [1, 2]


@pytest.mark.usefixtures("clean_registry")
def test_a_path_registers_what_is_defined_below_it_and_options_reach_the_function():
    package = Frame.__module__
    adapters.register(f"{package}.Frame", lambda frame, number=1: system(frame.count, number))
    assert adapters.as_batch(Frame(1), number=8).atomic_numbers.tolist() == [8]


@pytest.mark.parametrize("path", ["Frame", ".Frame", "mylib."])
def test_a_path_without_a_package_is_refused(path):
    with pytest.raises(ValueError, match="no dotted path"):
        adapters.register(path, system)


@pytest.mark.parametrize(
    ("function", "module", "extra"),
    [
        (adapters.to_ase, "ase", "ase"),
        (adapters.to_pyg, "torch_geometric.data", "pyg"),
        (adapters.to_torch_sim, "torch_sim", "torch-sim"),
        (adapters.to_nvalchemi, "nvalchemi.data", "nvalchemi"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_installs_it(
    monkeypatch, function, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{module}' is needed.*zarrpipe\[{extra}\]"):
        function(zp.Batch.from_data_list([system(1)]))
