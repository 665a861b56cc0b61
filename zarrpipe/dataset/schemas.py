"""Which fields several stores have between them, and which of these are read."""

from collections.abc import Iterable, Mapping, Sequence

from zarrpipe.data.fields import REQUIRED_FIELDS
from zarrpipe.data.schema import Field
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.transforms.compose import Transform, fields_read


def common_schema(schemas: Iterable[Mapping[str, Field]]) -> Mapping[str, Field]:
    """Fields of all stores.

    Raises
    ------
    SchemaError
        If two stores have a field that differs.
    """
    common: dict[str, Field] = {}
    for place, schema in enumerate(schemas):
        for name, field in schema.items():
            first = common.setdefault(name, field)
            given = (field.level, field.dtype, field.shape, field.unit)
            if given != (first.level, first.dtype, first.shape, first.unit):
                raise SchemaError(
                    f"store {place} has field {name!r} at level {field.level.value!r} with dtype "
                    f"{field.dtype}, rows of shape {field.shape} and unit {field.unit or None!r}, "
                    f"a store before it at {first.level.value!r} with {first.dtype}, "
                    f"{first.shape} and {first.unit or None!r}: convert one"
                )
    return common


def field_names(fields: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of fields that are asked for, the needed ones included; None for all."""
    if fields is None:
        return None
    if isinstance(fields, str) or not isinstance(fields, Iterable):
        raise ArgumentTypeError(
            f"fields is {fields!r}, expected a list of names such as ['energy', 'forces']"
        )
    return tuple(dict.fromkeys((*REQUIRED_FIELDS, *fields)))


def check_fields(fields: Sequence[str] | None, schema: Mapping[str, Field]) -> None:
    """Refuse names of fields that no store has."""
    for name in fields or ():
        if name not in schema:
            raise SchemaError(f"no store has a field {name!r}, they have {sorted(schema)}")


def check_reads(
    transform: Transform | None, fields: Sequence[str] | None, schema: Mapping[str, Field]
) -> None:
    """Refuse to leave out a field without which a transform would do another thing."""
    for name in fields_read(transform):
        if name in schema and fields is not None and name not in fields:
            raise ArgumentError(
                f"fields leaves out {name!r}, which {transform!r} has to see: add it to fields"
            )
