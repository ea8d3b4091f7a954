"""Models are published to a folder for the Hugging Face Hub, and loaded from there without running code."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config

import revcol_mm
from revcol_mm.apis import init_inferencer, init_model
from revcol_mm.checkpoints.hub_file import hub_file
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.checkpoints.sources import is_remote
from revcol_mm.checkpoints.writing import save_checkpoint

from .checkpoints import assert_same_weights
from .subprocesses import REPO

huggingface_hub = pytest.importorskip('huggingface_hub')
TOOL = 'tools/publish_model.py'
CONFIG = REPO / 'configs/revcol_nano_sample.py'
COMMIT = 40 * 'a'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, which must not use the network."""
    folder = tmp_path / 'cache'
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(folder))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    return folder


@pytest.fixture
def upload(cache):
    """A function that puts a folder into the cache as if it had been downloaded from a repository."""

    def put(folder, repo, revision='main'):
        place = cache / f'models--{repo.replace("/", "--")}'
        (place / 'refs').mkdir(parents=True)
        (place / 'refs' / revision).write_text(COMMIT)
        (place / 'snapshots').mkdir()
        (place / 'snapshots' / COMMIT).symlink_to(folder, target_is_directory=True)

    return put


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint of a training run, with random weights."""
    folder = tmp_path_factory.mktemp('run')
    classifier = init_model(CONFIG, device='cpu')
    meta = dict(dataset_meta=dict(classes=tuple('abcdefghij')), cfg='work_dir = "secret"')
    torch.save(dict(meta=meta, state_dict=classifier.state_dict(), optimizer={}), folder / 'iter_1.pth')
    (folder / 'metrics.json').write_text(json.dumps({'accuracy/top1': 12.5, 'time': 0.1, 'note': 'x'}))
    return folder / 'iter_1.pth'


@pytest.fixture
def published(checkpoint, tmp_path, call_tool):
    out = tmp_path / 'revcol_nano_digits'
    options = '--license', 'apache-2.0', '--data', 'digits', '--metrics', checkpoint.parent / 'metrics.json'
    printed, error = call_tool(TOOL, checkpoint, out, '--hub', CONFIG, *options)
    assert not error and f"revcol_mm.load('{out}')" in printed
    return out


def test_published_folder_gives_the_checkpoint_s_predictions(published, checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    before = init_inferencer(CONFIG, checkpoint, 'cpu')
    after = revcol_mm.load(published, device='cpu', top_k=3)
    (expected,), (found,) = before.predict([image]), after.predict([image])
    assert torch.equal(found.pred_score, expected.pred_score)
    expected_names = [record['name'] for record in before.records(expected)[:3]]
    assert [record['name'] for record in after.records(found)] == expected_names


def test_published_folder_has_config_weights_and_model_card(published):
    assert {path.name for path in published.iterdir()} == {'README.md', 'config.py', 'model.safetensors'}
    assert 'secret' not in (published / 'config.py').read_text()
    cfg = Config.fromfile(published / 'config.py')
    assert cfg.model.type == 'RevColClassifier'
    assert 'optimizer' not in read_checkpoint(published / 'model.safetensors')
    huggingface_hub.ModelCard.load(published / 'README.md')
    _, front, text = (published / 'README.md').read_text().split('---\n', 2)
    front = yaml.safe_load(front)
    assert (front['license'], front['pipeline_tag']) == ('apache-2.0', 'image-classification')
    ((result,),) = (model['results'] for model in front['model-index'])
    assert result['dataset']['name'] == 'digits'
    assert [(each['type'], each['value']) for each in result['metrics']] == [('accuracy/top1', 12.5)]
    assert '| accuracy/top1 | 12.5 |' in text and "revcol_mm.load('ORG/revcol_nano_digits')" in text


def test_demo_takes_a_published_model(published, sample_data, tmp_path, call_tool):
    images, out = sample_data / 'imagenet/val', tmp_path / 'out'
    options = '--model', published, '--out', out, '--top-k', 2, '--device', 'cpu'
    printed, error = call_tool('tools/demo.py', images, *options)
    assert not error and printed.startswith('classification: ')
    records = json.loads((out / 'predictions.json').read_text())
    assert records and all(len(each['predictions']) == 2 for each in records)


@pytest.mark.parametrize(
    'options',
    [(), ('--config', CONFIG), ('--model', 'folder', '--config', CONFIG, '--checkpoint', 'a.pth')],
    ids=len,
)
def test_demo_needs_either_a_model_or_config_and_checkpoint(options, tmp_path, call_tool):
    _, error = call_tool('tools/demo.py', tmp_path, *options)
    assert error == 'error: give either --config and --checkpoint, or --model'


def test_repository_is_loaded_by_its_name(published, upload):
    upload(published, 'org/revcol_nano')
    upload(published, 'org/older', 'v1')
    assert revcol_mm.load('org/revcol_nano', 'cpu').classes[0] == 'a'
    assert revcol_mm.load('org/older@v1', 'cpu').classes[0] == 'a'


def test_weights_are_loaded_by_their_address(published, upload):
    upload(published, 'org/repo')
    address = 'hf://org/repo/model.safetensors'
    assert not is_remote(address)
    expected = read_checkpoint(published / 'model.safetensors')['state_dict']
    for source in (address, 'hf://org/repo@main/model.safetensors'):
        assert_same_weights(read_checkpoint(source)['state_dict'], expected)
    assert init_inferencer(Config.fromfile(CONFIG), address, 'cpu').classes[0] == 'a'


@pytest.mark.parametrize(
    'address, message',
    [
        ('hf://org/repo/none.safetensors', 'cannot fetch hf://org/repo/none.safetensors: '),
        ('hf://org/repo@v2/model.safetensors', 'cannot fetch '),
        ('hf://other/repo/model.safetensors', 'cannot fetch '),
        ('hf://model.safetensors', 'is no address like hf://ORG/REPO/FILE'),
        ('hf://org/repo', 'is no address like hf://ORG/REPO/FILE'),
    ],
)
def test_bad_address_is_an_error(address, message, published, upload):
    upload(published, 'org/repo')
    with pytest.raises(FileNotFoundError, match=message):
        hub_file(address)
    with pytest.raises(FileNotFoundError, match='init_cfg=None'):
        read_checkpoint(address)


def test_missing_huggingface_hub_package_is_named(published, upload, monkeypatch):
    upload(published, 'org/repo')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(FileNotFoundError, match='pip install huggingface_hub'):
        hub_file('hf://org/repo/model.safetensors')


@pytest.mark.parametrize('name', ['nowhere', 'a/b/c', 'org/no such'])
def test_name_of_neither_a_folder_nor_a_repository_is_an_error(name):
    with pytest.raises(FileNotFoundError, match=f'no folder {name}'):
        revcol_mm.load(name)


def test_code_in_the_config_of_a_model_does_not_run(published, trap):
    with (published / 'config.py').open('a') as config:
        config.write(f'a = {trap.code}\n')
    with pytest.raises(ValueError, match='is no literal'):
        revcol_mm.load(published)
    assert not trap.has_run()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--hub', CONFIG], '--hub needs --license'),
        (['--license', 'mit'], '--license, --data and --metrics need --hub'),
        (['--hub', CONFIG, '--license', 'mit', '--metrics', 'nowhere.json'], 'no metrics nowhere.json'),
        (['--hub', 'nowhere.py', '--license', 'mit'], 'no config nowhere.py'),
        (
            ['--hub', CONFIG, '--license', 'mit', '--metrics', REPO / 'README.md'],
            'is not a JSON file of metrics',
        ),
        (['--hub', REPO / 'configs/upernet_revcol_nano_sample.py', '--license', 'mit'], 'cannot load '),
    ],
)
def test_bad_arguments_are_an_error(arguments, message, checkpoint, tmp_path, call_tool):
    _, error = call_tool(TOOL, checkpoint, tmp_path / 'out', *arguments)
    assert error.startswith('error: ') and message in error
    assert not (tmp_path / 'out').exists()


def test_publishing_to_an_existing_folder_replaces_it(published, checkpoint, tmp_path, call_tool):
    content = read_checkpoint(checkpoint)
    content['state_dict'] = {name: weight * 0 for name, weight in content['state_dict'].items()}
    save_checkpoint(content, tmp_path / 'zeros.pth')
    assert not call_tool(TOOL, tmp_path / 'zeros.pth', published, '--hub', CONFIG, '--license', 'mit')[1]
    weights = read_checkpoint(published / 'model.safetensors')['state_dict']
    assert not any(weight.any() for weight in weights.values())
    assert 'Results' not in (published / 'README.md').read_text()
