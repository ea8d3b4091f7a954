"""Reading checkpoints safely, the published RevCol ones included, and loading backbones from them.

A published classification checkpoint holds, beside its weights, a pickled yacs config and a Python
builtin, which ``torch.load(weights_only=True)`` refuses. Here such objects are replaced by empty
dictionaries while reading: nothing that is pickled in a file is ever imported or called.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn

PUBLISHED_WEIGHTS = 'https://github.com/megvii-research/RevCol/releases/download/checkpoint/'


class _Inert(dict):
    """Stands in for whatever is pickled beside weights; keeps nothing and does nothing."""

    def __new__(cls, *args: Any) -> '_Inert':
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def local_checkpoint(source: str) -> Path:
    """Path of a checkpoint on this machine; a URL is fetched into torch hub's cache, once.

    Raises:
        FileNotFoundError: If the file is not there or cannot be fetched; says what to do.
    """
    source = str(source)
    if not source.startswith(('http://', 'https://')):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f'no checkpoint {path}; published weights are at {PUBLISHED_WEIGHTS}. '
                'To go without: --cfg-options model.backbone.init_cfg=None'
            )
        return path
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(source).path).name)
    for may_fetch in (is_main_process(), True):  # the main process first, then other machines' ones
        if may_fetch and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(source, str(path))
            except OSError as error:
                raise FileNotFoundError(
                    f'cannot fetch {source} ({error}); fetch it by other means to {path}. '
                    'To go without: --cfg-options model.backbone.init_cfg=None'
                ) from error
        barrier()
    return path


def read_checkpoint(source: str) -> dict[str, Any]:
    """Read a checkpoint, file or URL, onto the CPU.

    Tensors, containers, numbers and strings come back as they are, any other pickled object as an empty
    dictionary.

    Raises:
        FileNotFoundError: See :func:`local_checkpoint`.
        pickle.UnpicklingError: If the file asks for something that is not even safe to replace.
    """
    path = local_checkpoint(source)
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # torch's format before 1.6: read as weights only
        unsafe = []
    with torch.serialization.safe_globals([(_Inert, name) for name in unsafe]):
        return torch.load(path, map_location='cpu', weights_only=True)


def backbone_weights(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Find a backbone's weights in a classification, detection or segmentation checkpoint.

    Args:
        checkpoint: Holds weights under 'model' or 'state_dict' or is itself a state dict. Names may be
            prefixed 'module.', and 'backbone.', in which case all others belong to heads.

    Returns:
        The weights under the backbone's own names, and the names that were left out.

    Raises:
        ValueError: If there are no weights.
    """
    weights = checkpoint.get('model') or checkpoint.get('state_dict') or checkpoint
    weights = {k.removeprefix('module.'): v for k, v in weights.items() if isinstance(v, Tensor)}
    if not weights:
        raise ValueError(
            "no weights in the checkpoint, neither under 'model' nor under 'state_dict' nor at its top, "
            f'where it holds {sorted(map(str, checkpoint))[:10]}'
        )
    own = {k.removeprefix('backbone.'): v for k, v in weights.items() if k.startswith('backbone.')}
    return (own, [k for k in weights if not k.startswith('backbone.')]) if own else (weights, [])


class LoadReport(NamedTuple):
    """What became of the keys of a checkpoint and of a model."""

    matched: list[str]
    padded: list[str]
    missing: list[str]
    mismatched: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        modules = Counter(name.split('.')[0] for name in self.unexpected)
        lines = [
            f'matched {len(self.matched)}, of which zero-padded to a larger kernel {len(self.padded)}',
            f'missing {len(self.missing)}: {self.missing[:5]}',
            f'of another shape {len(self.mismatched)}: {self.mismatched[:5]}',
            f'unexpected {len(self.unexpected)}, by module: {dict(modules)}',
        ]
        return '\n  '.join(lines)


def load_backbone(backbone: nn.Module, source: str) -> LoadReport:
    """Load a published checkpoint, or one of ours, into a backbone, and log what was matched.

    Depthwise kernels smaller than the model's are zero-padded, which leaves the function the same
    (RevCol-H for segmentation is the 3x3 model padded to 7x7).

    Args:
        backbone: The model to load into.
        source: File or URL; see :func:`read_checkpoint` and :func:`backbone_weights`.

    Returns:
        The report that was logged.

    Raises:
        RuntimeError: If a weight of the backbone is missing or has another shape.
    """
    weights, unexpected = backbone_weights(read_checkpoint(source))
    state = backbone.state_dict()
    report = LoadReport([], [], [], [], unexpected + [name for name in weights if name not in state])
    for name, own in state.items():
        if name not in weights:
            report.missing.append(name)
            continue
        weight = weights[name]
        if name.endswith('dwconv.weight') and weight.ndim == own.ndim:
            margin, odd = divmod(own.shape[-1] - weight.shape[-1], 2)
            if margin > 0 and not odd:
                weights[name] = weight = F.pad(weight, [margin] * 4)
                report.padded.append(name)
        if weight.shape == own.shape:
            report.matched.append(name)
        else:
            report.mismatched.append(f'{name} {tuple(weight.shape)}, not {tuple(own.shape)}')
    message = f'{source} into {type(backbone).__name__}:\n  {report}'
    if report.missing or report.mismatched:
        raise RuntimeError(f'not loaded: {message}')
    print_log(f'loaded {message}', logger='current')
    backbone.load_state_dict({name: weights[name] for name in report.matched})
    return report
