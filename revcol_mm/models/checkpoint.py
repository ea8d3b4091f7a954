"""Checkpoints: reading them safely, the published RevCol ones included, loading and writing them.

A published classification checkpoint holds, beside its weights, a pickled yacs config and a Python
builtin, which ``torch.load(weights_only=True)`` refuses. Here such objects are replaced by dictionaries of
their items while reading: nothing that is pickled in a file is ever imported or called.

Layouts, each with names possibly prefixed 'module.':

- published, classification: weights under 'model', the backbone's names bare, heads ``cls.*`` or
  ``cls_blocks.*`` and ``decoder_blocks.*``; the averaged ones, if any, under 'state_dict_ema';
- published, detection and segmentation (MMCV 1): weights under 'state_dict', the backbone's prefixed
  'backbone.'. Heads are named as in MMDetection 3 and MMSegmentation 1, which
  ``tests/test_checkpoint.py`` holds against the names of MMDetection 2 and MMSegmentation 0;
- ours, which is MMEngine's: the same; the averaged ones, if any, are those under 'state_dict'.
"""

import difflib
import hashlib
import json
import mmap
import os
import re
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.runner import checkpoint as zoos
from torch import Tensor, nn

from .hub_file import HUB, hub_file
from .sharded_checkpoint import REST, is_sharded, read_weights
from .whole_files import replacing

PUBLISHED_WEIGHTS = 'https://github.com/megvii-research/RevCol/releases/download/checkpoint/'
BACKBONE = 'backbone.'  # prefix of the backbone's names in a whole model
STEM = 'stem.0.weight'  # of a RevCol, (C, channels of the images, 4, 4)
MAX_PLAIN = 1_000_000  # items of all that a checkpoint tells beside its weights
MAX_SHARING = 8  # bytes of weights for each byte of a file, where weights share memory
CLASSIFICATION_HEADS = {'cls', 'cls_blocks', 'decoder_blocks'}
OTHER_STORE = re.compile(r'(?!https?:)(\S+:)?\w[\w-]*://')  # such as s3://, which MMEngine's backends fetch
_ZOOS = {
    'torchvision': zoos.get_torchvision_models,
    'modelzoo': zoos.get_torchvision_models,
    'open-mmlab': zoos.get_external_models,
    'openmmlab': zoos.get_external_models,
    'mmcls': zoos.get_mmcls_models,
}
_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
_BACKBONE_NAME = re.compile(r'(?:stem|subnet\d+)\.')


class CheckpointError(RuntimeError):
    """A checkpoint and a model do not fit each other, or there is no checkpoint to load."""


class _Inert:
    """Stands in for the type of whatever is pickled beside weights; of that, a Counter keeps items alone.

    Of the types whose items torch lets a file set, that is the one that may have a state as well.
    """

    def __new__(cls, *args: Any) -> Counter:
        return Counter()


def _zoo_url(source: str) -> str:
    """What a name in MMEngine's model zoos, such as torchvision://resnet50, stands for; others as they are.

    Raises:
        FileNotFoundError: If a zoo has no such model.
    """
    zoo, _, name = source.partition('://')
    if zoo not in _ZOOS:
        return source
    urls = _ZOOS[zoo]()
    name = zoos.get_deprecated_model_names().get(name, name) if 'mmlab' in zoo else name
    if name not in urls:
        close = difflib.get_close_matches(name, urls, n=3) or sorted(urls)[:3]
        raise FileNotFoundError(f'no model {name!r} in {zoo}://; it has {", ".join(close)}, ...')
    return urls[name]


def local_checkpoint(source: str | Path, setting: str | None = 'model.backbone.init_cfg') -> Path:
    """Return the path of a checkpoint on this machine; a URL is fetched into torch hub's cache, once.

    Where a file's name has a dash and digits of its SHA-256 before its suffix, as torch's and OpenMMLab's
    have them, they are checked.

    Args:
        source: File, URL, a name in one of MMEngine's model zoos, such as torchvision://resnet50, or an
            address of :func:`revcol_mm.models.hub_file.hub_file`.
        setting: What names the checkpoint in a config, for the error's advice. None: no config does.

    Raises:
        FileNotFoundError: If the file is not there or cannot be fetched; says what to do.
        CheckpointError: If the file has another hash than its name says.
    """
    source = _zoo_url(str(source))
    advice = f'. To go without: --cfg-options {setting}=None' if setting else ''
    if source.startswith(HUB):
        path = None
        for may_fetch in (is_main_process(), True):  # the main process first, then other machines' ones
            try:
                path = path or (hub_file(source) if may_fetch else None)
            except FileNotFoundError as error:
                raise FileNotFoundError(f'{error}{advice}') from error
            barrier()
        return path
    if not source.startswith(('http://', 'https://')):
        path = Path(source)
        if not path.is_file() and not is_sharded(path):
            raise FileNotFoundError(
                f'no checkpoint {path}; published weights are at {PUBLISHED_WEIGHTS}{advice}'
            )
        return path
    # A folder for each address: many hosts have a model.bin.
    address = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = Path(torch.hub.get_dir(), 'checkpoints', address, Path(urlparse(source).path).name)
    for may_fetch in (is_main_process(), True):  # the main process first, then other machines' ones
        if may_fetch and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(source, str(path))
            except OSError as error:
                raise FileNotFoundError(
                    f'cannot fetch {source} ({error}); fetch it by other means to {path}{advice}'
                ) from error
        barrier()
    named = _HASH.search(path.name)
    if named and not _sha256(path).startswith(named[1]):
        raise CheckpointError(
            f'{path} is not what its name says: its SHA-256 does not begin with {named[1]}; remove it, and '
            f'fetch {source} anew'
        )
    return path


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(2**20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def read_checkpoint(source: str, setting: str | None = 'model.backbone.init_cfg') -> dict[str, Any]:
    """Read a checkpoint onto the CPU: file or URL, in torch's format or as safetensors, or a sharded folder.

    Tensors, containers, numbers and strings come back as they are, any other pickled object as a Counter of
    its items, if it had any.

    Args:
        source: See :func:`local_checkpoint`; also what a file backend of MMEngine can fetch, such as s3://.
        setting: See :func:`local_checkpoint`.

    Raises:
        FileNotFoundError: See :func:`local_checkpoint`.
        CheckpointError: If the file is damaged, of another kind, holds something else than a dict, asks for
            something that is not even safe to replace or for more memory than it has bytes; or if it is a
            safetensors file and that package is missing.
    """
    if is_remote(source):
        suffix = Path(str(source)).suffix
        try:
            with get_local_path(str(source)) as path:
                return _read(Path(path), suffix)
        except Exception as error:  # of a backend, or as below
            raise CheckpointError(f'cannot read {source}: {unreadable_because(error)}') from error
    path = local_checkpoint(source, setting)
    try:
        return _read(path, path.suffix)
    except Exception as error:  # of files of others torch raises all sorts
        raise CheckpointError(f'cannot read {path}: {unreadable_because(error)}') from error


def is_remote(source: str | Path) -> bool:
    """Whether a source is in a store, such as s3://, that only a file backend of MMEngine can reach."""
    source = str(source)
    return bool(OTHER_STORE.match(source)) and source.partition('://')[0] not in (*_ZOOS, 'hf')


def unreadable_because(error: Exception) -> str:
    """What torch says of a file, in one line and without its advice to unpickle it the unsafe way."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = re.search(r'(?:WeightsUnpickler error: |Trying to load )(.*)', str(error))
    return told[1].strip() if told else (str(error).strip() or type(error).__name__).splitlines()[0]


def check_size(path: str | Path) -> None:
    """Refuse what unpacks to much more than the file has bytes, which no checkpoint of torch does.

    Raises:
        ValueError: If parts of an archive are compressed or overlap, or a pickle asks for a bytearray, by
            which a few bytes can fill any memory; or Python and torch do not agree whether it is an archive.
    """
    with open(path, 'rb') as file:
        is_archive = file.read(4) == b'PK\3\4'  # as torch tells
    if is_archive != zipfile.is_zipfile(path):  # such as one behind whose end there is too much else
        raise ValueError('it is half an archive')
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if size > os.path.getsize(path) or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError(f'it is compressed, to unpack to {size} bytes; torch compresses no checkpoint')
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'\nbytearray\n') >= 0:
            raise ValueError('it asks for a bytearray, which no checkpoint holds')


def _read(path: Path, suffix: str) -> dict[str, Any]:
    if is_sharded(path):
        return {**_read(path / REST, '.pth'), 'state_dict': read_weights(path)}
    if suffix == '.safetensors':
        return _read_safetensors(path)
    check_size(path)
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # torch's format before 1.6: read as weights only
        unsafe = []
    with torch.serialization.safe_globals([(_Inert, name) for name in unsafe]):
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(checkpoint, dict):
        raise ValueError(f'it holds a {type(checkpoint).__name__}, not a dict as checkpoints do')
    _check_strides(checkpoint, path.stat().st_size)
    return checkpoint


def _check_strides(checkpoint: dict[str, Any], size: int) -> None:
    """Refuse weights that are few bytes in the file, seen again and again.

    Raises:
        ValueError: If all weights together take much more memory than the file has bytes. Weights that
            share memory, or are there under two names, are honest.
    """
    places = [checkpoint, *(value for value in checkpoint.values() if isinstance(value, dict))]
    tensors = [value for place in places for value in place.values() if isinstance(value, Tensor)]
    total = sum(tensor.nbytes for tensor in tensors)
    if total > MAX_SHARING * size:
        raise ValueError(f'its weights unfold to {total} bytes')


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
    except safetensors.SafetensorError as error:
        raise ValueError(f'no safetensors file: {error}') from error
    return {'meta': meta, 'state_dict': weights}


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise RuntimeError('.safetensors files need safetensors: pip install safetensors') from error
    return safetensors


def has_ema(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint holds weights that were averaged in training."""
    return bool(checkpoint.get('state_dict_ema') or checkpoint.get('ema_state_dict'))


def model_weights(checkpoint: dict[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint of any layout, under their names in a whole model.

    Args:
        checkpoint: In one of the module's layouts, or itself a dict of weights.
        ema: Take the averaged weights.

    Returns:
        The weights, the backbone's prefixed 'backbone.'. Versions of modules that the checkpoint states
        in ``_metadata``, which some of MMDetection's go by, are kept.

    Raises:
        CheckpointError: If there are no weights or, with ``ema``, no averaged ones.
    """
    if ema and not has_ema(checkpoint):
        raise CheckpointError(
            "no averaged weights in the checkpoint, neither under 'state_dict_ema' (published) nor under "
            f"'ema_state_dict' (MMEngine); it holds {sorted(map(str, checkpoint))[:10]}"
        )
    # MMEngine's EMAHook swaps them: 'state_dict' is the average, 'ema_state_dict' what it is taken of.
    places = ['state_dict_ema', 'state_dict'] if ema else ['model', 'state_dict']
    weights = next((checkpoint[place] for place in places if checkpoint.get(place)), checkpoint)
    named = OrderedDict()
    for name, weight in weights.items() if isinstance(weights, dict) else ():
        if isinstance(weight, Tensor):
            name = name.removeprefix('module.')
            named[BACKBONE + name if _BACKBONE_NAME.match(name) else name] = weight
    if not named:
        raise CheckpointError(
            "no weights in the checkpoint, neither under 'model' nor under 'state_dict' nor at its top, "
            f'where it holds {sorted(map(str, checkpoint))[:10]}'
        )
    named._metadata = getattr(weights, '_metadata', OrderedDict())
    return named


def pad_kernel(weight: Tensor, size: int) -> Tensor:
    """Zero-pad a depthwise kernel (C, 1, k, k) to (C, 1, size, size), which leaves the function the same.

    Raises:
        ValueError: If the kernel is larger, or one of the sizes is odd and the other even.
    """
    margin, odd = divmod(size - weight.shape[-1], 2)
    if margin < 0 or odd:
        raise ValueError(f'cannot zero-pad a kernel from size {weight.shape[-1]} to {size}')
    return F.pad(weight, [margin] * 4)


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Fit the first convolution of a network for RGB, (C, 3, k, k), to images of other channels.

    As timm's ``adapt_input_conv``. For one channel the three kernels are summed: a grey image has the
    response that it has in RGB. For other numbers they are repeated, red, green, blue, red and so on, and
    multiplied by 3 / in_channels, which keeps the size of the response. That is where a training may start,
    better than at random, timm's author says; what bands beside colours are is to be learned.

    Returns:
        (C, in_channels, k, k).
    """
    if in_channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels]
    return repeated * (3 / in_channels)


class LoadReport(NamedTuple):
    """What became of the keys of a checkpoint and of a model."""

    matched: list[str]
    padded: list[str]
    adapted: list[str]
    missing: list[str]
    mismatched: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        modules = Counter(name.removeprefix(BACKBONE).split('.')[0] for name in self.unexpected)
        lines = [
            f'matched {len(self.matched)}, of which zero-padded to a larger kernel {len(self.padded)}',
            *([f'adapted to the channels of the images: {self.adapted}'] if self.adapted else []),
            f'missing {len(self.missing)}: {self.missing[:5]}',
            f'of another shape {len(self.mismatched)}: {self.mismatched[:5]}',
            f'unexpected {len(self.unexpected)}, by module: {dict(modules)}',
        ]
        return '\n  '.join(lines)


def _describe_arch(weights: dict[str, Tensor]) -> str:
    """A RevCol's number of columns, and what the first one is like."""
    bare = {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}
    columns = {name.split('.')[0] for name in bare if name.startswith('subnet')}
    channels = [bare[name].numel() for name in bare if re.fullmatch(r'subnet0\.alpha\d+', name)]
    layers = Counter(
        name.split('.')[1] for name in bare if re.fullmatch(r'subnet0\.level\d+\.blocks\.\d+\.gamma', name)
    )
    if not columns:
        return 'no RevCol'
    arch = f'{len(columns)} columns, channels {channels}, layers {list(layers.values())}'
    stem = bare.get(STEM)
    if stem is not None and stem.ndim > 1 and stem.shape[1] != 3:
        arch = f'{arch}, in_channels {stem.shape[1]}'
    return arch


def fit_weights(
    weights: dict[str, Tensor],
    model: nn.Module,
    source: str,
    required: str = '',
    adapt: bool = True,
) -> LoadReport:
    """Compare weights with those of a model, and log what matches.

    Depthwise kernels smaller than the model's are zero-padded, in ``weights`` (RevCol-H for segmentation is
    the 3x3 model padded to 7x7), and a stem for RGB is adapted to other channels, see :func:`adapt_stem`.

    Args:
        weights: By names in the model.
        model: What they will be loaded into.
        source: Where they are from, for messages.
        required: Prefix of the model's weights that may not be missing. '': all of them.
        adapt: Whether the model will train, and a stem may be adapted to where that starts.

    Returns:
        The report that was logged.

    Raises:
        CheckpointError: If nothing matches, a required weight is missing or has another shape, or the
            checkpoint's backbone has weights that the model's lacks.
    """
    state = model.state_dict()
    report = LoadReport([], [], [], [], [], [name for name in weights if name not in state])
    misfits = [name for name in report.unexpected if _BACKBONE_NAME.match(name.removeprefix(BACKBONE))]
    for name, own in state.items():
        if name not in weights:
            if name.endswith('num_batches_tracked'):  # in no checkpoint before torch 0.4.1; not used
                continue
            report.missing.append(name)
        else:
            weight = weights[name]
            is_kernel = weight.ndim == own.ndim == 4
            if is_kernel and weight.shape[-1] < own.shape[-1] and name.endswith('dwconv.weight'):
                weights[name] = weight = pad_kernel(weight, own.shape[-1])
                report.padded.append(name)
            is_stem = is_kernel and name.removeprefix(BACKBONE) == STEM
            if adapt and is_stem and weight.shape[1] == 3 != own.shape[1]:
                weights[name] = weight = adapt_stem(weight, own.shape[1])
                report.adapted.append(f'{name} from 3 to {own.shape[1]}')
            if weight.shape == own.shape:
                report.matched.append(name)
                continue
            report.mismatched.append(f'{name} {tuple(weight.shape)}, not {tuple(own.shape)}')
        if name.startswith(required):
            misfits.append(name)
    message = f'{source} into {type(model).__name__}:\n  {report}'
    if misfits or not report.matched:
        raise CheckpointError(
            f'cannot load {message}\n'
            f'  the checkpoint has {_describe_arch(weights)}\n  the model has {_describe_arch(state)}'
        )
    print_log(f'loading {message}', logger='current')
    return report


def load_backbone(backbone: nn.Module, source: str) -> LoadReport:
    """Load a published checkpoint, or one of ours, into a backbone, and log what was matched.

    Args:
        backbone: The model to load into.
        source: File or URL; see :func:`read_checkpoint`. Weights of heads are left out.

    Returns:
        The report that was logged.

    Raises:
        CheckpointError: If there are no weights in the file, one of the backbone is missing or has another
            shape, or the checkpoint's backbone has more of them.
    """
    weights = model_weights(read_checkpoint(source))
    weights = {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}
    report = fit_weights(weights, backbone, source)
    backbone.load_state_dict({name: weights[name] for name in report.matched})
    return report


def published_layout(weights: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in the published layout: classification's unless there are other heads.

    Args:
        weights: As :func:`model_weights` returns them.
        meta: What else the checkpoint tells; the classification layout has no place for it.
    """
    heads = {name.split('.')[0] for name in weights if not name.startswith(BACKBONE)}
    if heads <= CLASSIFICATION_HEADS:
        return {'model': {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}}
    return {'meta': meta, 'state_dict': weights}


def plain(value: Any) -> Any:
    """Copy what JSON can hold: dicts, lists, numbers and strings; None stands for anything else.

    Raises:
        CheckpointError: If it is larger than any honest one: lists that share lists, or contain themselves,
            unfold without end.
    """
    room = MAX_PLAIN

    def copy(value: Any) -> Any:
        nonlocal room
        is_array = isinstance(value, (np.ndarray, np.generic))
        room -= value.size if is_array else 1
        if room < 0:
            raise CheckpointError(f'beside weights the checkpoint unfolds to over {MAX_PLAIN} items')
        if is_array:
            value = value.tolist()
        if isinstance(value, dict) and not isinstance(value, Counter):
            return {str(key): copy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(item) for item in value]
        return value if isinstance(value, (str, int, float)) else None

    try:
        return copy(value)
    except RecursionError as error:
        raise CheckpointError('what the checkpoint holds beside weights contains itself') from error


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
