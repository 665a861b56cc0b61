"""Which key of a source becomes which field, decided before anything is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from zarrpipe.adapters.dialects import (
    LABELS,
    STRUCTURE,
    clean_name,
    is_accepted,
    label_of,
    own_name,
)
from zarrpipe.data.fields import CORE_FIELDS, check_new_names, level_of
from zarrpipe.data.fields import Kind as FieldKind
from zarrpipe.errors import ArgumentTypeError, LabelError
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, Kind, joined_kind

Kinds = Mapping[Entry, Collection[Kind]]
LabelOptions = Mapping[str, str | Sequence[str] | None]

ISOLATED_ATOM = "isolated_atom"
"""Field that marks single atoms, whose energies are references for others."""

_MAIN = frozenset({"energy", "forces", "stress", "virial"})
_SHAPES = {"stress": {(6,), (9,), (3, 3)}, "virial": {(6,), (9,), (3, 3)}}
"""Rows that files have for a tensor of a structure."""


@dataclass(frozen=True)
class LabelPlan:
    """Entries of each field in order of preference, and why others are left out.

    `kinds` has the type and shape of each entry that is taken. `asked`, `ignore` and `reserved` are
    what `plan_labels` was given.
    """

    fields: Mapping[str, tuple[Entry, ...]]
    kinds: Mapping[Entry, Kind]
    left_out: Mapping[Entry, str] = field(default_factory=dict)
    asked: LabelOptions = field(default_factory=dict)
    ignore: Collection[str] = ()
    reserved: Collection[str] = ()

    def extended(self, found: Kinds) -> "LabelPlan":
        """Plan with entries that were found later; those of this plan keep their fields."""
        return plan_labels(found, self.asked, self.ignore, self.reserved)

    def level(self, name: str) -> str:
        """Level of a field."""
        return self.fields[name][0].level

    @property
    def entries(self) -> frozenset[Entry]:
        """All entries that have a place in the plan."""
        return frozenset(self.kinds).union(self.left_out)


def plan_labels(
    found: Kinds,
    labels: LabelOptions = MappingProxyType({}),
    ignore: Collection[str] = (),
    reserved: Collection[str] = (),
) -> LabelPlan:
    """Plan the fields of the entries that a scan found.

    `labels` says which key, or which of several in order of preference, becomes a field; None
    leaves a label out. For other labels the table of `zarrpipe.adapters.dialects` decides. All
    other numbers and strings become fields of the user's own, except those of keys to `ignore`, and
    under other names than those that are `reserved`.

    Raises LabelError if two keys may be the same label, or a key that is asked for is not there.
    """
    kinds = {entry: joined_kind(seen, entry.level) for entry, seen in found.items()}
    unknown = {*ignore} - {entry.key for entry in kinds}
    if unknown:
        raise LabelError(
            f"ignore has {sorted(unknown)}, which no frame that was looked at has; there is "
            f"{', '.join(sorted({entry.key for entry in kinds})) or 'nothing'}"
        )
    asked = {name: _asked(name, keys, kinds) for name, keys in labels.items()}
    fields = {name: entries for name, entries in asked.items() if entries}
    taken = {entry for entries in fields.values() for entry in entries}
    left_out: dict[Entry, str] = {}
    own: dict[Entry, Kind] = {}
    candidates: dict[str, list[Entry]] = {}
    for entry, kind in kinds.items():
        if entry in taken:
            continue
        name = label_of(entry.level, entry.key)
        if entry.key in ignore:
            left_out[entry] = "is ignored, as was asked for"
            continue
        if name is not None and name not in labels:
            _check_fits(name, entry, kind)
        if isinstance(kind, str):
            left_out[entry] = kind
        elif name is None or not _fits(name, kind):
            own[entry] = kind
        elif name in labels:
            way_out = f"keep it under a name of its own by labels={{'NAME': {entry.key!r}}}"
            left_out[entry] = f"may be {name}, for which another was named: {way_out}"
        else:
            candidates.setdefault(name, []).append(entry)
    for name, entries in candidates.items():
        if len(entries) > 1:
            raise _ambiguous(name, entries)
        fields[name] = (entries[0],)
    for entry, kind in own.items():
        fields[_own(entry, kind, {*fields, *reserved})] = (entry,)
    used = {
        entry: _kind_in(name, kinds[entry]) for name, entries in fields.items() for entry in entries
    }
    return LabelPlan(fields, used, left_out, labels, ignore, reserved)


def _kind_in(name: str, kind: Kind | str) -> Kind:
    """Kind of an entry in its field: whole numbers of a label are floats all the same."""
    if isinstance(kind, str):
        raise LabelError(f"{name} {kind}")
    spec = CORE_FIELDS.get(name)
    floats = spec is not None and spec.kind is FieldKind.FLOAT
    return kind._replace(type="float") if floats else kind


def _check_fits(name: str, entry: Entry, kind: Kind | str) -> None:
    """Refuse a key that is named as a main label, and whose values are none."""
    if name not in _MAIN or (isinstance(kind, Kind) and _fits(name, kind)):
        return
    found = kind if isinstance(kind, str) else f"is {kind.type} of shape {kind.shape} a row"
    raise LabelError(
        f"{entry} is named as the label {name}, and {found}: put the files right, leave it out by "
        f"labels={{{name!r}: None}} (--label {name}=none), or keep it under a name of your own by "
        f"labels={{{name!r}: None, 'NAME': {entry.key!r}}}"
    )


def _asked(
    name: str, keys: str | Sequence[str] | None, kinds: Mapping[Entry, Kind | str]
) -> tuple[Entry, ...]:
    """Entries of the keys that are asked for as a field."""
    if keys is None:
        return ()
    asked = [keys] if isinstance(keys, str) else list(keys)
    if not all(isinstance(key, str) for key in asked):
        raise ArgumentTypeError(f"labels[{name!r}] is {keys!r}, expected a key or a list of keys")
    check_new_names([name])
    entries: list[Entry] = []
    for key in asked:
        entries += _named(name, key, kinds)
    if not entries:
        raise LabelError(f"labels[{name!r}] names no key: give one, or None to leave {name} out")
    levels = {entry.level for entry in entries}
    if len(levels) > 1:
        raise LabelError(
            f"{' and '.join(map(str, entries))} are asked for as {name!r}, and have rows of "
            f"different levels ({', '.join(sorted(levels))}): name them as two fields"
        )
    level_of(name, entries[0].level)
    for entry in entries:
        kind = kinds[entry]
        if isinstance(kind, str):
            raise LabelError(f"{entry} is asked for as {name!r}, and {kind}")
        if not _fits(name, kind):
            expected = CORE_FIELDS[name].shape
            raise LabelError(
                f"{entry} is asked for as {name!r}, and is {kind.type} of shape {kind.shape} a row;"
                f" expected numbers of shape {expected}"
            )
    return tuple(entries)


def _named(name: str, key: str, kinds: Mapping[Entry, Kind | str]) -> list[Entry]:
    """Entries of a key, or of ``place:key``, at the level of a field."""
    place, colon, short = key.partition(":")
    spec = CORE_FIELDS.get(name)
    found = [
        entry
        for entry in kinds
        if (entry.key == key or (colon and (entry.place, entry.key) == (place, short)))
        and (spec is None or entry.level == spec.level)
    ]
    if not found:
        level = "" if spec is None else f" at {spec.level} level"
        have = sorted({entry.key for entry in kinds if spec is None or entry.level == spec.level})
        raise LabelError(
            f"{name} is to be read from {key!r}, and no frame that was looked at has it{level}: "
            f"there is {', '.join(have) or 'nothing'}"
        )
    if len(found) > 1:
        ways = " or ".join(f"{entry.place}:{entry.key}" for entry in found)
        raise LabelError(f"{key!r} is in two places: name {ways} for {name}")
    return found


def _ambiguous(name: str, entries: Sequence[Entry]) -> LabelError:
    """Error of several keys that may be one label, with the options that decide."""
    places = len({entry.key for entry in entries}) < len(entries)
    keys = [f"{entry.place}:{entry.key}" if places else entry.key for entry in entries]
    options = " or ".join(f"labels={{{name!r}: {key!r}}} (--label {name}={key})" for key in keys)
    return LabelError(
        f"{' and '.join(map(str, entries))} may each be the label {name}, and one may be a "
        f"prediction beside a reference: say which by {options}"
    )


def _fits(name: str, kind: Kind) -> bool:
    """Whether an entry can have the values of a field."""
    spec = CORE_FIELDS.get(name)
    if spec is None:
        return True
    numeric = kind.type != "str" and (kind.type != "bool" or spec.kind is FieldKind.BOOL)
    shapes = _SHAPES.get(name, {spec.shape, ()} if spec.shape == (1,) else {spec.shape})
    return numeric and (spec.shape is None or kind.shape in shapes)


def _own(entry: Entry, kind: Kind, fields: Collection[str]) -> str:
    """Name of the field of an entry that is no label."""
    if entry == Entry(ATOM, "masses", "arrays"):
        return "atomic_masses"
    name = clean_name(entry.key)
    registered = name in CORE_FIELDS and name not in {*LABELS.values(), *STRUCTURE, *fields}
    if registered and is_accepted(name, entry.level) and _fits(name, kind):
        return name
    if entry.key == ISOLATED_ATOM and entry.level == SYSTEM and kind.type == "bool":
        return ISOLATED_ATOM  # of an export, which takes the place of ours
    return own_name(entry.key, entry.level, {*fields, ISOLATED_ATOM})
