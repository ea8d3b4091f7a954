"""Malicious checkpoints and data files given to whole commands: no code runs, and no path escapes."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmseg.evaluation import IoUMetric
from PIL import Image

from revcol_mm import PredictionPicturesHook, RevCol
from revcol_mm.apis import init_model
from revcol_mm.errors import CheckpointError
from revcol_mm.training.runner import ResumableRunner

from .checkpoints import SMALL, Pickled
from .subprocesses import REPO, run, sample_options

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'


def short_training(data):
    """Options for two iterations of a segmentation config on the sample data."""
    schedule = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=2')
    checkpoint = ('default_hooks.checkpoint.interval=1', 'default_hooks.checkpoint.save_best=None')
    return sample_options(data, 'ade20k', *schedule, *checkpoint)


@pytest.fixture(scope='module')
def trained(sample_data, tmp_path_factory):
    """A checkpoint from which a run can resume."""
    folder = tmp_path_factory.mktemp('trained')
    options = short_training(sample_data)
    run('tools/train.py', SEGMENTOR, '--work-dir', folder, '--seed', 0, *options)
    return folder / 'iter_1.pth'


@pytest.fixture
def attack(trained, tmp_path, trap):
    """A valid checkpoint with Python code as text wherever OpenMMLab might evaluate it."""
    path = tmp_path / 'attack/iter_1.pth'
    path.parent.mkdir()
    code = f'model = {trap.code}'
    content = torch.load(trained, weights_only=True)
    content.update(cfg=code, config=code)
    content['meta'].update(config=code, cfg=code, env_info=code)
    content['message_hub']['runtime_info'].update(cfg=code, config=code)
    torch.save(content, path)
    return path


def test_trap_runs_when_mmengine_reads_it_as_a_config(attack, trap):
    Config.fromstring(torch.load(attack, weights_only=True)['meta']['config'], '.py')
    assert trap.has_run()


COMMANDS = [
    'train {config} --resume {file} --seed 0 --work-dir {out} {options}',
    'train {config} --resume --seed 0 --work-dir {folder} {options}',
    'train {config} --work-dir {out} {options} load_from={file}',
    'test {config} {file} --work-dir {out} {options}',
    'demo {images} --checkpoint {file} --config {config} --out {out}',
    'export {config} {file} --format torch-export --out {out}/a.pt2',
    'convert_checkpoint {file} {out}/a.safetensors',
    'publish_model {file} {out}/a.pth',
    'analysis/confusion {config} {file} --out {out} {options}',
]


def each_command(commands):
    ids = [' '.join(command.replace('{config} ', '').split()[:2]) for command in commands]
    return pytest.mark.parametrize('command', commands, ids=ids)


@pytest.fixture
def run_command(sample_data, tmp_path, call_tool):
    """A function that runs a command with a checkpoint, and returns its error message."""

    def run(command, file):
        tool, *arguments = command.split()
        places = dict(
            config=SEGMENTOR,
            file=file,
            folder=file.parent,
            out=tmp_path / 'out',
            images=sample_data / 'ade20k/images/validation',
        )
        filled = []
        for argument in arguments:
            is_options = argument == '{options}'
            filled += short_training(sample_data) if is_options else [argument.format(**places)]
        (tmp_path / 'out').mkdir()
        _, error = call_tool(f'tools/{tool}.py', *filled)
        return error

    return run


@each_command(COMMANDS)
def test_no_tool_runs_code_in_a_checkpoint(command, attack, run_command, trap):
    """Neither text nor, where the checkpoint is accepted at all, pickled code."""
    if '--resume' not in command:  # which refuses checkpoints with pickled code
        content = torch.load(attack, weights_only=True)
        content['meta']['code'] = [({'deep': trap.pickled()},)]
        torch.save(content, attack)
    assert not run_command(command, attack)
    assert not trap.has_run()


@each_command([command for command in COMMANDS if '{file}' in command])
def test_checkpoint_with_code_and_no_weights_is_an_error_in_one_line(command, run_command, tmp_path, trap):
    content = {'meta': {'list': [({'deep': trap.pickled()},)]}, 'state_dict': {}}
    torch.save(content, tmp_path / 'a.pth')
    error = run_command(command, tmp_path / 'a.pth')
    assert error.startswith('error: ') and '\n' not in error
    assert not trap.has_run()


def load_from(path):
    ResumableRunner(torch.nn.Identity(), work_dir=str(path.parent)).load_checkpoint(str(path))


def init_cfg(path):
    RevCol(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def resume(path):
    ResumableRunner(torch.nn.Identity(), work_dir=str(path.parent), resume=True, load_from=str(path))


def resume_automatically(path):
    ResumableRunner(torch.nn.Identity(), work_dir=str(path.parent), resume=True)


def inference(path):
    init_model(REPO / SEGMENTOR, path)


@pytest.mark.parametrize('entry', [load_from, init_cfg, resume, resume_automatically, inference])
@pytest.mark.parametrize('function', [os.system, eval])
@pytest.mark.parametrize('nested', [False, True])
def test_no_code_in_a_checkpoint_runs(entry, function, nested, tmp_path, trap):
    code = trap.pickled(function)
    content = {'meta': {'list': [({'deep': code},)]}, 'state_dict': {}} if nested else code
    torch.save(content, tmp_path / 'iter_1.pth')
    try:
        entry(tmp_path / 'iter_1.pth')
    except (CheckpointError, ValueError):
        pass  # refused, or accepted as a checkpoint without weights
    assert not trap.has_run()
    torch.load(tmp_path / 'iter_1.pth', weights_only=False)
    assert trap.has_run()


@pytest.mark.parametrize(
    'content, message',
    [
        pytest.param({'state_dict': {}}, "no metadata of a run .'meta'.*load_from", id='only weights'),
        pytest.param({'meta': Pickled(os.system, 'true')}, 'cannot resume', id='code'),
        pytest.param([1], 'cannot resume', id='list'),
    ],
)
def test_file_that_no_run_has_saved_cannot_be_resumed(content, message, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path / 'a.pth')


def written(folder):
    return [path.relative_to(folder).as_posix() for path in folder.rglob('*.png')]


def test_predictions_are_written_only_to_the_output_folder(tmp_path):
    metric = IoUMetric(output_dir=str(tmp_path / 'a/b/out'), format_only=True)
    metric.dataset_meta = dict(classes=('x', 'y'))
    for name in ('../../escaped.png', '/escaped.png', 'x/../../../escaped.png'):
        prediction = dict(data=torch.zeros(1, 4, 4, dtype=torch.long))
        metric.process({}, [dict(pred_sem_seg=prediction, img_path=f'{tmp_path}/data/{name}')])
    assert written(tmp_path) == ['a/b/out/escaped.png']


def test_pictures_of_detections_are_written_only_to_the_output_folder(tmp_path):
    (tmp_path / 'data').mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'escaped.png')
    visualizer = DetLocalVisualizer(vis_backends=[dict(type='LocalVisBackend')], save_dir=f'{tmp_path}/out')
    sample = DetDataSample(
        metainfo=dict(img_path=f'{tmp_path}/data/../escaped.png'),
        pred_instances=InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0)),
    )
    hook = PredictionPicturesHook(interval=1)
    hook._after_iter(SimpleNamespace(visualizer=visualizer, iter=0), 0, None, [sample], mode='test')
    assert written(tmp_path / 'out') == ['vis_data/vis_image/test_escaped.png_0.png']
