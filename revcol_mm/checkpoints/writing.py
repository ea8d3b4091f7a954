"""Write checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch

from .layouts import model_weights
from .reading import _safetensors
from .sources import _sha256
from .whole_files import replacing


def save_checkpoint(checkpoint: dict[str, Any], path: Path, name_hash: bool = False) -> Path:
    """Write a checkpoint, whole or not at all, and create its folder if need be.

    Args:
        checkpoint: Weights under 'model' or 'state_dict', and what :func:`plain` returns.
        path: Ends in '.pth' (torch's format) or '.safetensors'.
        name_hash: Put a dash and the first 8 digits of the file's SHA-256 before the suffix, as OpenMMLab's
            file names have them.

    Returns:
        The path that was written.

    Raises:
        ValueError: If the path ends in something else.
        RuntimeError: If it is to be a safetensors file and that package is missing.
    """
    if path.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'a checkpoint ends in .pth or .safetensors, not {path.name}')
    with replacing(path) as file:
        if path.suffix == '.safetensors':
            # one entry: safetensors writes several in random order, which would change the hash
            meta = {'meta': json.dumps(checkpoint.get('meta', {}))}
            # copied, for the format has no two weights that share memory
            weights = {
                name: weight.clone(memory_format=torch.contiguous_format)
                for name, weight in model_weights(checkpoint).items()
            }
            _safetensors().torch.save_file(weights, file.unfinished, meta)
        else:
            with file.unfinished.open('wb') as content:  # given a path, torch would write its name into it
                torch.save(checkpoint, content)
        if name_hash:
            file.path = path.with_stem(f'{path.stem}-{_sha256(file.unfinished)[:8]}')
    return file.path
