"""Some systems of a batch as another batch."""

import torch

from zarrpipe.data.concatenate import Parts
from zarrpipe.data.csr import tensor_pointers, tensor_segment_rows
from zarrpipe.data.fields import Level


def selected(parts: Parts, chosen: torch.Tensor) -> Parts:
    """What a batch of the systems at `chosen` [K] int64, in that order, is made of."""
    fields, levels, batch_ptr, edge_ptr, present = parts
    new_batch_ptr = tensor_pointers(batch_ptr.diff()[chosen])
    new_edge_ptr = tensor_pointers(edge_ptr.diff()[chosen])
    rows = {
        Level.ATOM: tensor_segment_rows(batch_ptr[:-1][chosen], new_batch_ptr),
        Level.EDGE: tensor_segment_rows(edge_ptr[:-1][chosen], new_edge_ptr),
        Level.SYSTEM: chosen,
    }
    taken = {name: fields[name].index_select(0, rows[level]) for name, level in levels.items()}
    if "neighbor_list" in taken:
        shift = new_batch_ptr[:-1] - batch_ptr[:-1][chosen]
        taken["neighbor_list"] += torch.repeat_interleave(shift, new_edge_ptr.diff())[:, None]
    masks = {name: mask[chosen] for name, mask in present.items()}
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    return taken, dict(levels), new_batch_ptr, new_edge_ptr, masks
