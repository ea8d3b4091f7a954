"""Timing of training and inference steps, and tools/analysis/benchmark_speed.py."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

from revcol_mm.analysis.speed import MAX_GRAPHS, Stepper, Variant, time_in_turn
from revcol_mm.analysis.synthetic_batch import NUM_OBJECTS, NUM_SEGMENTS, num_classes_of, synthetic_batch
from revcol_mm.apis import init_model

from .subprocesses import REPO

TOOL = 'tools/analysis/benchmark_speed.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
CONFIGS = {
    'configs/cascade_mask_rcnn_revcol_nano_sample.py': (64, 96),
    'configs/dino_revcol_nano_sample.py': (64, 96),
    'configs/upernet_revcol_nano_sample.py': (128, 128),
    'configs/mask2former_revcol_nano_sample.py': (128, 128),
    CLASSIFIER: (64, 64),
}


@pytest.mark.parametrize('config', CONFIGS)
def test_steps_of_every_family_keep_the_weights(config, device):
    cfg = Config.fromfile(REPO / config)
    model = init_model(cfg, device=str(device))
    weights = {name: value.clone() for name, value in model.named_parameters()}

    def make_batch(size):
        return synthetic_batch(model, cfg.default_scope, size, *CONFIGS[config])

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        stepper = Stepper(model, cfg, make_batch)
        losses = stepper.step(Variant('training', 'fp32', False, 2))()
        assert np.isfinite(losses['loss'].item()) and model.training
        assert all(state['exp_avg'].isfinite().all() for state in stepper.optimizer.state.values())
        moved = [bool(state['exp_avg'].any()) for state in stepper.optimizer.state.values()]
        assert np.mean(moved) > 0.8 and len(moved) > 100  # backward and the optimizer ran
        samples = stepper.step(Variant('inference', 'fp32', False, 1))()
        assert len(samples) == 1 and not model.training
        (predicted,) = (key for key in ('pred_instances', 'pred_sem_seg', 'pred_label') if key in samples[0])
        assert predicted
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name]), name


class Linear(BaseModel):
    """A model whose output is both its loss and its prediction."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, inputs, mode):
        output = self.layer(inputs)
        return dict(loss=output.mean()) if mode == 'loss' else output


@pytest.mark.parametrize('mode', ['training', 'inference'])
@pytest.mark.parametrize('precision, dtype', [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_steps_use_the_precision_and_compilation_of_the_variant(mode, precision, dtype, monkeypatch):
    model = Linear()
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0), accumulative_counts=4)))
    stepper = Stepper(model, cfg, lambda size: dict(inputs=torch.arange(3.0).expand(size, 3)))
    dtypes, graphs = [], []
    model.layer.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda *args, **options: compile(*args, backend=keep, **options))
    steps = [stepper.step(Variant(mode, precision, compiled, 4)) for compiled in (False, True)]
    eager = steps[0]()
    assert dtypes == [dtype] and not graphs
    compiled = steps[1]()
    assert len(graphs) == 1
    torch.testing.assert_close(compiled, eager)
    steps[0]()
    assert len(graphs) == 1 and len(dtypes) >= 2  # eager again


def test_steps_leave_neither_forward_nor_compiler_settings_behind(monkeypatch):
    model, settings = Linear(), torch._dynamo.config
    before = settings.recompile_limit, settings.fail_on_recompile_limit_hit
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0))))
    during, sizes = [], iter([3, 3, 2])

    def keep(graph, inputs):
        during.append((settings.recompile_limit, settings.fail_on_recompile_limit_hit))
        return graph

    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda *args, **options: compile(*args, backend=keep, **options))
    stepper = Stepper(model, cfg, lambda size: dict(inputs=torch.ones(size, next(sizes))))
    for mode in ('training', 'inference'):
        stepper.step(Variant(mode, 'fp32', True, 2))()
    with pytest.raises(RuntimeError):  # 2 channels instead of 3
        stepper.step(Variant('inference', 'fp32', True, 2))()
    assert set(during) == {(MAX_GRAPHS, True)} and before != (MAX_GRAPHS, True)
    assert (settings.recompile_limit, settings.fail_on_recompile_limit_hit) == before
    assert 'forward' not in vars(model)


def test_variants_are_timed_in_turn():
    order = []
    steps = {name: partial(order.append, name) for name in 'ab'}
    seconds = time_in_turn(steps, 3, torch.device('cpu'), warm_up=2)
    assert ''.join(order) == 3 * ('aaa' + 'bbb')
    assert [len(seconds[name]) for name in 'ab'] == [3, 3]


def test_synthetic_batches_have_labels():
    class Model(torch.nn.Module):
        num_classes = 80

    boxes = synthetic_batch(Model(), 'mmdet', 2, 64, 96)['data_samples'][1].gt_instances
    assert len(boxes.bboxes) == len(boxes.masks) == NUM_OBJECTS
    assert (boxes.bboxes[:, 2:] <= torch.tensor([96, 64])).all()
    maps = synthetic_batch(Model(), 'mmseg', 2, 62, 96)
    label_map = maps['data_samples'][0].gt_sem_seg.data
    assert label_map.shape == (1, 62, 96) and len(label_map.unique()) == NUM_SEGMENTS
    labels = [s.gt_label.item() for s in synthetic_batch(Model(), 'mmpretrain', 81, 8, 8)['data_samples']]
    assert labels == [*range(80), 0]
    with pytest.raises(ValueError, match='no part of Linear has num_classes'):
        num_classes_of(torch.nn.Linear(1, 1))


def test_tool_writes_its_measurements(tmp_path, call_tool, device):
    printed, error = call_tool(
        *(TOOL, 'tests/configs/classifier_revcol_nano_sample.py', '--batch-sizes', 1, 4),
        *('--precisions', 'fp32', '--repeats', 2, '--device', device),
        *('--shape', 32, 64, '--out', tmp_path),
    )
    assert not error
    report = json.loads((tmp_path / 'benchmark_speed.json').read_text())
    assert report['shape'] == [32, 64] and f'32 x 64, {report["machine"]}' in printed
    variants = [(row['mode'], row['batch_size']) for row in report['rows']]
    assert variants == [('training', 1), ('training', 4), ('inference', 1), ('inference', 4)]
    for row in report['rows']:
        low, median, high = (row['seconds'][key] for key in ('low', 'median', 'high'))
        assert low <= median <= high
        assert row['images_per_second'] == pytest.approx(row['batch_size'] / median)
        assert f'| {row["mode"]} | fp32, eager, batch {row["batch_size"]} | ' in printed
    one, four, _, _ = (row['peak_mib'] for row in report['rows'])
    assert 0 < one < four
    assert (tmp_path / 'benchmark_speed.png').stat().st_size > 10_000


def test_failing_variant_is_reported_and_the_others_are_timed(call_tool):
    printed, error = call_tool(
        *(TOOL, 'configs/upernet_revcol_nano_sample.py', '--batch-sizes', 1, 2, '--precisions', 'fp32'),
        *('--modes', 'training', '--shape', 64, 64, '--repeats', 1),
    )
    assert error == 'error: 1 of 2 variants failed'
    failed, timed = printed.strip().splitlines()[-2:]
    assert failed.startswith(
        '| training | fp32, eager, batch 1 | ValueError: Expected more than 1 value per channel'
    )
    assert timed.startswith('| training | fp32, eager, batch 2 | ') and 'Error' not in timed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--repeats', 0), 'must be at least 1'),
        (('--shape', 0, 64), 'must be at least 1'),
        (('--precisions', 'fp16', '--device', 'cpu'), 'fp16 requires a GPU'),
        (('--cfg-options', 'test_dataloader.batch_size=None'), 'give --batch-sizes'),
    ],
)
def test_invalid_options_are_errors_in_one_line(arguments, message, call_tool):
    _, error = call_tool(TOOL, CLASSIFIER, *arguments)
    assert error.startswith('error: ') and message in error
