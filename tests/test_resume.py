"""A run that is resumed from MMEngine's own checkpoint equals one that was never broken."""

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

from revcol_mm import RevCol


class Regression(BaseModel):
    """The smallest model that MMEngine's runner trains."""

    def __init__(self):
        super().__init__()
        self.backbone = RevCol(arch=dict(channels=(8, 16), layers=(1, 1), num_columns=2), out_indices=(1,))

    def forward(self, image, target, mode='loss'):
        return dict(loss=(self.backbone(image)[0].mean((1, 2, 3)) - target).square().mean())


def train(work_dir, max_iters, resume=False):
    torch.manual_seed(1)
    data = TensorDataset(torch.rand(8, 3, 32, 32), torch.rand(8))
    runner = Runner(
        model=Regression(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(data, 2, sampler=DefaultSampler(data, shuffle=True, seed=0)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.8),
        ),
        param_scheduler=dict(type='PolyLR', eta_min=0, begin=0, end=6, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        ),
        log_processor=dict(by_epoch=False),
        resume=resume,
        experiment_name=f'{work_dir.name}-{resume}',
    )
    return runner.train().state_dict()


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    unbroken = train(tmp_path / 'unbroken', max_iters=6)
    train(tmp_path / 'broken', max_iters=3)
    resumed = train(tmp_path / 'broken', max_iters=6, resume=True)
    for name, weight in unbroken.items():
        assert torch.equal(resumed[name], weight), name


def test_getattr_in_a_checkpoint_gives_a_log_buffer_s_statistics_and_nothing_else(tmp_path):
    class Asks:
        def __reduce__(self):
            return getattr, (torch.Tensor, 'tolist')

    torch.save({'asks': Asks()}, tmp_path / 'asks.pth')
    with pytest.raises(Exception, match='getattr.*tolist'):
        torch.load(tmp_path / 'asks.pth', weights_only=True)
