"""Find checkpoints by path, URL, name in a model zoo, or address on the Hugging Face Hub."""

import difflib
import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import checkpoint as zoos

from revcol_mm.errors import CheckpointError

from .hub_file import HUB, hub_file
from .shards import is_sharded

PUBLISHED_WEIGHTS = 'https://github.com/megvii-research/RevCol/releases/download/checkpoint/'
ZOOS = {
    'torchvision': zoos.get_torchvision_models,
    'modelzoo': zoos.get_torchvision_models,
    'open-mmlab': zoos.get_external_models,
    'openmmlab': zoos.get_external_models,
    'mmcls': zoos.get_mmcls_models,
}
_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')


def local_checkpoint(source: str | Path, setting: str | None = 'model.backbone.init_cfg') -> Path:
    """Return the local path of a checkpoint, after downloading it if it is on the web and not yet cached.

    A URL is downloaded into torch hub's cache. If its file name contains the start of its SHA-256, as in
    ``resnet50-0676ba61.pth``, the file is checked against it.

    Args:
        source: A path, a URL, a name in one of MMEngine's model zoos, such as torchvision://resnet50, or an
            address on the Hugging Face Hub, see :mod:`revcol_mm.checkpoints.hub_file`.
        setting: The config key that names the checkpoint, for the error message; None if it was not named
            in a config.

    Raises:
        FileNotFoundError: If the file does not exist or cannot be downloaded.
        CheckpointError: If the file does not have the hash in its name.
    """
    source = zoo_url(str(source))
    advice = f'. To go without: --cfg-options {setting}=None' if setting else ''
    if not source.startswith((HUB, 'http://', 'https://')):
        path = Path(source).expanduser()
        if not path.is_file() and not is_sharded(path):
            raise FileNotFoundError(
                f'no checkpoint {path}; published weights are at {PUBLISHED_WEIGHTS}{advice}'
            )
        return path
    fetch = hub_file if source.startswith(HUB) else _download
    fetched: list[Path] = []
    problem: Exception | None = None
    # The main process downloads first; the processes of other machines, which have their own disk, follow.
    # If one fails, all raise its error: the others would wait for it in their next collective operation.
    for may_fetch in (is_main_process(), True):
        if may_fetch and not fetched:
            try:
                fetched.append(fetch(source))
            except FileNotFoundError as error:
                problem = FileNotFoundError(f'{error}{advice}')
            except Exception as error:
                problem = error
        for each in all_gather_object(problem):
            if each is not None:
                raise each
    return fetched[0]


def zoo_url(source: str) -> str:
    """Return the URL of a name in a model zoo of MMEngine; return any other source unchanged.

    Raises:
        FileNotFoundError: If the zoo has no such model.
    """
    zoo, _, name = source.partition('://')
    if zoo not in ZOOS:
        return source
    urls = ZOOS[zoo]()
    name = zoos.get_deprecated_model_names().get(name, name) if 'mmlab' in zoo else name
    if name not in urls:
        close = difflib.get_close_matches(name, urls, n=3) or sorted(urls)[:3]
        raise FileNotFoundError(f'no model {name!r} in {zoo}://; it has {", ".join(close)}, ...')
    return urls[name]


def _download(url: str) -> Path:
    # Each URL has a cache folder of its own, because many hosts serve a file called model.bin.
    folder = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = Path(torch.hub.get_dir(), 'checkpoints', folder, Path(urlparse(url).path).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise FileNotFoundError(
                f'cannot fetch {url} ({error}); download it by other means to {path}'
            ) from error
    named = _HASH.search(path.name)
    if named and not sha256(path).startswith(named[1]):
        raise CheckpointError(
            f'{path} is damaged or another file: its SHA-256 does not start with {named[1]}, as in its name; '
            f'remove it, and download {url} again'
        )
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        for chunk in iter(lambda: file.read(2**20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def is_remote(source: str | Path) -> bool:
    """Return whether only a file backend of MMEngine can read a source, such as s3://BUCKET/FILE."""
    scheme, separator, _ = str(source).partition('://')
    return bool(separator) and scheme not in (*ZOOS, 'hf', 'http', 'https')
