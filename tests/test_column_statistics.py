"""ColumnStatisticsHook logs the alphas, features and gradients of every column."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

from revcol_mm import ColumnStatisticsHook, RevCol
from revcol_mm.models import ReversibleColumns
from revcol_mm.testing import peak_bytes

from .checkpoints import assert_same_weights
from .subprocesses import run_in_processes
from .test_reversible_columns import build

HOOK = dict(type='ColumnStatisticsHook', interval=2)
FIXED = dict(optimizer=dict(type='SGD', lr=0.0))


class Toy(BaseModel):
    def __init__(self, **kwargs):
        super().__init__()
        arch = dict(channels=(8, 16), layers=(1, 1), num_columns=4)
        self.backbone = RevCol(arch=arch, out_indices=(0, 1), layer_scale_init_value=0.3, **kwargs)

    def forward(self, image, mode='loss'):
        return dict(loss=sum(f.square().mean() for f in self.backbone(image)))


def images(number, seed=0):
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def train(work_dir, model, runner=Runner, hooks=(HOOK,), max_iters=4, seed=0, optim_wrapper=FIXED, **kwargs):
    """Train for ``max_iters`` iterations of one image each."""
    runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=DataLoader(TensorDataset(images(max_iters, seed))),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=optim_wrapper,
        custom_hooks=list(hooks),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=max_iters), checkpoint=None),
        log_processor=dict(by_epoch=False),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        experiment_name=str(work_dir).replace('/', '_'),
        **kwargs,
    ).train()


def logged(work_dir):
    """Return the records of the hook in the visualizer backend."""
    (scalars,) = work_dir.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    return [record for record in records if 'loss' not in record]


def values(record, statistic):
    return [value for name, value in record.items() if name.startswith(f'{statistic}/')]


def expected(model, batch):
    """Return, for every column, the feature variance of the last image and the norm of the mean gradient."""
    model.train().zero_grad()
    for image in batch.split(1):
        columns = [[f.detach() for f in features] for features in model.backbone.forward_columns(image)]
        (model(image)['loss'] / len(batch)).backward()
    variances = [
        sum(f.flatten(2).var(2, correction=0).mean().item() for f in features) / 2 for features in columns
    ]
    norms = [
        sum(p.grad.square().sum().item() for p in column.parameters()) ** 0.5
        for column in model.backbone.columns
    ]
    return variances, norms


@pytest.mark.parametrize('name', ['ConvNeXt', 'Swin'])
def test_columns_of_other_networks_have_the_same_statistics(name, tmp_path):
    model = Toy()
    model.backbone = ReversibleColumns(build(name), num_columns=2, save_memory=True)
    train(tmp_path, model)
    for record in logged(tmp_path):
        for statistic in ('min_abs_alpha', 'mean_abs_alpha', 'feature_variance', 'gradient_norm'):
            assert len(values(record, statistic)) == 2 and min(values(record, statistic)) > 0


@pytest.mark.parametrize('save_memory', [False, True], ids=['plain', 'save_memory'])
def test_statistics_of_every_column_are_logged(save_memory, tmp_path):
    model = Toy(save_memory=save_memory)
    model.backbone.subnet2.alpha1.data[0, 3] = -0.01
    train(tmp_path, model)
    records = logged(tmp_path)
    assert [record['step'] for record in records] == [2, 4]
    for record, batch in zip(records, images(4)[1::2].split(1)):
        variances, norms = expected(model, batch)
        assert values(record, 'feature_variance') == pytest.approx(variances, rel=1e-4)
        assert values(record, 'gradient_norm') == pytest.approx(norms, rel=1e-4)
        assert values(record, 'min_abs_alpha') == pytest.approx([0.5, 0.5, 0.01, 0.5])
        assert values(record, 'mean_abs_alpha') == pytest.approx([0.5, 0.5, (23 * 0.5 + 0.01) / 24, 0.5])
        assert record['peak_memory_mib/process'] > 50
    (log,) = tmp_path.glob('*/*.log')
    assert log.read_text().count('columns, peak memory') == 2
    assert not any(column._forward_hooks for column in model.backbone.columns)


def test_accumulated_gradients_are_logged_at_the_step_and_before_clipping(tmp_path):
    model = Toy(save_memory=True)
    optim_wrapper = dict(**FIXED, accumulative_counts=3, clip_grad=dict(max_norm=1e-3))
    train(tmp_path, model, optim_wrapper=optim_wrapper, max_iters=6)
    records = logged(tmp_path)
    assert [record['step'] for record in records] == [3, 6]  # due at 2, 4 and 6
    variances, norms = expected(model, images(6)[:3])
    assert values(records[0], 'feature_variance') == pytest.approx(variances, rel=1e-4)
    assert values(records[0], 'gradient_norm') == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=1e-3)], ids=['', 'clipped'])
def test_gradients_are_logged_without_the_loss_scale(clip_grad, tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    model = Toy(save_memory=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optim_wrapper = AmpOptimWrapper(dtype='bfloat16', optimizer=optimizer, clip_grad=clip_grad)
    optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=1024)
    train(tmp_path, model, optim_wrapper=optim_wrapper)
    _, norms = expected(model, images(4)[1:2])
    assert values(logged(tmp_path)[0], 'gradient_norm') == pytest.approx(norms, rel=0.05)


@pytest.mark.parametrize('save_memory', [False, True], ids=['plain', 'save_memory'])
def test_weights_and_their_averages_are_bitwise_equal_with_and_without_the_hook(save_memory, tmp_path):
    checkpoints = []
    for name, hooks in dict(without=[], watched=[dict(HOOK, interval=1)]).items():
        torch.manual_seed(0)
        model = Toy(save_memory=save_memory, drop_path_rate=0.1)
        for alpha in (model.backbone.subnet1.alpha0, model.backbone.subnet3.alpha1):
            alpha.data.fill_(1e-3)  # the bound, which the next forward pass enforces after a step
        train(
            tmp_path / name,
            model,
            hooks=[dict(type='EMAHook'), dict(type='CheckpointHook', by_epoch=False, interval=4), *hooks],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
            randomness=dict(seed=0),
        )
        checkpoints.append(torch.load(tmp_path / name / 'iter_4.pth', weights_only=False))
    assert (checkpoints[0]['ema_state_dict']['module.backbone.subnet3.alpha1'].abs() < 1e-3).any()
    for key in ('state_dict', 'ema_state_dict'):
        assert_same_weights(checkpoints[0][key], checkpoints[1][key])


def test_hook_stores_no_features():
    arch = dict(channels=(16, 32), layers=(1, 1), num_columns=12)
    model = RevCol(arch=arch, out_indices=(0, 1), save_memory=True)
    image = torch.rand(1, 3, 128, 128)

    def step():
        sum(feature.square().mean() for feature in model(image)).backward()
        model.zero_grad()

    without = peak_bytes(step)
    hook = ColumnStatisticsHook(interval=1)
    runner = SimpleNamespace(model=model, optim_wrapper=SimpleNamespace(step=None), iter=0)
    hook.before_train(runner)
    hook.before_train_iter(runner)
    one_level = 16 * 32 * 32 * 4
    assert peak_bytes(step) < without + one_level
    assert len(hook.variances) == 12


def test_frozen_columns_have_no_gradient_norm_and_columns_of_two_backbones_have_their_names(tmp_path):
    class Pair(Toy):
        def __init__(self):
            super().__init__(frozen_columns=4)
            self.other = Toy(frozen_columns=1).backbone

        def forward(self, image, mode='loss'):
            features = (*self.backbone(image), *self.other(image))
            return dict(loss=sum(feature.square().mean() for feature in features))

    train(tmp_path, Pair(), hooks=[dict(HOOK, interval=4)])
    (record,) = logged(tmp_path)
    columns = [f'{name}.column_0{index}' for name in ('backbone', 'other') for index in range(4)]
    for statistic, names in dict(feature_variance=columns, gradient_norm=columns[-3:]).items():
        assert [name for name in record if name.startswith(statistic)] == [f'{statistic}/{n}' for n in names]


WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from mmengine.registry import RUNNERS
from tests.subprocesses import leave_processes
from tests.test_column_statistics import Toy, train

rank, runner, folder = int(sys.argv[1]), RUNNERS.get(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
model = Toy(save_memory=True)
model.load_state_dict(torch.load(folder / 'weights.pth'))
ddp = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
cfg = dict(model_wrapper_cfg=ddp) if sys.argv[2] == 'Runner' else {}
train(folder / 'run', model, runner, max_iters=2, seed=rank, launcher='pytorch', cfg=cfg)
leave_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize('runner', ['Runner', 'FullyShardedRunner'])
def test_two_processes_log_the_statistics_of_all_images_once(runner, tmp_path):
    model = Toy(save_memory=True)
    model.backbone.subnet2.alpha1.data[0, 3] = -0.01
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    run_in_processes(WORKER, runner, tmp_path)
    (record,) = logged(tmp_path / 'run')
    batch = torch.cat([images(2, seed)[1:] for seed in range(2)])
    variances = [(a + b) / 2 for a, b in zip(*(expected(model, image)[0] for image in batch.split(1)))]
    assert values(record, 'feature_variance') == pytest.approx(variances, rel=1e-4)
    assert values(record, 'gradient_norm') == pytest.approx(expected(model, batch)[1], rel=1e-4)
    assert values(record, 'min_abs_alpha') == pytest.approx([0.5, 0.5, 0.01, 0.5])


def test_model_without_columns_is_refused(tmp_path):
    model = Toy()
    model.backbone = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match='needs a column backbone'):
        train(tmp_path, model)


def test_interval_0_is_refused():
    with pytest.raises(ValueError, match='interval.*0'):
        ColumnStatisticsHook(interval=0)
