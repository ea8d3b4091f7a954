"""Write checkpoints to publish, in torch's format or as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch

from .atomic_files import replacing
from .layouts import model_weights
from .reading import import_safetensors
from .sources import sha256


def save_checkpoint(checkpoint: dict[str, Any], path: Path, name_hash: bool = False) -> Path:
    """Write a checkpoint, and create its folder if it is missing; after an error, no file is left.

    Args:
        checkpoint: Weights under 'model' or 'state_dict', and metadata as returned by :func:`plain`.
        path: Ends in '.pth' (torch's format) or '.safetensors'.
        name_hash: Append a dash and the first 8 digits of the file's SHA-256 to its stem, as in OpenMMLab's
            file names.

    Returns:
        The path that was written.

    Raises:
        ValueError: If the path has another suffix.
        RuntimeError: If the suffix is '.safetensors' and the package safetensors is missing.
    """
    if path.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'a checkpoint ends in .pth or .safetensors, not {path.name}')
    with replacing(path) as file:
        if path.suffix == '.safetensors':
            # One entry, because safetensors writes several in random order, which would change the hash.
            meta = {'meta': json.dumps(checkpoint.get('meta', {}))}
            # Copies, because safetensors cannot store weights that share memory.
            weights = {
                name: weight.clone(memory_format=torch.contiguous_format)
                for name, weight in model_weights(checkpoint).items()
            }
            import_safetensors().torch.save_file(weights, file.unfinished, meta)
        else:
            # An open file, because torch.save writes the name of a path into the archive, which would change
            # the hash.
            with file.unfinished.open('wb') as content:
                torch.save(checkpoint, content)
        if name_hash:
            file.path = path.with_stem(f'{path.stem}-{sha256(file.unfinished)[:8]}')
    return file.path
