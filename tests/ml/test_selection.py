import numpy as np
import pytest
import torch
from ase.build import molecule

import zarrpipe as zp
from zarrpipe.adapters import from_ase
from zarrpipe.errors import ArgumentError
from zarrpipe.ml import Committee, ForceField, MACEPotential, Selection
from zarrpipe.ml.quotas import apportioned, capped
from zarrpipe.transforms import RandomRotation

pytestmark = [  # mace-torch and e3nn, while a model is built
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]


def candidates(deviation, source=None):
    count = len(deviation)
    batch = zp.Batch(
        {
            "positions": torch.arange(3.0 * count).view(-1, 3),
            "atomic_numbers": torch.ones(count, dtype=torch.int64),
        },
        torch.arange(count + 1),
    ).add_field("deviation", torch.as_tensor(deviation), "system")
    return batch if source is None else batch.add_field("source", source, "system")


DEVIATION = [0.3, 0.9, 0.1, 0.9, float("nan"), 0.5]


def test_the_top_of_the_deviation_is_taken_and_of_equal_ones_the_first():
    assert Selection("deviation", 4).choose(candidates(DEVIATION)).tolist() == [1, 3, 5, 0]
    given = torch.tensor(DEVIATION).flip(0)
    assert Selection(count=3).choose(candidates(DEVIATION), deviation=given).tolist() == [2, 4, 0]


@pytest.mark.parametrize("rule", ["deviation", "diverse", "farthest", "random"])
def test_every_rule_keeps_to_the_band(rule):
    generator = torch.Generator().manual_seed(0)
    deviation = torch.rand(200, generator=generator)
    deviation[::7] = torch.nan
    features = torch.randn(200, 3, generator=generator)
    chosen = Selection(rule, 40, band=(0.2, 0.6), seed=3).choose(
        candidates(deviation), features=features
    )
    assert len(set(chosen.tolist())) == 40
    assert ((deviation[chosen] > 0.2) & (deviation[chosen] < 0.6)).all()


def test_an_empty_band_and_too_few_candidates_are_said():
    with (
        pytest.warns(UserWarning, match=r"0 of 2 are chosen, as 0 of 6 candidates can be"),
        pytest.warns(UserWarning, match=r"band \(1, 2\).*5 of 6 are below.*0\.1 to 0\.9"),
    ):
        chosen = Selection(count=2, band=(1, 2)).choose(candidates(DEVIATION))
    assert (chosen.dtype, len(chosen)) == (torch.int64, 0)
    with pytest.warns(UserWarning, match="5 of 9 are chosen"):
        assert len(Selection(count=9).choose(candidates(DEVIATION))) == 5


def test_random_is_uniform_by_seed_and_takes_what_has_no_deviation():
    batch = candidates([float("nan")] * 12)
    drawn = [Selection("random", 3, seed=seed).choose(batch).tolist() for seed in range(2000)]
    assert drawn[0] == Selection("random", 3, seed=0).choose(batch).tolist()
    counts = np.bincount(np.concatenate(drawn), minlength=12)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    assert len(set(map(tuple, drawn))) > 1000


def clusters(seed=0):
    """Five clusters of 40 points in 8 dimensions, far from each other, and which point is whose."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(5), 40))
    centres = 10.0 * np.eye(8)[:5]
    return centres[which] + rng.normal(scale=0.1, size=(200, 8)), which


@pytest.mark.parametrize("rule", ["farthest", "diverse"])
def test_distance_covers_all_clusters_with_as_many_choices(rule):
    features, which = clusters()
    deviation = np.random.default_rng(1).uniform(0.5, 1.0, 200)
    chosen = Selection(rule, 5).choose(candidates(deviation), features=features)
    assert sorted(which[chosen]) == [0, 1, 2, 3, 4]
    known = features[which == 2]
    again = Selection(rule, 4).choose(candidates(deviation), features=features, known=known)
    assert sorted(which[again]) == [0, 1, 3, 4]


def test_farthest_is_the_greedy_choice_that_a_plain_loop_makes():
    features, _ = clusters(3)
    known = features[:10]
    expected = []
    near = [min(np.linalg.norm(one - other) for other in known) for one in features]
    for _ in range(6):
        best = int(np.argmax(near))
        expected.append(best)
        near = [
            min(n, np.linalg.norm(f - features[best])) for n, f in zip(near, features, strict=True)
        ]
    batch = candidates(np.zeros(200))
    chosen = Selection("farthest", 6).choose(batch, features=features, known=known)
    assert chosen.tolist() == expected


def test_diverse_weighs_distance_by_deviation():
    features = torch.tensor([[0.0], [1.0], [1.1], [4.0]])
    batch = candidates([1.0, 0.9, 0.8, 0.1])
    known = torch.tensor([[0.0]])
    assert Selection("diverse", 1).choose(batch, features=features, known=known).item() == 1
    assert Selection("farthest", 1).choose(batch, features=features, known=known).item() == 3
    assert Selection("diverse", 1).choose(batch, features=features).item() == 0


@pytest.mark.parametrize("rule", ["deviation", "diverse", "farthest", "random"])
def test_quotas_are_exact(rule):
    rng = np.random.default_rng(0)
    source = [["md", "hot", "dimer", "scan"][i] for i in rng.integers(0, 4, 300)]
    features, batch = rng.normal(size=(300, 4)), candidates(rng.uniform(size=300), source)
    quotas = {"hot": 0.5, "md": 0.3, "other": 0.2}
    chosen = Selection(rule, 25, quotas=quotas).choose(batch, features=features)
    got = [source[i] for i in chosen.tolist()]
    assert (len(got), len(set(chosen.tolist()))) == (25, 25)
    assert (got.count("hot"), got.count("md")) == (13, 7)
    only = Selection(rule, 10, quotas={"scan": 1.0}).choose(batch, features=features)
    assert {source[i] for i in only.tolist()} == {"scan"}


def test_top_of_the_deviation_within_each_quota():
    batch = candidates([0.1, 0.2, 0.3, 0.4], ["a", "b", "a", "b"])
    chosen = Selection(count=2, quotas={"a": 0.5, "b": 0.5}).choose(batch)
    assert chosen.tolist() == [3, 2]


def test_what_a_value_lacks_goes_to_the_others_with_a_warning():
    batch = candidates([0.1, 0.2, 0.3, 0.4, 0.5], ["a", "a", "a", "b", "x"])
    quotas = {"b": 0.5, "c": 0.25, "other": 0.25}
    with pytest.warns(UserWarning, match=r"quota: 'b' 1 of 2, 'c' 0 of 1"):
        chosen = Selection(count=4, quotas=quotas).choose(batch)
    assert chosen.tolist() == [4, 3, 2, 1]


def test_whole_numbers_of_shares():
    assert apportioned(10, np.array([0.7, 0.2, 0.1])).tolist() == [7, 2, 1]
    assert apportioned(1, np.array([0.25] * 4)).tolist() == [1, 0, 0, 0]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        shares, count = rng.dirichlet(np.ones(5)), int(rng.integers(1, 100))
        there = rng.integers(0, 40, 5)
        whole = apportioned(count, shares)
        assert whole.sum() == count
        assert (np.abs(whole - count * shares) < 1).all()
        found = capped(count, shares, there)
        assert found.sum() == min(count, there.sum())
        assert (found <= there).all()
    assert capped(4, np.array([1.0, 0.0]), np.array([2, 9])).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rule": "best"}, "rule='best', expected one of deviation, diverse, farthest, random"),
        ({"count": 0}, "count is 0"),
        ({"band": (0.5, 0.1)}, r"band=\(0.5, 0.1\), expected two numbers of eV/Angstrom that rise"),
        ({"quotas": {"a": 0.5}}, "quotas sum to 0.5, expected 1.*or give 'other' the rest"),
        ({"quotas": {"a": 0.9, "other": 0.9}}, "quotas sum to 1.8, expected 1"),
        ({"quotas": {"a": 1.5, "b": -0.5}}, "expected shares of 0 or more"),
        ({"quotas": {}}, "expected shares by value"),
    ],
)
def test_wrong_arguments_are_named(arguments, match):
    with pytest.raises(ArgumentError, match=match):
        Selection(**arguments)


def test_what_a_rule_needs_is_asked_for():
    batch = candidates([0.1, 0.2])
    plain = batch.without("deviation")
    with pytest.raises(ArgumentError, match="no field 'deviation'"):
        Selection(count=1).choose(plain)
    with pytest.raises(ArgumentError, match="deviation has 3 values for 2 candidates"):
        Selection(count=1).choose(plain, deviation=[1, 2, 3])
    with pytest.raises(ArgumentError, match="rule='diverse' needs features="):
        Selection("diverse", 1).choose(batch)
    with pytest.raises(ArgumentError, match=r"shape \(3, 1\), expected \(2, D\)"):
        Selection("farthest", 1).choose(batch, features=torch.ones(3, 1))
    with pytest.raises(ArgumentError, match=r"known has shape \(1, 2\), expected \(K, 1\)"):
        Selection("farthest", 1).choose(batch, features=torch.ones(2, 1), known=torch.ones(1, 2))
    with pytest.raises(ArgumentError, match="shares by the field 'source'"):
        Selection(count=1, quotas={"a": 1.0}).choose(batch)
    assert Selection("random", 1).choose(plain).shape == (1,)


def test_a_dataset_is_chosen_from_as_its_batch_is(tmp_path):
    rng = np.random.default_rng(0)
    batch = candidates(rng.uniform(size=50), [["a", "b"][i % 2] for i in range(50)])
    with zp.ZarrData(tmp_path / "candidates.zarr") as sink:
        sink.write(batch)
    selection = Selection(count=10, band=(0.2, 0.9), quotas={"a": 0.7, "other": 0.3})
    dataset = zp.ZarrDataset(tmp_path / "candidates.zarr")
    assert torch.equal(selection.choose(dataset), selection.choose(batch))


def molecules():
    return zp.Batch.concatenate([from_ase(molecule(name)) for name in ("H2O", "CH3OH", "NH3")])


SCHNET = {"cutoff": 4.0, "features": 8, "interactions": 2, "gaussians": 8}


@pytest.mark.parametrize("name", ["schnet", "mace"])
def test_features_see_a_structure_but_not_how_it_lies(name, request):
    if name == "mace":
        request.getfixturevalue("mace")
        field = ForceField("mace", {"elements": [1, 6, 7, 8], "cutoff": 4.0, "mean_neighbors": 4.0})
    else:
        field = ForceField("schnet", SCHNET)
    batch = molecules()
    turned = RandomRotation()(batch, keys=np.arange(3, dtype=np.uint64))
    assert not torch.allclose(turned.positions, batch.positions, atol=0.1)
    found = field.features(batch)
    assert found.shape[0] == 3
    assert not found.requires_grad
    torch.testing.assert_close(field.features(turned), found, atol=1e-4, rtol=1e-4)
    assert torch.pdist(found).min() > 1e-3
    one = zp.Batch.from_data_list([batch.get_data(1)])
    torch.testing.assert_close(field.features(one)[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_committee_has_features_deviation_and_a_fingerprint():
    fields = [ForceField("schnet", SCHNET, seed=seed) for seed in (0, 1)]
    committee, batch = Committee(fields), molecules()
    assert committee.features(batch).shape == (3, 16)
    forces = committee.predict_members(batch).forces
    spread = (forces[0] - forces[1]).norm(dim=-1) / 2
    expected = torch.stack([spread[batch.batch_idx == i].max() for i in range(3)])
    torch.testing.assert_close(committee.deviation(batch), expected)
    name = committee.fingerprint()
    assert (len(name), name) == (16, Committee(fields).fingerprint())
    with torch.no_grad():
        next(fields[0].parameters())[0] += 1
    assert Committee(fields).fingerprint() != name


class NoFeatures(MACEPotential):
    atom_features = MACEPotential.__mro__[1].atom_features


def test_a_potential_without_features_says_so(mace):
    field = ForceField(
        options={"elements": [1, 6, 7, 8], "cutoff": 4.0, "mean_neighbors": 4.0}, potential="mace"
    )
    field.potential.__class__ = NoFeatures
    with pytest.raises(ArgumentError, match="NoFeatures has no atom_features"):
        field.features(molecules())
