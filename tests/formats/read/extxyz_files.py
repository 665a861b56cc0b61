"""Small extended XYZ files in the dialects of public data sets, and what ASE reads in them."""

import importlib
import io

import numpy as np

CELL = 'Lattice="5 0 0 0 5 0 0 0 5" pbc="T T T"'


def frame(comment, rows, properties="species:S:1:pos:R:3"):
    """Text of a frame; `rows` are tuples of a symbol and numbers."""
    lines = ["  ".join(map(str, row)) for row in rows]
    return "\n".join([str(len(rows)), f"Properties={properties} {comment}".strip(), *lines, ""])


def water(comment, *, forces=None, shift=0.0):
    """Frame of water with forces [3, 3] under a key, or none."""
    rows = [("O", 0.0, 0.0, shift), ("H", 0.96, 0.0, shift), ("H", -0.24, 0.93, shift)]
    if forces is None:
        return frame(comment, rows)
    numbers = np.arange(9.0).reshape(3, 3) / 10 + shift
    rows = [(*row, *values) for row, values in zip(rows, numbers, strict=True)]
    return frame(comment, rows, f"species:S:1:pos:R:3:{forces}:R:3")


def frames_of_ase(path):
    """What ASE reads."""
    return importlib.import_module("ase.io").read(path, index=":", format="extxyz")


def ase_frame(text):
    return importlib.import_module("ase.io").read(io.StringIO(text), format="extxyz")
