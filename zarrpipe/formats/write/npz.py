"""NumPy's archive of arrays: all that a store has, as arrays with pointers, without pickle."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field, Schema, levels_of
from zarrpipe.formats.write.row_files import RowFiles
from zarrpipe.formats.write.samples import Samples, kind_of

_BLOCK = 1 << 20


def write_npz(path: Path, samples: Samples) -> dict[str, str]:
    """Write every field as one array, beside pointers, presence, vocabularies and units."""
    with TemporaryDirectory(dir=path.parent) as folder, RowFiles(Path(folder)) as rows:
        small = _Small(samples.schema)
        for batch in samples.batches():
            for name, values in small.take(batch).items():
                rows.append(name, values)
        rows.__exit__()
        with zipfile.ZipFile(path, "w") as archive:
            for name, (dtype, shape) in rows.shapes().items():
                _add_file(archive, name, rows.path(name), dtype, shape)
            for name, array in small.arrays().items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    return {}


class _Small:
    """What is held in memory until the end: pointers, presence, vocabularies and descriptions."""

    def __init__(self, schema: Mapping[str, Field]) -> None:
        self._schema = schema
        self._levels = Schema(dict(schema)).pointer_levels
        self._counts: dict[Level, list[AnyArray]] = {level: [] for level in self._levels}
        self._totals = dict.fromkeys(self._levels, 0)
        self._present: dict[str, list[AnyArray]] = {name: [] for name in schema}
        self._words: dict[str, dict[str, int]] = {
            name: {} for name, item in schema.items() if item.categories is not None
        }

    def take(self, batch: Batch) -> dict[str, AnyArray]:
        """Rows of each field as they stand in the file, after those of earlier batches."""
        rows = {name: self._rows(batch, name) for name in self._schema}
        for name in self._schema:
            self._present[name].append(batch.present(name).numpy())
        for level in self._levels:
            counts = batch.rows_per_graph(level).numpy()
            self._counts[level].append(counts)
            self._totals[level] += int(counts.sum())
        return rows

    def _rows(self, batch: Batch, name: str) -> AnyArray:
        item = self._schema[name]
        values: AnyArray = batch[name].numpy()
        if item.categories is not None:
            words = self._words[name]
            texts = batch.strings(name)
            codes = [0 if text is None else words.setdefault(text, len(words)) for text in texts]
            return np.array(codes, dtype=np.int32)
        if item.index_of is None:
            return values
        here = batch.present(name).repeat_interleave(batch.rows_per_graph(item.level)).numpy()
        rows: AnyArray = np.where(_aligned(here, values), values + self._totals[item.index_of], 0)
        return rows

    def arrays(self) -> dict[str, AnyArray]:
        """Arrays by name, which the page on exports lists."""
        found: dict[str, AnyArray] = {}
        used = set(levels_of(self._schema.values()))
        for level, counts in self._counts.items():
            if level in used:
                own = {"atom": "batch_ptr", "edge": "edge_ptr"}
                name = own.get(level, f"level_ptrs/{level}")
                found[name] = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        own_levels = (level for level in used if not level.built_in)
        found |= {f"kind/{level}": np.array(kind_of(level)) for level in sorted(own_levels)}
        for name, item in self._schema.items():
            has = np.concatenate(self._present[name])
            texts = {"level": str(item.level), "unit": item.unit, "index_of": item.index_of or ""}
            found |= {f"{what}/{name}": np.array(str(text)) for what, text in texts.items() if text}
            if not has.all():
                found[f"present/{name}"] = has
            if name in self._words:
                found[f"categories/{name}"] = np.array([*self._words[name]], dtype=np.str_)
        return found


def _aligned(mask: AnyArray, values: AnyArray) -> AnyArray:
    """Mask [K] in the shape of values [K, ...]."""
    return mask.reshape(-1, *(1,) * (values.ndim - 1))


def _add_file(
    archive: zipfile.ZipFile, name: str, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    """Add the bytes of a file as an array."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with (
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
        path.open("rb") as content,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        shutil.copyfileobj(content, member, _BLOCK)
