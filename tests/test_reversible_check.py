"""The hook that watches how exact reversible training is."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

from revcol_mm import RevCol, ReversibleCheckHook


class Toy(BaseModel):
    def __init__(self, **kwargs):
        super().__init__()
        arch = dict(channels=(8, 16), layers=(1, 1), num_columns=4)
        self.backbone = RevCol(arch=arch, out_indices=(0, 1), layer_scale_init_value=0.3, **kwargs)

    def forward(self, image, mode='loss'):
        return dict(loss=sum(f.square().mean() for f in self.backbone(image)))


def train(tmp_path, model):
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(TensorDataset(torch.rand(4, 3, 32, 32))),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-5)),
        custom_hooks=[dict(type='ReversibleCheckHook', interval=2)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2), checkpoint=None),
        log_processor=dict(by_epoch=False),
        experiment_name=tmp_path.name,
    )
    runner.train()
    scalars = runner.message_hub.log_scalars
    (log,) = tmp_path.glob('*/*.log')
    names = ('reconstruction_error', 'min_abs_alpha')
    return *(scalars[f'train/{name}'].data[0] for name in names), log.read_text()


def test_the_error_and_the_smallest_alpha_are_logged(tmp_path):
    model = Toy(save_memory=True)
    model.backbone.subnet2.alpha1.data[0, 3] = -0.01
    errors, alphas, log = train(tmp_path, model)
    assert list(errors) == [0, 0]  # iterations 2 and 4
    assert alphas == pytest.approx([0.01, 0.01], rel=0.1)
    assert 'reconstruction_error: 0.0000  min_abs_alpha: 0.01' in log and 'reconstruction error' not in log
    assert model.backbone.reconstruction_errors is None


@pytest.mark.parametrize('column', [0, 3])
def test_a_layer_that_does_not_repeat_itself_is_warned_of(tmp_path, column):
    model = Toy(save_memory=True)
    block = model.backbone.columns[column].level0.blocks[0]
    block.register_forward_hook(lambda module, inputs, output: output + 1e-5 * torch.is_grad_enabled())
    errors, _, log = train(tmp_path, model)
    assert min(errors) > 1e-7
    assert 'WARNING - reversible training: reconstruction error' in log


def test_a_model_that_does_not_train_reversibly_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='save_memory=True'):
        train(tmp_path, Toy())


def test_an_interval_that_would_never_come_is_an_error():
    with pytest.raises(ValueError, match='interval.*0'):
        ReversibleCheckHook(interval=0)
