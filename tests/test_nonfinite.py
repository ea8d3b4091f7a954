"""A loss or a gradient that is not finite is found where and when it arises."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from revcol_mm import RevCol
from revcol_mm.training.nonfinite import NonFiniteError, NonFiniteHook
from revcol_mm.training.runner import ResumableRunner


class Images(Dataset):
    """Six batches of one image, whose values are as given."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        sample = SimpleNamespace(img_path=f'images/{index}.jpg')
        return dict(inputs=torch.full((3, 32, 32), self.values[index]), data_samples=sample)


def collate(samples):
    inputs = torch.stack([sample['inputs'] for sample in samples])
    return dict(inputs=inputs, data_samples=[sample['data_samples'] for sample in samples])


class BadGradient(torch.autograd.Function):
    """Finite, but not its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float('inf')


class Overflow(nn.Module):
    """Of values above 100 it makes infinite ones."""

    def forward(self, x, image):
        return x / (image.amax() <= 100)


class Model(BaseModel):
    """An image above 100 makes an output infinite before it is normalised, one below 0 the gradient."""

    def __init__(self):
        super().__init__()
        arch = dict(channels=(8, 16), layers=(1, 1), num_columns=2)
        self.backbone = RevCol(arch, drop_path_rate=0.5, out_indices=(1,))
        self.overflow = Overflow()
        self.norm = nn.BatchNorm2d(16)

    def forward(self, inputs, data_samples, mode='loss'):
        output = self.norm(self.overflow(self.backbone(inputs)[0], inputs))
        if (inputs < 0).any():
            output = BadGradient.apply(output)
        return dict(loss=output.square().mean())


def runner(values, work_dir, max_skips=0, runner_type=Runner, model=None, seed=0, **options):
    torch.manual_seed(0)
    return runner_type(
        model=model or Model(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(Images(values), 1, collate_fn=collate),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=len(values), val_interval=100),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), **options),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=100)),
        custom_hooks=[dict(type='NonFiniteHook', max_skips=max_skips)],
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
        randomness=dict(seed=seed),
    )


def test_the_iteration_the_images_and_the_first_bad_output_are_named_and_weights_saved(tmp_path):
    run = runner([1.0, 2.0, 200.0, 1.0], tmp_path)
    weights = {}
    update = type(run).call_hook

    def call_hook(self, name, **kwargs):
        if name == 'before_train_iter':
            weights.update({n: x.clone() for n, x in self.model.state_dict().items()})
        update(self, name, **kwargs)

    run.call_hook = call_hook.__get__(run)
    with pytest.raises(NonFiniteError) as error:
        run.train()
    message = str(error.value)
    assert 'the loss of iteration 3 is not finite' in message
    assert 'output is that of overflow (Overflow); images: images/2.jpg.' in message
    saved = torch.load(tmp_path / 'nonfinite_iter_3.pth')['state_dict']
    for name, weight in weights.items():
        assert torch.equal(saved[name], weight), name


def test_a_bad_gradient_of_finite_outputs_is_named_before_the_step(tmp_path):
    with pytest.raises(NonFiniteError, match='gradient of iteration 2 .*outputs are finite, the gradient'):
        runner([1.0, -1.0, 1.0], tmp_path, clip_grad=dict(max_norm=1.0)).train()
    saved = torch.load(tmp_path / 'nonfinite_iter_2.pth')['state_dict']
    assert all(weight.isfinite().all() for weight in saved.values())


@pytest.mark.parametrize('bad', [200.0, -1.0])
def test_as_many_iterations_are_skipped_as_allowed_and_no_more(bad, tmp_path):
    model = runner([1.0, bad, 2.0, bad], tmp_path / 'a', max_skips=2).train()
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    (log,) = tmp_path.glob('a/*/*.log')
    assert log.read_text().count('Skipped') == 2
    with pytest.raises(NonFiniteError, match='iteration 3'):
        runner([bad, 1.0, bad], tmp_path / 'b', max_skips=1).train()


def test_a_skipped_batch_changes_no_weight(tmp_path):
    skipped = runner([1.0, -1.0], tmp_path / 'a', max_skips=1).train()
    without = runner([1.0], tmp_path / 'b').train()
    for name, param in without.named_parameters():
        assert torch.equal(skipped.get_parameter(name), param), name


def test_looking_changes_nothing(tmp_path):
    watched = runner([1.0, 2.0, 3.0], tmp_path / 'a')
    free = runner([1.0, 2.0, 3.0], tmp_path / 'b')
    free._hooks = [hook for hook in free.hooks if not isinstance(hook, NonFiniteHook)]
    for run in (watched, free):
        torch.manual_seed(1)
        run.train()
    for name, weight in free.model.state_dict().items():
        assert torch.equal(watched.model.state_dict()[name], weight), name


def test_a_negative_number_of_skips_is_an_error():
    with pytest.raises(ValueError, match='from 0 on, got -1'):
        NonFiniteHook(max_skips=-1)


class Draws(BaseModel):
    """Makes infinite of one random number in two."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.coin = nn.Identity()

    def forward(self, inputs, data_samples, mode='loss'):
        scale = 1 / (torch.rand(()) < 0.5)
        return dict(loss=self.coin(self.layer(inputs.new_ones(1)) * scale).square().sum())


def test_what_the_model_drew_is_drawn_again(tmp_path):
    """Also where the run seeds every iteration."""
    for seed in range(4):
        run = runner([1.0] * 20, tmp_path / str(seed), runner_type=ResumableRunner, model=Draws(), seed=seed)
        with pytest.raises(NonFiniteError, match='the first such output is that of coin'):
            run.train()


class Parts(BaseModel):
    """Two layers, of which the second has a bad gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, inputs, data_samples, mode='loss'):
        return dict(
            loss=(self.first(inputs.new_ones(1)) + BadGradient.apply(self.second.weight)).square().sum()
        )


def test_of_clipped_gradients_too_the_bad_one_is_named(tmp_path):
    with pytest.raises(NonFiniteError, match='the gradient of second.weight is not;'):
        runner([1.0], tmp_path, model=Parts(), clip_grad=dict(max_norm=1.0)).train()


def test_weights_are_saved_before_the_batch_is_run_again(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(NonFiniteHook, '_origin', fail)
    with pytest.raises(MemoryError):
        runner([1.0, 200.0], tmp_path).train()
    saved = torch.load(tmp_path / 'nonfinite_iter_2.pth')['state_dict']
    assert saved['norm.num_batches_tracked'] == 1 and saved['norm.running_mean'].isfinite().all()


def test_training_again_looks_once(tmp_path, monkeypatch):
    run = runner([1.0], tmp_path)
    looked = []
    monkeypatch.setattr(NonFiniteHook, '_is_bad', lambda self, runner, what, bad: looked.append(what))
    run.train()
    run.train_loop._iter = 0
    run.train()
    assert looked == ['loss', 'gradient'] * 2


@pytest.mark.parametrize('priority', ['LOWEST', 'VERY_HIGH'])
def test_it_works_beside_the_statistics_of_columns_in_either_order(priority, tmp_path):
    """Both look at gradients before the optimizer's step."""
    run = runner([1.0, 1.0, -1.0], tmp_path, max_skips=1)
    run.register_hook(dict(type='ColumnStatisticsHook', interval=1, priority=priority))
    weights = run.train().state_dict()
    assert all(weight.isfinite().all() for weight in weights.values())
    (log,) = tmp_path.glob('*/*.log')
    assert log.read_text().count('Skipped') == 1 and log.read_text().count('gradient_norm') >= 2
    assert 'step' not in vars(run.optim_wrapper)
