"""Checkpoints on the web: model zoos, the download cache and hashes in file names."""

import hashlib
import io
import os
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch
from mmengine.runner import CheckpointLoader

from revcol_mm.checkpoints import sources
from revcol_mm.checkpoints.sources import local_checkpoint, zoo_url
from revcol_mm.errors import CheckpointError
from revcol_mm.training.load_from import restrict_loading

from .subprocesses import run


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A web site with an empty cache: its URL, its files by path, and the paths that were requested."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    files, requests = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b''))

        def log_message(self, *_):
            pass

    server = HTTPServer(('127.0.0.1', 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', files, requests
    server.shutdown()
    server.server_close()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize('zoo', ['torchvision', 'open-mmlab', 'mmcls'])
def test_pickled_code_in_a_model_zoo_does_not_run(zoo, site, monkeypatch, trap):
    url, files, _ = site
    weights = {'state_dict': {'backbone.conv1.weight': torch.ones(2)}}
    files['/good.pth'] = saved(weights)
    files['/bad.pth'] = saved({**weights, 'code': trap.pickled()})
    files['/worse.pth'] = saved({**weights, 'code': trap.pickled(os.system)})
    monkeypatch.setitem(sources.ZOOS, zoo, lambda: {n: f'{url}/{n}.pth' for n in ('good', 'bad', 'worse')})
    restrict_loading()
    for name in ('good', 'bad'):
        loaded = CheckpointLoader.load_checkpoint(f'{zoo}://{name}', 'cpu')['state_dict']
        assert list(loaded) == ['conv1.weight' if zoo == 'mmcls' else 'backbone.conv1.weight']
    with pytest.raises(CheckpointError, match='cannot read .*worse.pth: unsupported GLOBAL posix.system'):
        CheckpointLoader.load_checkpoint(f'{zoo}://worse', 'cpu')
    assert not trap.has_run()


def test_unknown_model_of_a_zoo_is_an_error_with_similar_names():
    with pytest.raises(FileNotFoundError, match="no model 'resnet50x' in torchvision://; it has resnet50"):
        local_checkpoint('torchvision://resnet50x')


def test_names_in_zoos_have_mmengine_s_urls():
    assert zoo_url('torchvision://resnet50').startswith('https://download.pytorch.org/models/resnet50-')
    address = zoo_url('open-mmlab://detectron2/resnet50_caffe')
    assert re.match(r'https://(download\.openmmlab\.com|mmassets\.onedl\.ai)/', address)
    assert zoo_url('s3://bucket/resnet50') == 's3://bucket/resnet50'


def test_equal_file_names_at_different_urls_are_cached_separately(site):
    url, files, requests = site
    files['/a/model.bin'], files['/b/model.bin'] = b'1', b'2'
    paths = [local_checkpoint(f'{url}/{folder}/model.bin') for folder in 'abab']
    assert [path.read_bytes() for path in paths] == [b'1', b'2'] * 2
    assert requests == ['/a/model.bin', '/b/model.bin']  # once each


FETCH = """
import sys, torch.distributed as dist
from revcol_mm.checkpoints.sources import local_checkpoint

dist.init_process_group('gloo')
try:
    local_checkpoint(sys.argv[1])
except FileNotFoundError as error:
    print(f'process {dist.get_rank()}: {error}')
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_if_fetching_fails_all_processes_raise_the_error(site, tmp_path):
    script = tmp_path / 'fetch.py'
    script.write_text(FETCH)
    launch = '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'
    printed = run(*launch, script, f'{site[0]}/none.pth', TORCH_HOME=str(tmp_path))
    assert all(f'process {rank}: cannot fetch {site[0]}/none.pth' in printed for rank in (0, 1))
    assert site[2] == ['/none.pth']  # the other process has not tried


@pytest.mark.parametrize('length', [8, 64])
def test_hash_in_a_file_name_is_checked_at_every_use(length, site):
    url, files, _ = site
    digest = hashlib.sha256(b'1').hexdigest()[:length]
    name = f'/resnet50-{digest}.pth'
    files[name] = b'1'
    local_checkpoint(url + name).write_bytes(b'2')
    with pytest.raises(CheckpointError, match=f'SHA-256 does not start with {digest}.*; remove it'):
        local_checkpoint(url + name)
