"""Where a checkpoint is: a file, a URL, a name in a model zoo, an address on a hub."""

import difflib
import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import checkpoint as zoos

from revcol_mm.errors import CheckpointError

from .hub_file import HUB, hub_file
from .shards import is_sharded

PUBLISHED_WEIGHTS = 'https://github.com/megvii-research/RevCol/releases/download/checkpoint/'
OTHER_STORE = re.compile(r'(?!https?:)(\S+:)?\w[\w-]*://')  # such as s3://, which MMEngine's backends fetch
_ZOOS = {
    'torchvision': zoos.get_torchvision_models,
    'modelzoo': zoos.get_torchvision_models,
    'open-mmlab': zoos.get_external_models,
    'openmmlab': zoos.get_external_models,
    'mmcls': zoos.get_mmcls_models,
}
_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')


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
            address of :func:`revcol_mm.checkpoints.hub_file.hub_file`.
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


def is_remote(source: str | Path) -> bool:
    """Whether a source is in a store, such as s3://, that only a file backend of MMEngine can reach."""
    source = str(source)
    return bool(OTHER_STORE.match(source)) and source.partition('://')[0] not in (*_ZOOS, 'hf')
