"""A batch as one buffer: packed and unpacked, moved in one piece, and buffers used again."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from zarrpipe import Batch
from zarrpipe.data.batch_layout import pack, packed_bytes, unpack
from zarrpipe.data.buffers import ALIGNMENT, BufferPool, moved
from zarrpipe.testing import assert_batches_equal, random_batch

FIELDS = ("energy", "forces", "cell", "pbc")


def some_batch(seed: int = 0, num_graphs: int = 7, **options) -> Batch:
    options = {"fields": FIELDS, "edges": (0, 5), "absent": 0.3, **options}
    return random_batch(np.random.default_rng(seed), num_graphs, **options)


def one_buffer(batch: Batch) -> Batch:
    return unpack(*pack(batch))


@pytest.mark.parametrize("num_graphs", [0, 1, 7])
@pytest.mark.parametrize("edges", [None, (0, 0), (0, 5)])
def test_unpack_gives_what_was_packed(num_graphs, edges):
    batch = some_batch(1, num_graphs, edges=edges)
    header, buffer = pack(batch)
    assert_batches_equal(unpack(pickle.loads(pickle.dumps(header)), buffer.copy()), batch)


def test_every_array_begins_at_a_multiple_of_the_alignment():
    header, buffer = pack(some_batch())
    offsets = header.offsets
    assert len(offsets) == len(header.arrays)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert len(buffer) == header.nbytes


def test_a_batch_that_is_one_buffer_is_not_copied():
    batch = one_buffer(some_batch())
    header, buffer = pack(batch)
    buffer[header.offsets[0]] ^= 1
    assert_batches_equal(unpack(header, buffer), batch)


def test_tensors_are_made_when_one_is_asked_for():
    expected = some_batch()
    batch = one_buffer(expected)
    for made in (pack(batch)[0], batch.clone(), batch.to("cpu"), pack(batch, pack(batch)[1])[0]):
        assert made is not None
    copied = batch.clone()
    assert batch._bytes is not None
    assert copied._bytes is not None
    batch.forces.zero_()
    assert batch._bytes is None
    assert batch.forces is batch["forces"]
    assert_batches_equal(copied, expected)
    assert not copied.without("forces").fields.keys() & {"forces"}


@pytest.mark.parametrize("first", ["num_graphs", "levels", "batch_idx", "partly_present", "keys"])
def test_anything_may_be_asked_for_first(first):
    expected, batch = some_batch(), one_buffer(some_batch())
    found, wanted = getattr(batch, first), getattr(expected, first)
    assert torch.equal(found, wanted) if first == "batch_idx" else found == wanted
    assert "forces" in one_buffer(expected)
    with pytest.raises(AttributeError, match="has no field 'nothing'"):
        one_buffer(expected).nothing  # noqa: B018
    with pytest.raises(AttributeError):
        one_buffer(expected)._nothing  # noqa: B018


def test_threads_may_ask_a_batch_first():
    expected = some_batch(absent=0.0)
    batches = [one_buffer(expected) for _ in range(200)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for found in pool.map(lambda batch: (batch.forces, batch.batch_ptr), 2 * batches):
                assert torch.equal(found[0], expected.forces)
                assert torch.equal(found[1], expected.batch_ptr)


def test_a_field_that_was_replaced_is_packed_too():
    batch = one_buffer(some_batch())
    batch.forces = batch.forces + 1
    header, buffer = pack(batch)
    assert_batches_equal(unpack(header, buffer), batch)


def test_into_a_given_buffer():
    batch = some_batch()
    out = np.full(packed_bytes(batch) + 100, 7, dtype=np.uint8)
    header, buffer = pack(batch, out)
    assert buffer is out
    assert_batches_equal(unpack(header, out), batch)
    assert_batches_equal(unpack(*pack(one_buffer(batch), out)), batch)


def test_a_buffer_that_is_too_short_is_refused():
    batch = some_batch()
    with pytest.raises(ValueError, match=r"does not fit into 10"):
        pack(batch, np.empty(10, dtype=np.uint8))


@pytest.mark.parametrize(
    "move",
    [Batch.clone, Batch.cpu, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))],
    ids=["clone", "cpu", "deepcopy", "pickle"],
)
def test_a_moved_batch_is_equal(move):
    batch = one_buffer(some_batch())
    assert_batches_equal(move(batch), batch)


def test_a_clone_shares_no_memory_and_is_one_storage():
    batch = one_buffer(some_batch())
    clone = batch.clone()
    batch.forces.zero_()
    assert bool((clone.forces[torch.isfinite(clone.forces)] != 0).all())
    storages = {
        clone[name].untyped_storage().data_ptr() for name in ("forces", "positions", "cell")
    }
    assert len(storages) == 1


def test_a_gradient_survives_the_move():
    batch = one_buffer(some_batch(absent=0.0))
    batch.positions.requires_grad_()
    moved_batch = batch.clone()
    moved_batch.positions.square().sum().backward()
    assert torch.equal(batch.positions.grad, 2 * batch.positions.detach())


def test_a_cast_reaches_every_float():
    batch = one_buffer(some_batch())
    cast = batch.to(dtype=torch.float64)
    assert cast.forces.dtype is torch.float64
    assert torch.equal(cast.positions, batch.positions.double())
    assert cast.atomic_numbers.dtype is torch.int64


def test_what_is_not_in_the_buffer_is_copied_by_itself():
    buffer = torch.arange(64, dtype=torch.uint8)
    inside, outside = buffer[8:16].view(torch.int32), torch.tensor([5, 6])
    across = buffer.view(torch.int64).view(2, 4).T
    whole, tensors = moved(buffer, {"in": inside, "out": outside, "across": across}, torch.clone)
    buffer.zero_()
    assert tensors["in"].view(torch.uint8).tolist() == list(range(8, 16))
    assert tensors["in"].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert tensors["out"].tolist() == [5, 6]
    assert tensors["across"].untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


def test_a_buffer_is_lent_again_only_when_nothing_refers_to_it():
    pool = BufferPool()
    buffer, _ = pool.take(4096)
    address = buffer.ctypes.data
    view = torch.from_numpy(np.ndarray((10,), "f4", buffer, 64))
    del buffer
    assert pool.take(4096)[0].ctypes.data != address
    del view
    assert address in {pool.take(4096)[0].ctypes.data for _ in range(2)}


def test_threads_never_share_a_buffer():
    pool = BufferPool()

    def lend(number: int) -> bool:
        buffer, _ = pool.take(1024)
        buffer.fill(number)
        return bool((buffer == number).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lend, (n % 251 for n in range(2000))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_copy_to_the_gpu():
    batch = one_buffer(some_batch())
    there = batch.pin_memory().to("cuda", non_blocking=True)
    names = ("positions", "forces", "cell")
    assert len({there[name].untyped_storage().data_ptr() for name in names}) == 1
    assert_batches_equal(there.cpu(), batch)


def test_a_change_in_place_of_one_field_lets_another_be_differentiated():
    batch = one_buffer(some_batch(absent=0.0)).clone()
    weight = torch.ones(3, requires_grad=True)
    energy = (batch.positions * weight).square().sum()
    batch.energy.sub_(1.0)
    energy.backward()
    assert torch.isfinite(weight.grad).all()


def test_a_clone_is_pickled_once():
    batch = one_buffer(some_batch(num_graphs=300))
    assert len(pickle.dumps(batch.clone())) < 1.2 * len(pickle.dumps(some_batch(num_graphs=300)))


def test_a_dtype_that_numpy_lacks_is_named():
    batch = some_batch(absent=0.0).to(dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"has dtype torch\.bfloat16, which NumPy"):
        pack(batch)


def test_a_pool_that_another_thread_has_locked_is_not_waited_for():
    pool = BufferPool()
    with pool._lock:
        assert len(pool.take(640)[0]) == 640
