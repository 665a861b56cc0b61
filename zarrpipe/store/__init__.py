"""Layout, writing, reading and upkeep of one Zarr store of atomic systems."""
