"""Which key becomes which field: by option, by dialect, or under a name of its own."""

import pytest

from zarrpipe.errors import FieldError, LabelError
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, Kind
from zarrpipe.formats.read.labels import plan_labels

NUMBER, VECTOR, TEXT = Kind("float"), Kind("float", (3,)), Kind("str")


def found(**kinds):
    """Entries of keys; a key that ends with ``__atom`` is at atom level."""
    entries = {}
    for name, kind in kinds.items():
        key, atom, _ = name.partition("__atom")
        kinds = kind if isinstance(kind, set) else {kind}
        entries[Entry(ATOM if atom else SYSTEM, key, "arrays" if atom else "info")] = kinds
    return entries


def keys(plan):
    return {name: [entry.key for entry in entries] for name, entries in plan.fields.items()}


@pytest.mark.parametrize(
    ("energy", "forces"),
    [
        *(("energy", "forces"), ("REF_energy", "REF_forces"), ("dft_energy", "dft_forces")),
        *(("energy_xtb", "forces_xtb"), ("Energy", "force"), ("TotEnergy_ref", "DFT-force")),
    ],
)
def test_dialects(energy, forces):
    plan = plan_labels(found(**{energy: NUMBER, f"{forces}__atom": VECTOR}))
    expected = {"energy": [energy], "forces": [forces]}
    if energy == "TotEnergy_ref":  # not one word for it
        expected = {"TotEnergy_ref": [energy], "forces": [forces]}
    assert keys(plan) == expected


def test_what_is_no_label_is_a_field_of_its_own():
    plan = plan_labels(
        found(
            energy=NUMBER,
            kinetic_energy=NUMBER,
            mace_energy=NUMBER,
            config_type=TEXT,
            step=Kind("int"),
            tags__atom=Kind("int"),
            masses__atom=NUMBER,
            num_atoms=Kind("int"),
        )
    )
    assert keys(plan) == {
        "energy": ["energy"],
        "kinetic_energy": ["kinetic_energy"],
        "mace_energy": ["mace_energy"],
        "config_type": ["config_type"],
        "step": ["step"],
        "tags": ["tags"],
        "atomic_masses": ["masses"],
        "num_atoms_": ["num_atoms"],
    }


@pytest.mark.parametrize(
    ("first", "second", "label"),
    [
        ("energy", "REF_energy", "energy"),
        ("forces__atom", "REF_forces__atom", "forces"),
        ("virial", "virials", "virial"),
        ("dft_energy", "energy_xtb", "energy"),
    ],
)
def test_two_candidates_are_refused_with_both_options(first, second, label):
    kind = {"energy": NUMBER, "forces": VECTOR, "virial": Kind("float", (3, 3))}[label]
    with pytest.raises(LabelError) as error:
        plan_labels(found(**{first: kind, second: kind}))
    for key in (first.removesuffix("__atom"), second.removesuffix("__atom")):
        assert f"--label {label}={key}" in str(error.value)
        assert f"labels={{'{label}': '{key}'}}" in str(error.value)


def test_one_key_in_two_places_is_refused_with_both_places():
    entries = {Entry(SYSTEM, "energy", place): {NUMBER} for place in ("info", "results")}
    with pytest.raises(LabelError, match=r"info:energy.*results:energy"):
        plan_labels(entries)
    plan = plan_labels(entries, {"energy": "results:energy"})
    assert plan.fields["energy"] == (Entry(SYSTEM, "energy", "results"),)
    with pytest.raises(LabelError, match="'energy' is in two places: name info:energy or results"):
        plan_labels(entries, {"energy": "energy"})


def test_an_option_decides_and_the_other_candidate_is_left_out():
    entries = found(energy=NUMBER, REF_energy=NUMBER)
    plan = plan_labels(entries, {"energy": "REF_energy"})
    assert keys(plan) == {"energy": ["REF_energy"]}
    (reason,) = plan.left_out.values()
    assert "keep it under a name of its own by labels={'NAME': 'energy'}" in reason
    kept = plan_labels(entries, {"energy": "REF_energy", "energy_model": "energy"})
    assert keys(kept) == {"energy": ["REF_energy"], "energy_model": ["energy"]}
    assert kept.left_out == {}


def test_several_keys_in_order_of_preference():
    plan = plan_labels(
        found(energy=NUMBER, REF_energy=NUMBER), {"energy": ["REF_energy", "energy"]}
    )
    assert keys(plan) == {"energy": ["REF_energy", "energy"]}


def test_none_leaves_a_label_out():
    plan = plan_labels(found(energy=NUMBER, REF_energy=NUMBER, step=NUMBER), {"energy": None})
    assert keys(plan) == {"step": ["step"]}
    assert len(plan.left_out) == 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"energy": "E_dft"},
            "read from 'E_dft', and no frame that was looked at has it at system",
        ),
        ({"forces": "energy"}, "no frame that was looked at has it at atom level: there is f"),
        ({"energy": "name"}, "'name'.* is asked for as 'energy', and is str"),
        ({"energy": []}, "names no key"),
        ({"x": ["energy", "f"]}, "rows of different levels"),
        ({"num_atoms": "energy"}, "means the number of a sample's atoms"),
        ({"mixed": "ragged"}, "has rows of different shapes"),
    ],
)
def test_options_that_cannot_be(labels, words):
    entries = found(energy=NUMBER, name=TEXT, f__atom=VECTOR, ragged={Kind("int", (1,)), NUMBER})
    with pytest.raises(FieldError, match=words):
        plan_labels(entries, labels)


def test_what_cannot_be_a_field_is_left_out_with_the_reason():
    plan = plan_labels(
        found(
            ragged={Kind("int", (2,)), Kind("int", (3,))},
            names__atom=TEXT,
            nested=Kind("none"),
            words=Kind("str", (2,)),
            boring=NUMBER,
        ),
        ignore=["boring"],
    )
    reasons = {entry.key: reason for entry, reason in plan.left_out.items()}
    assert reasons == {
        "ragged": "has rows of different shapes: (2,), (3,)",
        "names": "has a string for each atom, and fields of strings have one a system",
        "nested": "is neither numbers nor a string",
        "words": "has strings in rows of several, expected one a structure",
        "boring": "is ignored, as was asked for",
    }
    assert plan.fields == {}


def test_kinds_are_joined():
    plan = plan_labels(
        found(
            a={Kind("int"), Kind("float")},
            b={Kind("bool"), Kind("int")},
            c={Kind("int"), TEXT},
            d={Kind("bool")},
        )
    )
    kinds = {name: plan.kinds[plan.fields[name][0]] for name in "abcd"}
    assert kinds == {"a": Kind("float"), "b": Kind("int"), "c": Kind("str"), "d": Kind("bool")}


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"energy": Kind("float", (2,))}, r"info\['energy'\] is named as the label energy, and is"),
        ({"energy": {NUMBER, TEXT}}, "and is str of shape"),
        ({"REF_stress": {Kind("float", (6,)), Kind("float", (9,))}}, "rows of different shapes"),
        ({"forces__atom": NUMBER}, "named as the label forces"),
    ],
)
def test_a_main_label_that_does_not_fit_is_refused(kinds, words):
    """It would be stored as something else, or be lost, without a word."""
    with pytest.raises(LabelError, match=words):
        plan_labels(found(**kinds))
    (key,) = (key.removesuffix("__atom") for key in kinds)
    label = next(name for name in ("energy", "stress", "forces") if name in key)
    assert plan_labels(found(**kinds), ignore=[key]).fields == {}
    assert label not in plan_labels(found(**kinds), {label: None}).fields


def test_other_labels_that_do_not_fit_are_fields_of_their_own():
    plan = plan_labels(found(dipole=Kind("float", (2,)), spin=TEXT))
    assert keys(plan) == {"dipole_": ["dipole"], "spin_": ["spin"]}


def test_whole_numbers_of_a_label_are_floats():
    plan = plan_labels(found(energy=Kind("int"), step=Kind("int")))
    assert [plan.kinds[plan.fields[name][0]].type for name in ("energy", "step")] == [
        "float",
        "int",
    ]


def test_a_key_to_ignore_that_is_nowhere_is_refused():
    with pytest.raises(LabelError, match=r"ignore has \['stpe'\].* there is step"):
        plan_labels(found(step=NUMBER), ignore=["stpe"])


def test_later_entries_change_no_earlier_field():
    entries = found(energy=NUMBER)
    entries[Entry(SYSTEM, "a b", "info")] = {NUMBER}
    plan = plan_labels(entries, reserved=["source"])
    later = {**entries, Entry(SYSTEM, "a_b", "info"): {NUMBER}, **found(source=TEXT)}
    assert keys(plan.extended(later)) == {
        "energy": ["energy"],
        "a_b": ["a b"],
        "a_b_": ["a_b"],
        "source_": ["source"],
    }
    with pytest.raises(LabelError, match="REF_energy"):
        plan.extended({**entries, **found(REF_energy=NUMBER)})
