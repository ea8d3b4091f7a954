"""Models in folders and on the Hugging Face Hub: addresses, what is published, and that nothing runs."""

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

from .subprocesses import REPO

huggingface_hub = pytest.importorskip('huggingface_hub')
TOOL = 'tools/publish_model.py'
CONFIG = REPO / 'configs/revcol_nano_sample.py'
COMMIT = 40 * 'a'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of a machine without a network, empty."""
    folder = tmp_path / 'cache'
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(folder))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    return folder


@pytest.fixture
def upload(cache):
    """Puts files of a folder into the cache, as if they had been fetched from a repository."""

    def put(folder, repo, revision='main'):
        place = cache / f'models--{repo.replace("/", "--")}'
        (place / 'refs').mkdir(parents=True)
        (place / 'refs' / revision).write_text(COMMIT)
        (place / 'snapshots').mkdir()
        (place / 'snapshots' / COMMIT).symlink_to(folder, target_is_directory=True)

    return put


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint as a run leaves it, of random weights."""
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


def test_a_published_folder_predicts_as_the_checkpoint_does(published, checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    before, after = (
        init_inferencer(CONFIG, checkpoint, 'cpu'),
        revcol_mm.load(published, device='cpu', top_k=3),
    )
    (expected,), (found,) = before.predict([image]), after.predict([image])
    assert torch.equal(found.pred_score, expected.pred_score)
    assert [record['name'] for record in after.records(found)] == [
        record['name'] for record in before.records(expected)[:3]
    ]


def test_what_is_published_says_what_it_is(published):
    assert {path.name for path in published.iterdir()} == {'README.md', 'config.py', 'model.safetensors'}
    assert 'secret' not in (published / 'config.py').read_text()
    cfg = Config.fromfile(published / 'config.py')
    assert cfg.model.type == 'RevColClassifier' and 'optimizer' not in read_checkpoint(
        published / 'model.safetensors'
    )
    huggingface_hub.ModelCard.load(published / 'README.md')
    _, front, text = (published / 'README.md').read_text().split('---\n', 2)
    front = yaml.safe_load(front)
    assert (front['license'], front['pipeline_tag']) == ('apache-2.0', 'image-classification')
    ((result,),) = (model['results'] for model in front['model-index'])
    assert result['dataset']['name'] == 'digits'
    assert [(each['type'], each['value']) for each in result['metrics']] == [('accuracy/top1', 12.5)]
    assert '| accuracy/top1 | 12.5 |' in text and "revcol_mm.load('ORG/revcol_nano_digits')" in text


def test_the_demo_takes_a_published_model(published, sample_data, tmp_path, call_tool):
    images = sample_data / 'imagenet/val'
    printed, error = call_tool(
        'tools/demo.py',
        images,
        '--model',
        published,
        '--out',
        tmp_path / 'out',
        '--top-k',
        2,
        '--device',
        'cpu',
    )
    assert not error and printed.startswith('classification: ')
    records = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert records and all(len(each['predictions']) == 2 for each in records)
    for options in (
        (),
        ('--config', CONFIG),
        ('--model', published, '--config', CONFIG, '--checkpoint', 'a.pth'),
    ):
        _, error = call_tool('tools/demo.py', images, *options)
        assert error == 'error: give --config and --checkpoint, or --model alone'


def test_a_repository_is_loaded_by_its_name_without_a_network(published, upload):
    upload(published, 'org/revcol_nano')
    upload(published, 'org/older', 'v1')
    assert revcol_mm.load('org/revcol_nano', 'cpu').classes[0] == 'a'
    assert revcol_mm.load('org/older@v1', 'cpu').classes[0] == 'a'


def test_weights_are_taken_by_their_address(published, upload):
    upload(published, 'org/repo')
    address = 'hf://org/repo/model.safetensors'
    assert not is_remote(address)
    expected = read_checkpoint(published / 'model.safetensors')['state_dict']
    for source in (address, 'hf://org/repo@main/model.safetensors'):
        found = read_checkpoint(source)['state_dict']
        assert found.keys() == expected.keys() and all(
            torch.equal(found[name], expected[name]) for name in found
        )
    cfg = Config.fromfile(CONFIG)
    assert init_inferencer(cfg, address, 'cpu').classes[0] == 'a'


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
def test_what_cannot_be_fetched_is_an_error_that_names_it(address, message, published, upload):
    upload(published, 'org/repo')
    with pytest.raises(FileNotFoundError, match=message):
        hub_file(address)
    with pytest.raises(FileNotFoundError, match='init_cfg=None'):
        read_checkpoint(address)


def test_without_huggingface_hub_it_is_asked_for(published, upload, monkeypatch):
    upload(published, 'org/repo')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(FileNotFoundError, match='pip install huggingface_hub'):
        hub_file('hf://org/repo/model.safetensors')


@pytest.mark.parametrize('name', ['nowhere', 'a/b/c', 'org/no such'])
def test_what_is_neither_a_folder_nor_a_repository_is_an_error(name):
    with pytest.raises(FileNotFoundError, match=f'no folder {name}'):
        revcol_mm.load(name)


def test_nothing_that_comes_with_a_model_is_run(published, tmp_path):
    config = published / 'config.py'
    text = config.read_text()
    for attack in (
        f'{text}\nopen({str(tmp_path / "ran")!r}, "w")',
        text.replace("type='RevCol'", "type='os.mkdir'"),
        text.replace("imports=['revcol_mm']", "imports=['antigravity']").replace(
            "'revcol_mm'", "'antigravity'"
        ),
    ):
        assert attack != text
        config.write_text(attack)
        with pytest.raises(ValueError):
            revcol_mm.load(published)
    assert not (tmp_path / 'ran').exists() and 'antigravity' not in sys.modules


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--hub', CONFIG], '--hub takes --license'),
        (['--license', 'mit'], '--license, --data and --metrics are for --hub'),
        (['--hub', CONFIG, '--license', 'mit', '--metrics', 'nowhere.json'], 'no metrics nowhere.json'),
        (['--hub', 'nowhere.py', '--license', 'mit'], 'no config nowhere.py'),
        (['--hub', CONFIG, '--license', 'mit', '--metrics', REPO / 'README.md'], 'is no JSON of metrics'),
        (
            ['--hub', REPO / 'configs/upernet_revcol_nano_sample.py', '--license', 'mit'],
            'cannot load ',
        ),
    ],
)
def test_mistakes_are_errors_in_one_line(arguments, message, checkpoint, tmp_path, call_tool):
    _, error = call_tool(TOOL, checkpoint, tmp_path / 'out', *arguments)
    assert error.startswith('error: ') and message in error
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_is_written_over_has_the_new_weights(published, checkpoint, tmp_path, call_tool):
    content = read_checkpoint(checkpoint)
    content['state_dict'] = {name: weight * 0 for name, weight in content['state_dict'].items()}
    save_checkpoint(content, tmp_path / 'zeros.pth')
    assert not call_tool(TOOL, tmp_path / 'zeros.pth', published, '--hub', CONFIG, '--license', 'mit')[1]
    weights = read_checkpoint(published / 'model.safetensors')['state_dict']
    assert not any(weight.any() for weight in weights.values())
    assert 'Results' not in (published / 'README.md').read_text()
