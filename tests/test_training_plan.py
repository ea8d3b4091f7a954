"""Planned memory and FLOPs against measured ones, and tools/analysis/plan_training.py."""

import json
import re

import pytest
import torch
from mmcv.ops import multi_scale_deform_attn
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

import revcol_mm.analysis.training_plan as plan
from revcol_mm.analysis.complexity import count_complexity

from .subprocesses import REPO

TOOL = 'tools/analysis/plan_training.py'
DINO = 'configs/dino_revcol_nano_sample.py'


@pytest.fixture
def cfg():
    cfg = Config.fromfile(REPO / DINO)
    init_default_scope(cfg.default_scope)
    return cfg


def test_narrowing_changes_only_backbone_and_its_readers():
    cfg = Config.fromfile(REPO / 'configs/cascade_mask_rcnn_revcol_t_coco.py')
    init_default_scope(cfg.default_scope)
    narrow = plan._narrow(cfg, 2, False).model
    assert narrow.neck.in_channels == [32, 64, 128, 256] and narrow.backbone.arch.layers == [2, 2, 4, 2]
    assert narrow.rpn_head.in_channels == 256  # of the neck's output, and a width of the backbone


def test_mmcv_samples_as_on_gpus_and_by_its_own_function_afterwards(monkeypatch):
    """The patch of MMCV has an effect: MMCV still calls its sampling by the name that is replaced."""
    calls, forward = [], plan._Sampling.forward

    def count(ctx, *args):
        calls.append(args[0].shape)
        return forward(ctx, *args)

    monkeypatch.setattr(plan._Sampling, 'forward', staticmethod(count))
    attention = multi_scale_deform_attn.MultiScaleDeformableAttention(32, 4, num_levels=1, num_points=2)
    inputs = dict(
        query=torch.rand(6, 1, 32),
        reference_points=torch.rand(1, 6, 1, 2),
        spatial_shapes=torch.tensor([[2, 3]]),
        level_start_index=torch.tensor([0]),
    )
    with plan._sampling_as_on_gpus():
        attention(**inputs)
    assert calls == [(1, 6, 4, 8)]  # batch, positions, heads, channels of a head
    attention(**inputs)
    assert len(calls) == 1


@pytest.mark.parametrize('save_memory', [False, True])
def test_extrapolated_activations_equal_measured_ones(save_memory, cfg, monkeypatch, device):
    """The measured models have at most a quarter of the channels and half of the pixels."""
    monkeypatch.setattr(plan, 'NARROW', 8)
    counts = plan.count_parameters(cfg)
    estimated = plan.estimate_activations(cfg, (224, 320), save_memory, counts, side=128, device=device)
    cfg.model.backbone.save_memory = save_memory
    measured = plan.measure_activations(cfg, 224, 320, device)
    assert estimated == pytest.approx(measured, rel=0.15)


def test_weights_gradients_and_optimizer_state_equal_those_of_a_step(cfg):
    counts = plan.count_parameters(cfg)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    params = list(model.parameters())
    for param in params:
        param.grad = torch.ones_like(param)
    wrapper.optimizer.step()
    states = [s for each in wrapper.optimizer.state.values() for s in each.values() if s.ndim]
    memory = plan.training_memory(counts, 0, 1, 1, sharded=False, optimizer='AdamW')
    assert memory.weights == sum(param.nbytes for param in params)
    assert memory.gradients == sum(param.grad.nbytes for param in params)
    assert memory.optimizer == sum(state.nbytes for state in states)
    assert memory.buffers == 0
    column = sum(param.nbytes for param in model.backbone.columns[-1].parameters())
    assert plan.BYTES * counts.column == column
    sharded = plan.training_memory(counts, 10, 2, 4, sharded=True, optimizer='AdamW')
    assert sharded.weights == -(-memory.weights // 4) and sharded.activations == 20
    assert sharded.buffers == 2 * plan.BYTES * counts.rest + 4 * column


def test_reversible_step_adds_the_flops_of_one_backbone_forward_pass(cfg):
    flops = count_complexity(Config.fromfile(REPO / DINO), (128, 128)).flops
    plain, reversible = (plan.training_flops(cfg, (128, 128), save_memory) for save_memory in (False, True))
    assert plain == 6 * flops.total() and reversible - plain == 2 * flops['backbone']


def test_tool_prints_and_writes_a_plan(tmp_path, call_tool, monkeypatch, device):
    measured_on = []

    def measure(cfg, height, width, device):
        measured_on.append(device)
        return height * width * 1000

    monkeypatch.setattr(plan, 'measure_activations', measure)
    options = ('--gpus', 4, '--shape', 128, 128, '--device', device, '--out', tmp_path)
    printed, error = call_tool(TOOL, DINO, *options)
    assert not error and set(measured_on) == {device}
    assert len(re.findall(r'^\| (?:DDP|FullyShardedRunner) ', printed, re.M)) == 4
    rows = json.loads((tmp_path / 'plan_training.json').read_text())
    images = 1000 * 4 * 4  # iterations x GPUs x images per GPU
    per_day = 4 * 156e12 * 0.3 * 86400  # FLOPs of 4 GPUs
    assert all(row['days'] == pytest.approx(images * row['flops_per_image'] / per_day) for row in rows)


def test_number_of_images_is_refused_where_iterations_are_counted(call_tool):
    config = 'configs/dino_revcol_nano_sample.py'
    _, error = call_tool(TOOL, config, '--gpus', 8, '--shape', 800, 1280, '--num-images', 10)
    assert error.endswith('counts iterations, not epochs: leave out --num-images')


@pytest.mark.parametrize(
    'config, message',
    [
        ('configs/dino_revcol_t_coco.py', 'trains for 12 epochs: give --num-images'),
        ('configs/baselines/upernet_convnext_sample.py', 'is not a RevCol'),
        ('configs/nothing.py', 'no config configs/nothing.py'),
    ],
)
def test_invalid_config_is_an_error_in_one_line(config, message, call_tool):
    _, error = call_tool(TOOL, config, '--gpus', 8, '--shape', 800, 1280)
    assert error.startswith('error: ') and message in error
