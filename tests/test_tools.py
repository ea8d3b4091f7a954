"""The tools end to end on the sample data, each in its own process."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from .subprocesses import REPO, run, sample_options

DEMO = 'configs/mask2former_revcol_nano_sample.py'
RETINANET = 'tests/configs/retinanet_revcol_nano_sample.py'
CLASSIFIER = 'tests/configs/classifier_revcol_nano_sample.py'


def on(data, layout, *options):
    """Return options that set the data root and a schedule of 4 iterations."""
    schedule = ('train_cfg.max_iters=4', 'train_cfg.val_interval=4')
    intervals = ('default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1')
    return sample_options(data, layout, *schedule, *intervals, *options)


def test_sample_data_has_the_same_scenes_in_three_layouts(sample_data):
    for split, kind in (('training', 'train'), ('validation', 'val')):
        names = {p.stem for p in (sample_data / 'ade20k/images' / split).iterdir()}
        assert names == {p.stem for p in (sample_data / 'ade20k/annotations' / split).iterdir()}
        coco = json.loads((sample_data / f'coco/annotations/instances_{kind}2017.json').read_text())
        assert names == {image['file_name'].split('.')[0] for image in coco['images']}
        assert len(coco['categories']) == 10
        assert any((sample_data / 'imagenet' / kind).iterdir())
    assert (sample_data / 'preview.png').stat().st_size > 10_000


def test_sample_data_is_deterministic(sample_data, tmp_path):
    run('tools/prepare_sample_data.py', tmp_path / 'again', '--num-train', 12, '--num-val', 4)
    for path in sample_data.rglob('*'):
        if path.is_file():
            again = tmp_path / 'again' / path.relative_to(sample_data)
            assert path.read_bytes() == again.read_bytes(), path


@pytest.fixture(scope='module')
def trained(sample_data, tmp_path_factory):
    """The demo's config, trained for 4 iterations."""
    work_dir = tmp_path_factory.mktemp('trained')
    options = on(sample_data, 'ade20k')
    printed = run('tools/train.py', DEMO, '--amp', '--work-dir', work_dir, '--seed', 0, *options)
    assert 'Iter(val)' in printed and 'mIoU' in printed
    assert 'parameter groups' in printed
    assert 'without mixed precision' in printed or torch.cuda.is_available()
    return work_dir


def test_training_writes_checkpoints_and_tensorboard_events(trained):
    assert (trained / 'iter_2.pth').exists() and (trained / 'iter_4.pth').exists()
    assert any(path.name.startswith('events') for path in trained.rglob('*'))


def test_training_resumes_from_the_newest_checkpoint(trained, sample_data, tmp_path):
    shutil.copy(trained / 'iter_2.pth', tmp_path)
    options = on(sample_data, 'ade20k')
    printed = run('tools/train.py', DEMO, '--seed', 0, '--work-dir', tmp_path, '--resume', *options)
    assert 'resumed epoch: 0, iter: 2' in printed
    assert (tmp_path / 'iter_4.pth').exists()


def test_testing_prints_metrics_and_writes_predictions_and_pictures(trained, sample_data, tmp_path):
    folders = '--work-dir', tmp_path / 'work', '--out', tmp_path / 'out', '--show-dir', tmp_path / 'pictures'
    printed = run('tools/test.py', DEMO, trained / 'iter_4.pth', *folders, *on(sample_data, 'ade20k'))
    assert re.search(r'^mIoU +\d', printed, re.M)
    assert re.search(r'^commonest_class/mIoU +\d', printed, re.M)
    scenes = {p.stem for p in (sample_data / 'ade20k/images/validation').iterdir()}
    assert {p.stem for p in (tmp_path / 'out').glob('*.png')} == scenes
    pictures = [Image.open(path) for path in (tmp_path / 'pictures').glob('*.png')]
    assert len(pictures) == len(scenes)
    assert all(picture.width > 1000 and picture.height > 400 for picture in pictures)  # enlarged


@pytest.mark.slow
def test_testing_with_test_time_augmentation(trained, sample_data, tmp_path):
    options = '--work-dir', tmp_path, '--tta', *on(sample_data, 'ade20k')
    printed = run('tools/test.py', DEMO, trained / 'iter_4.pth', *options)
    assert re.search(r'^mIoU +\d', printed, re.M)


FAMILIES = {
    'configs/upernet_revcol_nano_supervised_sample.py': ('ade20k', 'mIoU'),
    'configs/dino_revcol_nano_sample.py': ('coco', 'coco/bbox_mAP'),
    'configs/cascade_mask_rcnn_revcol_nano_sample.py': ('coco', 'coco/segm_mAP'),
    'configs/revcol_nano_sample.py': ('imagenet', 'accuracy/top1'),
    RETINANET: ('coco', 'coco/bbox_mAP'),
    CLASSIFIER: ('imagenet', 'accuracy/top1'),
    'configs/mask2former_revcol_nano_instance_sample.py': ('coco', 'coco/segm_mAP'),
}


@pytest.mark.slow
@pytest.mark.parametrize('config', FAMILIES)
def test_every_family_trains_and_tests(config, sample_data, tmp_path):
    layout, metric = FAMILIES[config]
    options = on(sample_data, layout, 'param_scheduler=[]', 'optim_wrapper.optimizer.lr=1e-3')
    if 'cascade' in config:  # after 4 iterations no score exceeds the default
        options += ('model.test_cfg.rcnn.score_thr=0.0',)
    run('tools/train.py', config, '--work-dir', tmp_path, '--seed', 0, *options)
    out, pictures = tmp_path / 'out', tmp_path / 'pictures'
    test = ('tools/test.py', config, tmp_path / 'iter_4.pth', '--work-dir', tmp_path)
    printed = run(*test, '--out', out, '--show-dir', pictures, *options)
    assert re.search(rf'^{metric} +-?\d', printed, re.M)
    assert any(out.iterdir())
    assert any(p.suffix in ('.png', '.jpg') for p in pictures.iterdir())
    if config.startswith('configs/') and layout == 'coco':
        assert re.search(rf'^{metric} +-?\d', run(*test, '--tta', *options), re.M)


@pytest.mark.slow
def test_published_config_trains_on_the_sample_data(sample_data, tmp_path):
    options = on(
        sample_data,
        'ade20k',
        'train_cfg.max_iters=1',
        'default_hooks.checkpoint.save_last=False',
        # Crops without padding: with random weights all biases are 0, and on padding, which is 0 as well,
        # layer norm multiplies gradients by 1000 in each of the 16 columns.
        'train_dataloader.dataset.pipeline.2.scale=(1024,256)',
        'train_dataloader.dataset.pipeline.3.crop_size=(128,128)',
        'model.data_preprocessor.size=(128,128)',
        'model.backbone.init_cfg=None',
    )
    printed = run(
        'tools/train.py', 'configs/mask2former_revcol_b_ade20k.py', '--work-dir', tmp_path, *options
    )
    assert re.search(r'Iter\(train\) \[1/1\].*loss: \d', printed)


@pytest.mark.slow
def test_two_processes_train_together(sample_data, tmp_path):
    options = on(sample_data, 'ade20k')
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', 'tools/train.py')
    printed = run(*launch, DEMO, '--launcher', 'pytorch', '--work-dir', tmp_path, *options)
    assert printed.count('Iter(train) [4/4]') == 1 and 'mIoU' in printed


def test_missing_data_is_an_error_in_one_line(call_tool, tmp_path):
    options = '--work-dir', tmp_path, *on(tmp_path, 'nowhere')
    printed, error = call_tool('tools/train.py', 'configs/mask2former_revcol_b_ade20k.py', *options)
    assert error.startswith(f'error: no data folder {tmp_path}/nowhere')
    assert '\n' not in error and 'error' not in printed


def test_error_has_no_traceback_and_the_exit_status_1():
    printed = run('tools/train.py', 'configs/nothing.py', expect=1)
    assert printed.splitlines()[-1].startswith('error: no config configs/nothing.py')
    assert 'Traceback' not in printed


def test_unwritable_work_dir_is_an_error(sample_data, tmp_path, call_tool):
    (tmp_path / 'file').touch()
    work_dir = tmp_path / 'file' / 'work'
    _, error = call_tool('tools/train.py', DEMO, '--work-dir', work_dir, *on(sample_data, 'ade20k'))
    assert error.startswith(f'error: cannot write in {work_dir}: Not a directory')


TOOLS = [  # test_cli.py covers the others, which call commands
    path.relative_to(REPO).as_posix()
    for path in sorted([*(REPO / 'tools').glob('*.py'), *(REPO / 'tools/analysis').glob('*.py')])
    if 'from revcol_mm.cli' not in path.read_text()
]


@pytest.mark.parametrize('tool', TOOLS)
def test_every_tool_has_help(tool, call_tool, monkeypatch):
    monkeypatch.syspath_prepend(REPO / 'tools')  # as Python does for a script
    printed, error = call_tool(tool, '--help')
    assert 'usage' in printed and not error


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_parse(script):
    subprocess.run(['bash', '-n', REPO / 'tools' / script], check=True)
