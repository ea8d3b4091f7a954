"""Files of strangers, given to whole commands: nothing in them runs, and nothing takes more than its size."""

import builtins
import hashlib
import io
import os
import pickle
import re
import shutil
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from revcol_mm.checkpoints import sources
from revcol_mm.checkpoints.reading import plain, read_checkpoint
from revcol_mm.checkpoints.shards import REST, has_all_shards, read_weights, write_shards
from revcol_mm.checkpoints.sources import local_checkpoint
from revcol_mm.errors import CheckpointError
from revcol_mm.training import load_from

from .subprocesses import run
from .test_checkpoint import RunsCode

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'


def on(data):
    """Options that take a config of segmentation to the sample data, for two short iterations."""
    roots = [f'{part}_dataloader.dataset.data_root={data}/ade20k' for part in ('train', 'val', 'test')]
    return [
        '--cfg-options',
        *roots,
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=2',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.save_best=None',
    ]


@pytest.fixture(scope='module')
def trained(sample_data, tmp_path_factory):
    """A checkpoint of a run, from which another may go on."""
    folder = tmp_path_factory.mktemp('trained')
    run('tools/train.py', SEGMENTOR, '--work-dir', folder, '--seed', 0, *on(sample_data))
    return folder / 'iter_1.pth'


@pytest.fixture
def attack(trained, tmp_path):
    """A whole checkpoint with Python as text in all places that OpenMMLab evaluates, or might; and what tells
    that it ran."""
    marker, path = tmp_path / 'it_ran', tmp_path / 'attack/iter_1.pth'
    path.parent.mkdir()
    code = f"model = open({str(marker)!r}, 'w').close()"
    content = torch.load(trained, weights_only=True)
    content.update(cfg=code, config=code)
    content['meta'].update(config=code, cfg=code, env_info=code)
    content['message_hub']['runtime_info'].update(cfg=code, config=code)
    torch.save(content, path)
    return path, marker


@pytest.mark.parametrize(
    'command',
    [
        'train {config} --resume {file} --seed 0 --work-dir {out} {options}',
        'train {config} --resume --seed 0 --work-dir {folder} {options}',
        'train {config} --work-dir {out} {options} load_from={file}',
        'test {config} {file} --work-dir {out} {options}',
        'demo {images} --checkpoint {file} --config {config} --out {out}',
        'export {config} {file} --format torch-export --out {out}/a.pt2',
        'convert_checkpoint {file} {out}/a.safetensors',
        'publish_model {file} {out}/a.pth',
        'analysis/confusion {config} {file} --out {out} {options}',
    ],
    ids=lambda command: ' '.join(command.replace('{config} ', '').split()[:2]),
)
def test_text_in_a_checkpoint_is_not_run(command, attack, sample_data, tmp_path, call_tool):
    path, marker = attack
    Config.fromstring(torch.load(path, weights_only=True)['meta']['config'], '.py')
    assert marker.exists()  # the text does what it is made for
    marker.unlink()
    tool, *arguments = command.split()
    places = dict(
        config=SEGMENTOR,
        file=path,
        folder=path.parent,
        out=tmp_path / 'out',
        images=sample_data / 'ade20k/images/validation',
    )
    options = on(sample_data)
    filled = []
    for argument in arguments:
        filled += options if argument == '{options}' else [argument.format(**places)]
    (tmp_path / 'out').mkdir()
    _, error = call_tool(f'tools/{tool}.py', *filled)
    assert not error
    assert not marker.exists()


@pytest.mark.parametrize('kind', ['pickled', 'text'])
def test_nothing_runs_on_the_web_page(kind, attack, sample_data, tmp_path):
    from revcol_mm.apis import init_inferencer

    path, marker = attack
    if kind == 'pickled':
        content = torch.load(path, weights_only=True)
        content['meta']['code'] = RunsCode(builtins.eval, f'open({str(marker)!r}, "w").close()')
        torch.save(content, path)
    init_inferencer(SEGMENTOR, path)  # as tools/web_demo.py does
    assert not marker.exists()


# Model zoos and URLs.


def test_every_loader_of_mmengine_is_replaced():
    """Fails where MMEngine gets a loader more."""
    load_from.restrict_loading()
    assert set(CheckpointLoader._schemes.values()) == {load_from._read}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site with files, whose answers are counted, and a cache of its own."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    files, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b''))

        def log_message(self, *_):
            pass

    server = HTTPServer(('127.0.0.1', 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', files, asked
    server.shutdown()
    server.server_close()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    'zoo, table', [('torchvision', 'torchvision'), ('open-mmlab', 'external'), ('mmcls', 'mmcls')]
)
def test_models_of_zoos_are_read_and_not_unpickled(zoo, table, site, tmp_path, monkeypatch):
    url, files, _ = site
    marker = tmp_path / 'it_ran'
    weights = {'state_dict': {'backbone.conv1.weight': torch.ones(2)}}
    files['/good.pth'] = saved(weights)
    files['/bad.pth'] = saved({**weights, 'code': RunsCode(eval, f'open({str(marker)!r}, "w")')})
    files['/worse.pth'] = saved({**weights, 'code': RunsCode(os.system, f'touch {marker}')})
    monkeypatch.setitem(sources._ZOOS, zoo, lambda: {n: f'{url}/{n}.pth' for n in ('good', 'bad', 'worse')})
    load_from.restrict_loading()
    for name in ('good', 'bad'):
        loaded = CheckpointLoader.load_checkpoint(f'{zoo}://{name}', 'cpu')['state_dict']
        assert list(loaded) == ['conv1.weight' if zoo == 'mmcls' else 'backbone.conv1.weight']
    with pytest.raises(CheckpointError, match='cannot read .*worse.pth: unsupported GLOBAL posix.system'):
        CheckpointLoader.load_checkpoint(f'{zoo}://worse', 'cpu')
    assert not marker.exists()
    with pytest.raises(FileNotFoundError, match=f"no model 'goood' in {zoo}://; it has good"):
        local_checkpoint(f'{zoo}://goood')


def test_the_zoos_are_mmengine_s(monkeypatch):
    url = sources._zoo_url('torchvision://resnet50')
    assert url.startswith('https://download.pytorch.org/models/resnet50-')
    address = sources._zoo_url('open-mmlab://detectron2/resnet50_caffe')
    assert re.match(r'https://(download\.openmmlab\.com|mmassets\.onedl\.ai)/', address)
    assert sources._zoo_url('s3://bucket/resnet50') == 's3://bucket/resnet50'


def test_files_of_one_name_at_two_addresses_are_two(site):
    url, files, asked = site
    files['/a/model.bin'], files['/b/model.bin'] = b'1', b'2'
    paths = [local_checkpoint(f'{url}/{folder}/model.bin') for folder in 'abab']
    assert [path.read_bytes() for path in paths] == [b'1', b'2'] * 2
    assert asked == ['/a/model.bin', '/b/model.bin']  # once each


@pytest.mark.parametrize('length', [8, 64])
def test_a_hash_in_the_name_is_checked_on_what_was_fetched_and_what_was_put_there(length, site):
    url, files, _ = site
    digest = hashlib.sha256(b'1').hexdigest()[:length]
    name = f'/resnet50-{digest}.pth'
    files[name] = b'1'
    path = local_checkpoint(url + name)
    path.write_bytes(b'2')
    with pytest.raises(
        CheckpointError, match=f'is not what its name says: its SHA-256 .* {digest}; remove it'
    ):
        local_checkpoint(url + name)


# Bombs.


@pytest.mark.parametrize('hidden_by', [0, 65_536, 70_000])
def test_an_archive_that_hides_from_python_is_refused(hidden_by, tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': {'a': torch.ones(10)}}, path)
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data/bomb', bytes(2**24))
    with path.open('ab') as file:
        file.write(bytes(hidden_by))
    assert zipfile.is_zipfile(path) == (hidden_by < 70_000)
    with pytest.raises(CheckpointError, match='half an archive|it is compressed'):
        read_checkpoint(path)


def test_weights_that_are_few_bytes_again_and_again_are_refused(tmp_path):
    torch.save({'state_dict': {'a': torch.ones(1).expand(2**34)}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'weights unfold to {2**36} bytes'):
        read_checkpoint(tmp_path / 'a.pth')
    shared = torch.ones(1000)
    torch.save({'state_dict': dict(a=shared, b=shared)}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['state_dict']['b'].shape == (1000,)


def test_an_array_counts_as_its_items():
    assert plain(np.arange(3)) == [0, 1, 2]
    with pytest.raises(CheckpointError, match='unfolds to over'):
        plain({'a': np.broadcast_to(np.int8(0), (2**40,))})


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / 'iter_1.pth'
    write_shards({'state_dict': dict(a=torch.arange(100.0))}, folder)
    torch.save(dict(meta=dict(iter=1)), folder / REST)
    return folder


@pytest.mark.parametrize('where', ['/etc/passwd', '../outside.distcp', 'folder/a.distcp', '..', 3])
def test_shards_are_read_from_their_own_folder(where, shards):
    shutil.copy(next(shards.glob('*.distcp')), shards.parent / 'outside.distcp')
    metadata = pickle.loads((shards / '.metadata').read_bytes())
    for part in metadata.storage_data.values():
        part.relative_path = where
    (shards / '.metadata').write_bytes(pickle.dumps(metadata))
    assert not has_all_shards(shards)
    with pytest.raises(pickle.UnpicklingError, match='none of the files of a sharded checkpoint'):
        read_weights(shards)


def test_shards_that_claim_more_than_their_files_hold_are_refused(shards):
    metadata = pickle.loads((shards / '.metadata').read_bytes())
    metadata.state_dict_metadata['state_dict.a'].size = torch.Size([2**40])
    (shards / '.metadata').write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match='state_dict.a is larger than the files'):
        read_checkpoint(shards)


def test_shards_that_unpack_are_refused(shards):
    metadata = pickle.loads((shards / '.metadata').read_bytes())
    part = next(iter(metadata.storage_data.values()))
    if not hasattr(part, 'transform_descriptors'):
        pytest.skip('this torch compresses no shards')
    part.transform_descriptors = ['zstd']
    (shards / '.metadata').write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match='it is compressed'):
        read_checkpoint(shards)
