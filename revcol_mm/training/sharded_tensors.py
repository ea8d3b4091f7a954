"""Tensors that torch's ``fully_shard`` (FSDP2) spreads over the processes."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather all shards of a DTensor, a collective operation; return any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
