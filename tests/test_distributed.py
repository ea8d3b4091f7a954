"""Training and testing in several processes."""

import copy
import json
import os
import pickle
import re
import shutil
import weakref

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.distributed.fsdp import fully_shard

from revcol_mm.checkpoints.layouts import model_weights
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.checkpoints.run_files import is_complete
from revcol_mm.checkpoints.shards import REST, has_all_shards, read_weights
from revcol_mm.errors import CheckpointError
from revcol_mm.testing import worst_errors
from revcol_mm.training.fully_sharded_runner import FullyShardedRunner
from revcol_mm.training.launch import adapt_precision_to_device, adapt_to_device, leave_processes

from .checkpoints import assert_same_weights
from .subprocesses import REPO, run, run_in_processes, sample_options

ARCH = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1), num_columns=4)

WORKER = """
import sys
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
import revcol_mm
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from tests.subprocesses import leave_processes

rank, kind, rendezvous, backbone, weights, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group('gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2)
model = MODELS.build(dict(eval(backbone), save_memory=True))
model.load_state_dict(torch.load(weights))
if kind == 'ddp':
    model = DistributedDataParallel(model)
elif kind == 'fsdp1':
    model = FullyShardedDataParallel(model, device_id=torch.device('cpu'))
else:
    mesh = dist.init_device_mesh('cpu', (2,))
    for column in model.columns:
        for part in {'columns': [column], 'levels': [column.level0, column.level1]}.get(kind, []):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def backward(index):
    sum(f.square().mean() for f in model(images[index : index + 1])).backward()


if kind == 'ddp':
    with model.no_sync():  # accumulates the gradients of the first image of each process
        backward(rank)
else:
    backward(rank)
backward(rank + 2)
grads = {name.removeprefix('module.'): param.grad for name, param in model.named_parameters()}
grads = {name: grad.full_tensor() if hasattr(grad, 'full_tensor') else grad for name, grad in grads.items()}
if rank == 0:
    torch.save(grads, out)
leave_processes()
"""


REVCOL = dict(type='RevCol', arch=ARCH, layer_scale_init_value=0.3)
CONVNEXT = dict(
    type='ReversibleColumns',
    net=dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 1], channels=[8, 16, 24]),
        out_indices=(0, 1, 2),
        gap_before_final_norm=False,
    ),
    num_columns=3,
)


def work(kind, folder, expect=0, backbone=REVCOL):
    """Train on two images in each of two processes; return their gradients and those of one process.

    If an error is expected, return what was printed.
    """
    torch.manual_seed(0)
    plain = MODELS.build(copy.deepcopy(backbone))
    if backbone is REVCOL:
        for alpha in (alpha for column in plain.columns for alpha in column.alphas):
            alpha.data[:, ::2] = 0.25  # needs more bits than 0.5
    torch.save(plain.state_dict(), folder / 'weights.pth')
    args = [kind, folder / 'rendezvous', backbone, folder / 'weights.pth', folder / 'out.pth']
    printed = run_in_processes(WORKER, *args, expect=expect)
    if expect:
        return printed
    for image in torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(1):
        (sum(f.square().mean() for f in plain(image)) / 2).backward()
    return torch.load(folder / 'out.pth'), {n: p.grad for n, p in plain.named_parameters()}


@pytest.mark.parametrize('backbone', [REVCOL, CONVNEXT], ids=['RevCol', 'ConvNeXt'])
def test_ddp_gradients_equal_those_of_one_process_without_find_unused_parameters(tmp_path, backbone):
    assert worst_errors(*work('ddp', tmp_path, backbone=backbone))[0][0] <= 2e-5


@pytest.mark.parametrize(
    'unit, backbone',
    [('model', REVCOL), ('columns', REVCOL), pytest.param('columns', CONVNEXT, marks=pytest.mark.slow)],
)
def test_fully_sharded_gradients_equal_those_of_one_process(unit, backbone, tmp_path):
    assert worst_errors(*work(unit, tmp_path, backbone=backbone))[0][0] <= 2e-5


@pytest.mark.parametrize('kind', ['fsdp1', 'levels'])
def test_sharding_that_would_lose_gradients_is_refused(kind, tmp_path):
    assert all(
        'fully_shard on whole columns or the whole model' in printed for printed in work(kind, tmp_path, 1)
    )


def launch(number):
    """Return the arguments of Python that start a program in so many processes."""
    return ('-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={number}') if number > 1 else ()


def train(number, config, out, *options):
    """Run parallel_training.py on a sample config in so many processes, and return its results."""
    config = f'configs/{config}_revcol_nano_sample.py'
    run(
        *launch(number),
        'tests/parallel_training.py',
        config,
        out,
        '--cfg-options',
        'log_level=INFO',
        *options,
    )
    return torch.load(out)


def assert_same_training(actual, expected):
    """Compare losses and gradient norms within float32 rounding, and weights within 1/250 of their change.

    Losses have an absolute tolerance too, because a small 1 - GIoU has the rounding error of the 1.
    """
    for kind in ('losses', 'grad_norms'):
        assert len(actual[kind]) == len(expected[kind]) > 0
    for losses, others in zip(actual['losses'], expected['losses']):
        assert losses == pytest.approx(others, rel=2e-6, abs=5e-7)
    assert actual['grad_norms'] == pytest.approx(expected['grad_norms'], rel=1e-5)
    for name, weight in expected['final'].items():
        assert torch.equal(actual['state_dict'][name], expected['state_dict'][name]), name
        if weight.is_floating_point():
            torch.testing.assert_close(actual['final'][name], weight, rtol=0, atol=2e-6, msg=name)
    moved = [(w - expected['state_dict'][n]).abs().max().item() for n, w in expected['final'].items()]
    assert sorted(moved)[len(moved) // 2] > 5e-4  # else equal weights would be trivial


@pytest.fixture(scope='module', params=['mask2former', 'dino'])
def one_process(request, tmp_path_factory):
    """Return the config's name, its training in one process, and the file of that, with initial weights."""
    out = tmp_path_factory.mktemp(request.param) / 'one.pt'
    return request.param, train(1, request.param, out), out


def check_processes(number, one_process, tmp_path, *options):
    config, expected, file = one_process
    actual = train(number, config, tmp_path / 'several.pt', f'load_from={file}', *options)
    assert_same_training(actual, expected)
    return actual


@pytest.mark.parametrize(
    'number, runner_type',
    [
        pytest.param(2, 'ResumableRunner', marks=pytest.mark.slow),
        pytest.param(4, 'ResumableRunner', marks=pytest.mark.reliability),
        pytest.param(4, 'FullyShardedRunner', marks=pytest.mark.reliability),
    ],
)
def test_processes_train_as_one_with_the_same_global_batch(number, runner_type, one_process, tmp_path):
    """parallel_training.py removes what rightly depends on the number of processes.

    - Random numbers differ between processes: Mask2Former's points are the same for all masks; DINO's
      denoising has almost no noise; augmentation and stochastic depth are off.
    - Mask2Former divides its classification loss by the class-weighted number of objects in the process
      instead of all processes: every image has three objects.
    - DINO's number of denoising groups depends on the maximum number of objects in an image of the process.
    - Images are padded to the largest one of the process: all have the same size.
    - Batch norm uses the images of the process: the models have none.
    """
    check_processes(number, one_process, tmp_path, f'runner_type={runner_type}')


@pytest.mark.slow
def test_fully_sharded_training_equals_one_process_and_resumes_exactly(one_process, tmp_path):
    sharded = ('runner_type=FullyShardedRunner', 'default_hooks.checkpoint.interval=2')
    expected = check_processes(2, one_process, tmp_path, *sharded)
    for kind, whole in one_process[1]['held'].items():  # tensors with one row are not split
        assert 0.5 * whole <= expected['held'][kind] <= 0.6 * whole, kind
    folder = tmp_path / 'resumed/iter_2.pth'
    shutil.copytree(tmp_path / 'several/iter_2.pth', folder)
    rest, marker = torch.load(folder / REST, weights_only=True), tmp_path / 'code_ran'
    rest['meta']['config'] = f"model = open({str(marker)!r}, 'w').close()"  # MMEngine would execute it
    torch.save(rest, folder / REST)
    resumed = train(2, one_process[0], tmp_path / 'resumed.pt', *sharded, 'resume=True')
    assert len(resumed['losses']) == 1 and not marker.exists()
    assert_same_weights(resumed['final'], expected['final'])


DEMO = 'configs/mask2former_revcol_nano_sample.py'


def on(data, layout, *options):
    """Return options for the sample data and a training of 2 iterations."""
    schedule = ('train_dataloader.batch_size=2', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    others = ('default_hooks.checkpoint.interval=2', 'model.backbone.save_memory=True')
    return sample_options(data, layout, *schedule, *others, *options)


def metrics(printed):
    """Return the metrics that tools/test.py prints."""
    found = dict(re.findall(r'^([\w/]+) +(-?[\d.e-]+|nan)$', printed, re.M))
    assert found
    return found


@pytest.mark.slow
def test_tools_accept_a_sharded_checkpoint_and_convert_it_to_a_file(sample_data, tmp_path, call_tool):
    options = on(sample_data, 'ade20k', 'test_dataloader.dataset.indices=2')
    common = ('--work-dir', tmp_path, *options)
    printed = run(
        *(*launch(2), 'tools/train.py', DEMO, '--launcher', 'pytorch', *common),
        'runner_type=FullyShardedRunner',
    )
    assert 'Iter(val)' in printed and 'mIoU' in printed
    folder, file = tmp_path / 'iter_2.pth', tmp_path / 'whole.pth'
    assert folder.is_dir() and [p.name for p in tmp_path.iterdir() if p.name.startswith('.')] == ['.lock']
    _, error = call_tool('tools/convert_checkpoint.py', folder, file)
    assert not error
    sharded, whole = (metrics(run('tools/test.py', DEMO, weights, *common)) for weights in (folder, file))
    assert sharded == whole and 'mIoU' in whole
    weights = model_weights(read_checkpoint(folder))
    assert len(weights) > 300
    assert_same_weights(model_weights(read_checkpoint(file)), weights)
    _, error = call_tool('tools/train.py', DEMO, '--resume', folder, *common)
    assert f'error: {folder} is sharded' in error
    for part in folder.glob('*.distcp'):
        assert is_complete(folder)
        os.truncate(part, part.stat().st_size - 1)
        assert not is_complete(folder)
        part.write_bytes(part.read_bytes() + b'.')


def sharded_runner():
    """A FullyShardedRunner with only what loading a checkpoint needs; its model is not sharded."""
    runner = object.__new__(FullyShardedRunner)
    runner.model, runner.logger, runner._resume, runner._hooks = torch.nn.Linear(2, 1), None, False, []
    return runner


def test_weights_of_a_wrapped_model_are_loaded_into_a_sharded_one(tmp_path):
    weights = {'module.weight': torch.ones(1, 2), 'other': torch.ones(1)}
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    runner = sharded_runner()
    runner.load_checkpoint(str(tmp_path / 'a.pth'))
    assert torch.equal(runner.model.weight, torch.ones(1, 2))
    with pytest.raises(CheckpointError, match=r'a\.pth has 1 of the 2 weights'):
        runner.load_checkpoint(str(tmp_path / 'a.pth'), strict=True)


def test_checkpoint_without_a_weight_of_the_sharded_model_is_an_error(tmp_path):
    torch.save(dict(state_dict=dict(other=torch.ones(1))), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth has 0 of the 2 weights'):
        sharded_runner().load_checkpoint(str(tmp_path / 'a.pth'))


@pytest.fixture
def without_gpu(monkeypatch):
    """A computer without a GPU, on which no process group is started."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *_, **__: None)


@pytest.mark.parametrize(
    'options, expected',
    [
        (dict(), dict(broadcast_buffers=False, find_unused_parameters=False)),
        (dict(find_unused_parameters=True), dict(broadcast_buffers=False, find_unused_parameters=True)),
        (dict(model_wrapper_cfg=dict(static_graph=True)), dict(static_graph=True)),
    ],
)
def test_options_of_ddp_are_kept_on_cpus(options, expected, without_gpu):
    cfg = Config(dict(launcher='pytorch', **options))
    adapt_to_device(cfg)
    assert cfg.model_wrapper_cfg == dict(expected, device_ids=None)


def test_a_sharded_model_is_freed_before_its_process_group(tmp_path, monkeypatch):
    """Otherwise gloo's threads live until Python's shutdown, where they abort about one process in twenty."""
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    model = torch.nn.Linear(1, 1)
    fully_shard(model, mesh=torch.distributed.init_device_mesh('cpu', (1,)))
    model.hooks = [model]  # a cycle, as runners have
    model(torch.ones(1, 1)).backward()
    freed, destroy = weakref.ref(model), torch.distributed.destroy_process_group
    del model

    def destroy_after_the_model():
        destroy()
        assert freed() is None

    monkeypatch.setattr(torch.distributed, 'destroy_process_group', destroy_after_the_model)
    leave_processes()
    assert not torch.distributed.is_initialized()


def test_mpi_without_a_gpu_is_refused(without_gpu):
    with pytest.raises(ValueError, match='--launcher mpi needs GPUs'):
        adapt_to_device(Config(dict(launcher='mpi')))


def test_mixed_precision_is_turned_off_with_a_warning_in_training_only(without_gpu, log_warnings):
    cfg = Config(dict(launcher='none', optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16')))
    adapt_to_device(cfg)
    assert not log_warnings
    adapt_precision_to_device(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper')
    assert log_warnings == ['no GPU: training without mixed precision']


def test_pickled_code_in_a_sharded_checkpoint_is_not_executed(tmp_path, trap):
    (tmp_path / '.metadata').write_bytes(pickle.dumps(trap.pickled()))
    for read in (read_weights, has_all_shards):
        with pytest.raises(pickle.UnpicklingError, match='eval is not in'):
            read(tmp_path)
    assert not trap.has_run()


@pytest.mark.slow
@pytest.mark.parametrize('config, layout', [('mask2former', 'ade20k'), ('dino', 'coco')])
def test_two_processes_count_every_image_once_if_their_number_is_odd(config, layout, sample_data, tmp_path):
    """Of three images each process gets two, so one image is evaluated twice."""
    path = f'configs/{config}_revcol_nano_sample.py'
    cfg = Config.fromfile(REPO / path)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    options = on(sample_data, layout, 'test_dataloader.dataset.indices=3')
    outputs, found = [], []
    for number in (1, 2):
        outputs.append(tmp_path / f'out{number}')
        launcher = ('--launcher', 'pytorch') if number > 1 else ()
        where = ('--work-dir', tmp_path, '--out', outputs[-1])
        test = ('tools/test.py', path, tmp_path / 'weights.pth')
        found.append(metrics(run(*launch(number), *test, *launcher, *where, *options)))
    assert found[0] == found[1]
    if layout == 'coco':
        one, two = (json.loads((out / 'predictions.bbox.json').read_text()) for out in outputs)
        assert len({box['image_id'] for box in one}) == 3
    else:
        one, two = ({path.name: path.read_bytes() for path in out.glob('*.png')} for out in outputs)
        assert len(one) == 3 and 'mIoU' in found[0]
    assert one == two
