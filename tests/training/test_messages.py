"""What is wrong, what was expected and the way out, for what users type in."""

import re

import numpy as np
import pytest

from zarrpipe import GraphBatchSampler, ZarrDataModule, ZarrDataset, write_split
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.training.splits.assignment import SplitRule
from zarrpipe.transforms import GaussianNoise, NeighborList, RandomRotation


@pytest.fixture(scope="module")
def stored(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("stored")
    data.append(place / "store", data.batch(30))
    data.append(place / "bare", data.batch(10, edges=False))
    data.append(place / "few", data.batch(4))
    ids = ZarrDataset(place / "store").ids
    (place / "ids.txt").write_text("\n".join(map(str, ids)))
    (place / "empty.npy").touch()
    (place / "other.npy").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    np.save(place / "cut.npy", ids)
    with (place / "cut.npy").open("r+b") as file:
        file.truncate(200)
    np.save(place / "positions.npy", np.arange(3))
    np.savez(place / "two.npz", a=ids, b=ids)
    return place


def module(stored, store="store", **arguments):
    """Up to where batches are asked for; a split that is a text is the file of validation."""
    if isinstance(arguments.get("split"), str):
        arguments["split"] = {"val": stored / arguments["split"]}
    made = ZarrDataModule(stored / store, **arguments)
    made.setup("fit")
    made.train_dataloader()


def sampler(stored, data=None, stores=("store",), **arguments):
    if data is None:
        data = ZarrDataset([stored / store for store in stores])
    GraphBatchSampler(data, **{"batch_size": 4, **arguments})


def where(stored, text):
    ZarrDataset(stored / "store").where(text)


def written(stored, path, dataset=None, index=None):
    if dataset is None:
        dataset = ZarrDataset(stored / "store")
    write_split(stored / path, dataset, index)


def made(stored, kind, argument):
    kind(argument)


WAY_OUT = r".*write the ids of those samples with zarrpipe\.write_split\("
ONE_NUMBER = r"expected one with a number for each sample, such as \['energy', 'serial'\]"
VALUE, TYPE, SCHEMA = ArgumentError, ArgumentTypeError, SchemaError

TABLE = [
    # Index files
    (module, {"split": "ids.txt"}, VALUE, rf"ids.txt', which is text, expected a \.npy{WAY_OUT}"),
    (module, {"split": "empty.npy"}, VALUE, rf"is empty, expected a \.npy file of ids{WAY_OUT}"),
    (module, {"split": "other.npy"}, VALUE, rf"is no file of NumPy's, expected a \.npy{WAY_OUT}"),
    (module, {"split": "two.npz"}, VALUE, rf"an archive of arrays \(\.npz\), expected{WAY_OUT}"),
    (module, {"split": "cut.npy"}, VALUE, r"cut off, damaged .*: write it anew with zarrpipe\.w"),
    (module, {"split": "positions.npy"}, VALUE, rf"which has int64 and so no ids{WAY_OUT}"),
    (module, {"split": "gone.npy"}, VALUE, r"cannot be read \(No such file.*zarrpipe\.write_sp"),
    (written, {"path": "no/val.npy"}, VALUE, r"is in no directory: .*no; expected the place of a"),
    (written, {"path": "."}, VALUE, "is a directory; expected the place of a .npy file"),
    (
        written,
        {"path": "a.npy", "dataset": "b"},
        TYPE,
        r"dataset is 'b', expected a ZarrDataset: w",
    ),
    # Shares
    (module, {"split": ["a", 0.5, 0.5]}, TYPE, r"fractions are \['a', 0.5, 0.5\], expected num"),
    (module, {"split": (None, 0.5, 0.5)}, TYPE, r"are \[None, 0.5, 0.5\], expected numbers"),
    (module, {"split": {"val": 2}}, VALUE, r"shares \{'val': 2.0\}, expected each of 0 or more "),
    (module, {"split": {"val": "10"}}, VALUE, r"shares \{'val': 10.0\}, expected each of 0 or m"),
    (module, {"split": {"val": -0.1}}, VALUE, r"shares \{'val': -0.1\}, expected each of 0 or m"),
    (module, {"split": {"valid": 0.1}}, VALUE, r"'valid', which is no split: expected some of"),
    (module, {"split_by": None}, TYPE, "split_by is None, expected 'id' or the name of a field"),
    (module, {"split_by": "forces"}, SCHEMA, "'forces', a field at level 'atom': expected 'id' or"),
    (module, {"split_by": "mol"}, SCHEMA, r"no store has a field 'mol', they have \["),
    # Conditions
    (where, {"text": "round >= 3 and"}, VALUE, r"it ends after 'round >= 3 and' \(character 14\)"),
    (where, {"text": "num_atoms = 3"}, VALUE, r"at '= 3' \(character 11\): expected '==' for '='"),
    (
        where,
        {"text": "num_atoms > 3 && 1"},
        VALUE,
        r"at '& 1' \(character 16\): expected 'and' for",
    ),
    (
        where,
        {"text": "num_atoms > 3 OR 1"},
        VALUE,
        r"at 'OR 1' \(character 15\): expected 'or' for",
    ),
    (where, {"text": "!has(forces)"}, VALUE, r"\(character 1\): expected 'not' for '!'"),
    (where, {"text": "num_atoms 3"}, VALUE, r"at '3' \(character 11\): invalid syntax; it may ha"),
    (where, {"text": "has(forces"}, VALUE, r"at '\(forces' \(character 4\): '\(' was never closed"),
    (where, {"text": "  "}, VALUE, "where is empty, expected a text such as 'round >= 3'"),
    (
        where,
        {"text": "num_atoms == 'a'"},
        SCHEMA,
        r"at 'num_atoms' \(character 1\): 'num_atoms' has no strings: compare it with numbers",
    ),
    # Weights
    (sampler, {"weights": "positions"}, VALUE, rf"'positions', .* level 'atom': {ONE_NUMBER}"),
    (sampler, {"weights": {"forces": {0: 1}}}, VALUE, rf"'forces', .* level 'atom': {ONE_NUMBER}"),
    (sampler, {"weights": "nope"}, SCHEMA, r"no store has a field 'nope', they have \["),
    (sampler, {"weights": [1, 2]}, VALUE, "shares of 2 stores, and the dataset has 1: expected"),
    (
        sampler,
        {"weights": [1], "stores": ["store", "bare"]},
        VALUE,
        "shares of 1 store, and the dataset has 2: expected one share for each store",
    ),
    (sampler, {"weights": [1], "data": range(9)}, TYPE, "range has none: expected a ZarrDataset"),
    (sampler, {"weights": "a", "data": range(9)}, TYPE, "range has no fields: expected a ZarrData"),
    # Batches
    (sampler, {"max_atoms": 9, "data": range(9)}, TYPE, "range has no num_atoms.*: expected a Zar"),
    (sampler, {"seed": "a"}, TYPE, "seed is 'a', expected an integer of at least 0"),
    (sampler, {"seed": 1.5}, TYPE, "seed is 1.5, expected an integer of at least 0"),
    (sampler, {"shuffle": "no"}, TYPE, "shuffle is 'no', expected True or False"),
    (sampler, {"balance": "no"}, TYPE, "balance is 'no', expected True or False"),
    (sampler, {"index": [0.5]}, TYPE, r"index has .* dtype float64, expected \[n\] int$"),
    (sampler, {"index": [True] * 30}, TYPE, r"expected \[n\] int; np.flatnonzero\(mask\) has"),
    (sampler, {"index": [[1, 2]]}, TYPE, r"index has shape \(1, 2\) and dtype int64, expected"),
    (sampler, {"index": [3, 30]}, VALUE, "index has 3 to 30, expected indices of 30 samples, 0 to"),
    (sampler, {"index": [-1, 2]}, VALUE, "index has -1 to 2, expected indices of 30 samples"),
    (module, {"balance": "false"}, TYPE, "balance is 'false', expected True or False"),
    (
        module,
        {"store": "bare", "max_edges": 500},
        VALUE,
        "max_edges is 500, and no store has .* edges, .* a transform .*; expected max_atoms or b",
    ),
    (module, {"seed": None}, TYPE, "seed is None, expected an integer of at least 0"),
    (module, {"seed": "a"}, TYPE, "seed is 'a', expected an integer of at least 0"),
    (module, {"device": "gpu"}, VALUE, "device is 'gpu', expected what torch.device takes, such"),
    (
        module,
        {"device": "cuda:99"},
        VALUE,
        r"device is 'cuda:99', and the number of CUDA devices .* here is \d+: expected one of",
    ),
    # Transforms
    (made, {"kind": GaussianNoise, "argument": "0.02"}, VALUE, "'0.02', expected a finite num"),
    (made, {"kind": NeighborList, "argument": None}, VALUE, "cutoff is None, expected a positive"),
    (made, {"kind": NeighborList, "argument": "4"}, VALUE, "cutoff is '4', expected a positive"),
    (made, {"kind": RandomRotation, "argument": 1}, TYPE, "ranks is 1, expected ranks by field, "),
]


@pytest.mark.parametrize(
    ("call", "arguments", "error", "message"),
    TABLE,
    ids=[f"{row[0].__name__}{place}" for place, row in enumerate(TABLE)],
)
def test_what_is_typed_in_wrongly(stored, call, arguments, error, message):
    with pytest.raises(error) as caught:
        call(stored, **arguments)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_a_data_module_needs_a_store():
    with pytest.raises(ArgumentTypeError, match="store is None, expected the place of a store"):
        ZarrDataModule(None)


def test_indices_that_come_later_are_looked_at_too(stored):
    known = GraphBatchSampler(ZarrDataset(stored / "store"), 4)
    with pytest.raises(ArgumentError, match="index has 30 to 30, expected indices of 30 samples"):
        known.resample([30])
    assert sorted(one for batch in known for one in batch) == list(range(30))


def test_the_state_of_a_module_that_has_not_begun_is_loaded_again(stored):
    fresh = ZarrDataModule(stored / "store", batch_size=4)
    fresh.load_state_dict(fresh.state_dict())
    assert fresh.train_dataloader().sampler.step == 0


def test_a_share_may_be_a_text_as_in_a_sequence():
    assert SplitRule.of({"val": "0.1"}, "id") == SplitRule.of({"val": 0.1}, "id")
    assert SplitRule.of(["0.8", "0.1", "0.1"], "id") == SplitRule.of([0.8, 0.1, 0.1], "id")


def test_a_side_of_validation_that_is_empty_is_said_before_a_fit(stored):
    with pytest.warns(
        UserWarning, match=r"none of 4 samples is in the validation split \(val\), whose share i"
    ):
        ZarrDataModule(stored / "few").setup("fit")
    ZarrDataModule(stored / "few", split=(1.0, 0.0, 0.0)).setup("fit")  # as was asked for
    ZarrDataModule(stored / "few").setup("test")
