"""The contract of `ZarrData`, as tests for any kind of store."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import zarr

from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import FieldSpec, Kind
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.sink import ZarrData
from zarrpipe.testing.batches import (
    assert_batches_equal,
    assert_plain_zarr,
    random_batch,
)

MakeSink = Callable[..., ZarrData]


def _raises(error: type[Exception], match: str) -> AbstractContextManager[Any, bool]:
    import pytest  # noqa: PLC0415  needed by tests alone

    return pytest.raises(error, match=match)


_OWN = (
    FieldSpec("tag", Level.SYSTEM, Kind.INTEGER),
    FieldSpec("weights", Level.ATOM, shape=(2, 3)),
    FieldSpec("bond_order", Level.EDGE, shape=(1,)),
    FieldSpec("chosen", Level.SYSTEM, Kind.BOOL),
)


class SinkContract:
    """Tests of the promises of a sink on any kind of store; a subclass adds ``make_sink``.

    A subclass has one pytest fixture, ``make_sink``: a function of one argument, ``capacity``
    (with a default of at least 1000). Each call opens another sink on the same store, which is
    empty when a test begins.
    """

    rng_seed = 7

    @property
    def rng(self) -> np.random.Generator:
        """New generator, the same for every test."""
        return np.random.default_rng(self.rng_seed)

    def batches(self, *sizes: int, **options: Any) -> list[Batch]:
        """Random batches of the given sizes, with edges unless `options` say otherwise."""
        rng = self.rng
        return [random_batch(rng, size, **({"edges": (0, 5)} | options)) for size in sizes]

    def test_a_new_sink_is_empty(self, make_sink: MakeSink) -> None:
        """Length 0, not full, and nothing to read or drain."""
        sink = make_sink(3)
        assert (len(sink), sink.is_full, sink.capacity) == (0, False, 3)
        with _raises(RuntimeError, "empty"):
            sink.read()
        with _raises(RuntimeError, "empty"):
            sink.drain()
        sink.zero()
        assert len(sink) == 0

    def test_reads_what_was_written(self, make_sink: MakeSink) -> None:
        """Several writes read back as their concatenation, neighbour lists included."""
        sink, parts = make_sink(), self.batches(3, 1, 4, 2)
        for count, part in zip((3, 4, 8, 10), parts, strict=True):
            sink.write(part)
            assert len(sink) == count
        assert_batches_equal(sink.read(), Batch.concatenate(parts))
        assert_batches_equal(sink.read(), Batch.concatenate(parts))

    def test_a_mask_chooses_systems_in_order(self, make_sink: MakeSink) -> None:
        """Exactly the masked systems are written."""
        sink, rng = make_sink(), self.rng
        expected = []
        for part in self.batches(6, 5, 7):
            mask = rng.random(part.num_graphs) < 0.5
            sink.write(part, mask=torch.from_numpy(mask))
            expected += [part.get_data(int(index)) for index in np.flatnonzero(mask)]
        assert len(sink) == len(expected)
        assert_batches_equal(sink.read(), Batch.from_data_list(expected))

    def test_nothing_to_write_writes_nothing(self, make_sink: MakeSink) -> None:
        """A mask that is all False and a batch of no systems leave the sink as it is."""
        sink, (part,) = make_sink(), self.batches(3)
        sink.write(part, mask=torch.zeros(3, dtype=torch.bool))
        sink.write(part.index_select([]))
        assert len(sink) == 0
        sink.write(part)
        sink.write(part, mask=torch.zeros(3, dtype=torch.bool))
        sink.write(part.index_select([]))
        assert_batches_equal(sink.read(), part)

    def test_refuses_a_mask_that_does_not_fit(self, make_sink: MakeSink) -> None:
        """ValueError for a wrong length or dtype, and nothing is written."""
        sink, (part,) = make_sink(), self.batches(3)
        with _raises(ValueError, r"mask has .*shape \(2,\), expected bool and \(3,\)"):
            sink.write(part, mask=torch.ones(2, dtype=torch.bool))
        with _raises(ValueError, r"mask has .*shape \(3, 1\)"):
            sink.write(part, mask=torch.ones(3, 1, dtype=torch.bool))
        for dtype in (torch.int64, torch.float32, torch.uint8):
            with _raises(ValueError, f"mask has dtype {dtype}"):
                sink.write(part, mask=torch.ones(3, dtype=dtype))
        assert len(sink) == 0

    def test_capacity_is_all_or_nothing(self, make_sink: MakeSink) -> None:
        """A write that does not fit raises and changes nothing; a smaller one still fits."""
        sink = make_sink(5)
        first, second = self.batches(3, 3)
        sink.write(first)
        with _raises(RuntimeError, "full.*3 of 5.*3 more"):
            sink.write(second)
        assert_batches_equal(sink.read(), first)
        assert not sink.is_full
        mask = torch.tensor([False, True, True])
        sink.write(second, mask=mask)
        assert (len(sink), sink.is_full) == (5, True)
        expected = Batch.concatenate([first, second.index_select(mask)])
        with _raises(RuntimeError, "full"):
            sink.write(second.index_select([0]))
        assert_batches_equal(sink.read(), expected)

    def test_too_much_at_once_leaves_no_store(self, make_sink: MakeSink) -> None:
        """The first write of all can be refused."""
        sink, (part,) = make_sink(2), self.batches(3)
        with _raises(RuntimeError, "full"):
            sink.write(part)
        assert len(sink) == 0
        sink.write(part.index_select([0, 2]))
        assert_batches_equal(sink.read(), part.index_select([0, 2]))

    def test_drain_returns_everything_and_clears(self, make_sink: MakeSink) -> None:
        """A drained sink is empty and takes as much as before, with other fields."""
        sink = make_sink(5)
        parts = self.batches(2, 3)
        for part in parts:
            sink.write(part)
        assert_batches_equal(sink.drain(), Batch.concatenate(parts))
        assert (len(sink), sink.is_full) == (0, False)
        with _raises(RuntimeError, "empty"):
            sink.read()
        (other,) = self.batches(5, dtype=torch.float64, edges=None, fields=("stress",))
        sink.write(other)
        assert_batches_equal(sink.drain(), other)

    def test_zero_clears(self, make_sink: MakeSink) -> None:
        """After `zero` the sink is as new, also for the next one that opens the store."""
        sink, (part, other) = make_sink(), self.batches(4, 2)
        sink.write(part)
        sink.zero()
        assert len(sink) == 0
        sink.write(other.without("energy"))
        sink.close()
        assert_batches_equal(make_sink().read(), other.without("energy"))

    def test_zero_removes_only_its_own(self, make_sink: MakeSink) -> None:
        """Arrays, groups and attributes of others in the same hierarchy survive."""
        sink, (part,) = make_sink(), self.batches(4)
        sink.write(part)
        group = zarr.open_group(sink.store, mode="r+")
        group.create_array("spectra", data=np.arange(5))
        group.create_group("analysis").create_array("rdf", data=np.arange(7))
        group.create_array("custom/of_another", data=np.arange(3))
        group.attrs["note"] = "keep"
        sink.write(part)
        sink.zero()
        sink.write(part)
        sink.zero()
        sink.close()
        group = zarr.open_group(sink.store, mode="r")
        for path, rows in {"spectra": 5, "analysis/rdf": 7, "custom/of_another": 3}.items():
            np.testing.assert_array_equal(group[path][:], np.arange(rows))  # type: ignore[index]
        assert group.attrs["note"] == "keep"
        assert "core/positions" not in group

    def test_continues_a_store(self, make_sink: MakeSink) -> None:
        """Length, capacity check, read and write follow what is stored."""
        parts = self.batches(3, 2, 2)
        with make_sink(7) as sink:
            sink.write(parts[0])
        for count, part in zip((3, 5), parts[1:], strict=True):
            sink = make_sink(7)
            assert len(sink) == count
            assert_batches_equal(sink.read(), Batch.concatenate(parts[: parts.index(part)]))
            sink.write(part)
            sink.close()
        sink = make_sink(7)
        assert sink.is_full
        with _raises(RuntimeError, "full.*7 of 7"):
            sink.write(parts[0])
        assert_batches_equal(sink.read(), Batch.concatenate(parts))
        with _raises(ValueError, "has 7 samples, more than capacity=6"):
            make_sink(6)

    def test_others_see_writes_at_once(self, make_sink: MakeSink) -> None:
        """A second sink that only reads follows the first, which stays open."""
        writer, reader = make_sink(), make_sink()
        parts = self.batches(2, 3, 1)
        for count, part in zip((2, 5, 6), parts, strict=True):
            writer.write(part)
            assert len(reader) == count
        assert_batches_equal(reader.read(), Batch.concatenate(parts))

    def test_fields_may_be_absent(self, make_sink: MakeSink) -> None:
        """Batches that lack a field, or some of whose systems do, keep presence."""
        sink = make_sink()
        full, some, none = self.batches(3, 6, 2)
        (some,) = self.batches(6, absent=0.5)
        parts = [full, some, none.without("energy", "forces"), full]
        for part in parts:
            sink.write(part)
        expected = Batch.concatenate(parts)
        assert_batches_equal(sink.read(), expected)
        assert not bool(sink.read().present("energy")[9:11].any())

    def test_fields_may_come_later(self, make_sink: MakeSink) -> None:
        """A field that is new from some write on is absent before."""
        sink = make_sink()
        plain = self.batches(3, edges=None, fields=())[0]
        labelled = self.batches(2, fields=("energy", "stress", "pbc", *_OWN))[0]
        parts = [plain, plain, labelled, plain]
        for part in parts:
            sink.write(part)
        sink.close()
        assert_batches_equal(make_sink().read(), Batch.concatenate(parts))

    def test_own_fields_of_every_level(self, make_sink: MakeSink) -> None:
        """A user's own fields keep level, dtype, shape and values."""
        parts = self.batches(3, 2, fields=("energy", *_OWN), dtypes={"tag": torch.int32})
        with make_sink() as sink:
            for part in parts:
                sink.write(part)
        found = make_sink().read()
        assert_batches_equal(found, Batch.concatenate(parts))
        assert {name: found.levels[name] for name in ("tag", "weights", "bond_order")} == {
            "tag": "system",
            "weights": "atom",
            "bond_order": "edge",
        }

    def test_a_clash_changes_nothing(self, make_sink: MakeSink) -> None:
        """Another dtype, level or trailing shape raises ValueError before a byte is written."""
        sink = make_sink()
        (part,) = self.batches(3, fields=("energy", *_OWN))
        sink.write(part)
        clashes = {
            "float64": part.to(dtype=torch.float64),
            "level": part.without("tag").add_field("tag", torch.zeros(part.num_nodes), "atom"),
            "shape": part.without("weights").add_field(
                "weights", torch.zeros(part.num_nodes, 5), "atom"
            ),
        }
        for expected, clash in clashes.items():
            extended = clash.clone().add_field("later", torch.zeros(3), "system")
            for refused in (clash, extended):
                with _raises(ValueError, expected):
                    sink.write(refused)
        assert_batches_equal(sink.read(), part)
        sink.write(part)
        sink.close()
        assert_batches_equal(make_sink().read(), Batch.concatenate([part, part]))

    def test_only_casts_without_loss(self, make_sink: MakeSink) -> None:
        """float64 is refused by a float32 store; a float64 store takes float32 exactly."""
        sink, (part,) = make_sink(), self.batches(3)
        sink.write(part)
        energy = part.clone().add_field("energy", part.energy.double() * 1e300)
        with _raises(ValueError, "'energy' has dtype float64, the store has float32"):
            sink.write(energy)
        assert_batches_equal(sink.drain(), part)
        sink.write(part.to(dtype=torch.float64))
        sink.write(part)
        expected = Batch.concatenate([part, part]).to(dtype=torch.float64)
        assert_batches_equal(sink.read(), expected)

    def test_takes_tensors_with_gradients(self, make_sink: MakeSink) -> None:
        """Tensors of an autograd graph are written by value and stay in their graph."""
        sink, (part,) = make_sink(), self.batches(2)
        part.positions.requires_grad_()
        part.energy = part.positions.sum() * torch.ones(2, 1)
        sink.write(part)
        assert_batches_equal(sink.read(), part)
        assert not sink.read().positions.requires_grad
        assert part.positions.requires_grad

    def test_takes_strided_tensors(self, make_sink: MakeSink) -> None:
        """Views that are not contiguous are written by value."""
        sink, (part,) = make_sink(), self.batches(2)
        part.forces = torch.randn(3, part.num_nodes).T
        sink.write(part)
        assert_batches_equal(sink.read(), part)

    def test_takes_single_systems_and_lists(self, make_sink: MakeSink) -> None:
        """`AtomicData` and lists of them are batches too."""
        sink, (part,) = make_sink(), self.batches(4)
        systems = part.to_data_list()
        sink.write(systems[0])
        sink.write(systems[1:3])
        sink.write(systems[2:], mask=torch.tensor([False, True]))
        assert_batches_equal(sink.read(), part)
        with _raises(TypeError, "no adapter"):
            sink.write(object())
        with _raises(ValueError, "empty list"):
            sink.write([])
        assert len(sink) == 4

    def test_what_was_written_is_independent(self, make_sink: MakeSink) -> None:
        """Changing a batch after it was written, or one that was read, changes nothing stored."""
        sink, (part,) = make_sink(), self.batches(3)
        original = part.clone()
        sink.write(part)
        part.positions.zero_()
        sink.read().forces.zero_()
        assert_batches_equal(sink.read(), original)

    def test_close(self, make_sink: MakeSink) -> None:
        """Closing twice is allowed, reading after it too, changing the store is not."""
        (part,) = self.batches(3)
        with make_sink() as sink:
            sink.write(part)
        sink.close()
        sink.close()
        for change in (lambda: sink.write(part), sink.drain, sink.zero, sink.flush):
            with _raises(RuntimeError, "closed"):
                change()
        assert len(sink) == 3
        assert_batches_equal(sink.read(), part)

    def test_a_failed_block_closes_too(self, make_sink: MakeSink) -> None:
        """The with statement closes the sink when its block raises, and keeps what was written."""
        (part,) = self.batches(3)
        with _raises(KeyError, "out of the block"), make_sink() as sink:
            sink.write(part)
            raise KeyError("out of the block")
        with _raises(RuntimeError, "closed"):
            sink.write(part)
        assert_batches_equal(make_sink().read(), part)

    def test_is_plain_zarr(self, make_sink: MakeSink) -> None:
        """Any Zarr tool finds the right values, while the sink is open, flushed and closed."""
        sink, parts = make_sink(), self.batches(3, 4, fields=("energy", *_OWN))
        for part in parts:
            sink.write(part)
        whole = Batch.concatenate(parts)
        assert_plain_zarr(sink.store, whole, exact=False)
        sink.flush()
        assert_plain_zarr(sink.store, whole, exact=True)
        sink.write(parts[0])
        whole = Batch.concatenate([whole, parts[0]])
        assert_plain_zarr(sink.store, whole, exact=False)
        sink.close()
        assert_plain_zarr(sink.store, whole, exact=True)

    def test_ranks(self, make_sink: MakeSink, monkeypatch: Any) -> None:
        """Ranks are 0 in a lone process, and torchrun's where it started the process."""
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        sink = make_sink()
        assert (sink.global_rank, sink.local_rank) == (0, 0)
        monkeypatch.setenv("RANK", "5")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert (sink.global_rank, sink.local_rank) == (5, 1)

    def test_a_system_alone(self, make_sink: MakeSink) -> None:
        """One atom, written many times, one by one."""
        with make_sink() as sink:
            for number in range(1, 30):
                sink.write(AtomicData([[float(number), 0.0, 0.0]], [number]))
        found = make_sink().read()
        assert found.atomic_numbers.tolist() == list(range(1, 30))
        assert found.positions[:, 0].tolist() == [float(number) for number in range(1, 30)]
