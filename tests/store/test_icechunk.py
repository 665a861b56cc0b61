"""A store in an Icechunk repository: written in commits, read at a tag or snapshot."""

import pickle

import pytest

import zarrpipe as zp
from reliability.truth import everything, numbers_of, samples, serials, wrong_values

icechunk = pytest.importorskip("icechunk", reason="the extra 'icechunk' is not installed")


@pytest.fixture
def repository(tmp_path):
    """Repository with two commits of five samples each, the first one with a tag."""
    storage = icechunk.local_filesystem_storage(str(tmp_path / "repository"))
    made = icechunk.Repository.create(storage)
    for number in range(2):
        session = made.writable_session("main")
        with zp.ZarrData(session.store) as sink:
            sink.write(samples(numbers_of(100 * number, 5)))
        snapshot = session.commit(f"round {number}")
        if number == 0:
            made.create_tag("round-0", snapshot_id=snapshot)
    return made


def test_a_commit_is_read_at_its_tag(repository):
    first = numbers_of(0, 5).tolist()
    every = [*first, *numbers_of(100, 5).tolist()]
    for session, expected in (
        (repository.readonly_session(tag="round-0"), first),
        (repository.readonly_session("main"), every),
    ):
        found = everything(session.store)
        assert serials(found) == expected
        assert wrong_values(found) is None
        assert zp.check(session.store).ok


def test_what_was_not_committed_is_not_there(repository):
    session = repository.writable_session("main")
    with zp.ZarrData(session.store) as sink:
        sink.write(samples(numbers_of(500, 5)))
        assert len(sink) == 15
    assert len(zp.ZarrDataset(repository.readonly_session("main").store)) == 10


def test_of_two_sessions_one_commits(repository):
    sessions = [repository.writable_session("main") for _ in range(2)]
    for number, session in enumerate(sessions):
        with zp.ZarrData(session.store) as sink:
            sink.write(samples(numbers_of(500 + 100 * number, 5)))
    sessions[0].commit("one")
    with pytest.raises(icechunk.ConflictError):
        sessions[1].commit("two")
    found = everything(repository.readonly_session("main").store)
    assert serials(found)[10:] == numbers_of(500, 5).tolist()


def test_a_dataset_goes_to_workers(repository):
    dataset = zp.ZarrDataset(repository.readonly_session(tag="round-0").store)
    again = pickle.loads(pickle.dumps(dataset))
    assert serials(again.read([4, 0])) == [numbers_of(0, 5)[4], numbers_of(0, 5)[0]]
