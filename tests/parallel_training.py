"""Short training of a sample config with the same result in any number of processes, run by tests.

    python [-m torch.distributed.run --standalone --nproc-per-node N] tests/parallel_training.py
        CONFIG OUT [--cfg-options ...]

writes losses, gradient norms, the memory of the main process, initial and final weights to OUT, which another
run can use as load_from. ``test_distributed.py`` lists what is changed in the config for this.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, RUNNERS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch.utils.data import Dataset

import revcol_mm  # noqa: F401
from revcol_mm.training.launch import adapt_precision_to_device, adapt_to_device
from tests.subprocesses import leave_processes

ARCH = dict(channels=[8, 16, 24, 32], layers=(1, 1, 2, 1), num_columns=4)
SIZE = 64
GLOBAL_BATCH = 4
NUM_CLASSES = 10


@DATASETS.register_module()
class Rectangles(Dataset):
    """Noise images with three objects of different classes each."""

    def __init__(self, scope):
        self.scope = scope
        self.metainfo = dict(classes=tuple(map(str, range(NUM_CLASSES))))

    def __len__(self):
        return 12

    def __getitem__(self, index):
        rng = np.random.RandomState(index)
        image = torch.from_numpy(rng.randint(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
        lows = rng.randint(0, SIZE // 2, (3, 2))
        boxes = np.concatenate([lows, lows + rng.randint(12, SIZE // 2, (3, 2))], 1)
        labels = rng.choice(NUM_CLASSES, 3, replace=False)
        meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1, 1), flip=False)
        if self.scope == 'mmdet':
            from mmdet.structures import DetDataSample

            instances = InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(labels)
            )
            return dict(inputs=image, data_samples=DetDataSample(gt_instances=instances, metainfo=meta))
        from mmseg.structures import SegDataSample

        label_map = torch.full((1, SIZE, SIZE), 255)
        for index, label in enumerate(labels):  # stripes that do not overlap
            label_map[:, index * 20 : index * 20 + boxes[index, 0] // 2 + 4] = int(label)
        sample = SegDataSample(gt_sem_seg=PixelData(data=label_map), metainfo=meta)
        return dict(inputs=image, data_samples=sample)


class Record(Hook):
    """Records initial weights, losses averaged over processes, and gradient norms."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.losses, self.grad_norms, self.initial = [], [], {}

    def before_train(self, runner):
        self.initial = whole_weights(runner.model)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        losses = {name: value.detach().clone() for name, value in outputs.items() if 'loss' in name}
        for value in losses.values():
            all_reduce(value, 'mean')
        self.losses.append({name: value.item() for name, value in losses.items()})
        self.grad_norms.append(float(runner.message_hub.get_scalar('train/grad_norm').current()))


def whole_weights(model):
    """Return copies of a model's weights, gathered if they are sharded."""
    return {
        name.removeprefix('module.'): getattr(weight, 'full_tensor', weight.clone)()
        for name, weight in model.state_dict().items()
    }


def held_bytes(tensors):
    """Return the bytes of tensors in this process, without the shards of others."""
    return sum((tensor.to_local() if hasattr(tensor, 'to_local') else tensor).nbytes for tensor in tensors)


def same_points(*shape, device=None):
    """Replace torch.rand by the same points for every mask in every process."""
    shape = shape[0] if len(shape) == 1 else shape
    points = np.random.RandomState(0).rand(*shape[1:]).astype(np.float32)
    return torch.from_numpy(points).expand(*shape).clone()


def shrink(cfg):
    """Make a sample config's model tiny, reversible and independent of the number of processes."""
    model = cfg.model
    model.backbone.update(arch=ARCH, save_memory=True)
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (SIZE, SIZE)
        model.decode_head.update(in_channels=ARCH['channels'], num_classes=NUM_CLASSES)
        model.decode_head.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
        torch.rand = same_points
    else:
        model.neck.in_channels = ARCH['channels'][1:]
        model.num_queries = 20
        model.dn_cfg.update(label_noise_scale=1e-12, box_noise_scale=1e-12)  # 0 is not allowed
    dataset = dict(type='Rectangles', scope=cfg.default_scope, _scope_='mmengine')
    cfg.train_dataloader = dict(
        batch_size=GLOBAL_BATCH // int(os.environ.get('WORLD_SIZE', 1)),
        num_workers=0,
        sampler=dict(type='InfiniteSampler'),
        dataset=dataset,
    )
    for part in ('dataloader', 'cfg', 'evaluator'):
        cfg.pop(f'val_{part}'), cfg.pop(f'test_{part}')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=1000)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.5, begin=0, end=6, by_epoch=False)]
    cfg.default_hooks.logger.interval = 1
    cfg.randomness = dict(seed=0, deterministic=True)
    # With its default eps, Adam takes a full step for a gradient that is only rounding error. Clipped
    # gradients are about 1e-3; as sums over columns and pixels they have rounding errors up to about 1e-8.
    cfg.optim_wrapper.optimizer.eps = 1e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('out', type=Path)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.default_scope)
    shrink(cfg)
    cfg.launcher = 'pytorch' if 'WORLD_SIZE' in os.environ else 'none'
    cfg.work_dir = str(args.out.with_suffix(''))
    cfg.merge_from_dict(args.cfg_options)
    adapt_precision_to_device(cfg)
    adapt_to_device(cfg)
    runner = RUNNERS.get(cfg.get('runner_type', 'ResumableRunner')).from_cfg(cfg)
    record = Record()
    runner.register_hook(record)
    runner.train()
    assert get_world_size() == int(os.environ.get('WORLD_SIZE', 1))
    states = [state for each in runner.optim_wrapper.optimizer.state.values() for state in each.values()]
    results = dict(
        held=dict(weights=held_bytes(runner.model.parameters()), optimizer=held_bytes(states)),
        losses=record.losses,
        grad_norms=record.grad_norms,
        state_dict=record.initial,
        final=whole_weights(runner.model),
    )
    if is_main_process():
        torch.save(results, args.out)
    if get_world_size() > 1:
        leave_processes()


if __name__ == '__main__':
    main()
