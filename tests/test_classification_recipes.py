"""The configs of classification hold the published recipes, and train on other data."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from revcol_mm import RevColClassifier

from .subprocesses import REPO, run

# RevCol's released configs. Configs without clip_grad use the default of the official `config.py`.
RECIPES = """
config                     epochs lr      warmup wd   min_lr decay drop ema clip size classes
revcol_t_in1k                 300 1e-3        20 0.05   1e-6   1.0  0.1   1    0  224    1000
revcol_s_in1k                 300 1e-3        20 0.05   1e-6   1.0  0.3   1    0  224    1000
revcol_b_in1k                 300 1e-3        20 0.05   1e-8   1.0  0.4   1    5  224    1000
revcol_b_in22k                 90 1.25e-4      5  0.1   1e-7   1.0  0.3   0   10  224   21841
revcol_l_in22k                 90 1.25e-4      5  0.1   1e-7   1.0  0.3   0   10  224   21841
revcol_xl_in22k                90 1.25e-4      5  0.1   1e-7   1.0  0.4   0   10  224   21841
revcol_b_in1k_finetune         30 1e-4         0 1e-8   2e-7   0.9  0.2   0   10  224    1000
revcol_b_384_in1k_finetune     30 1e-4         0 1e-8   2e-7   0.9  0.2   0   10  384    1000
revcol_l_in1k_finetune         30 5e-5         0 1e-8   2e-7   0.8  0.3   0   10  224    1000
revcol_l_384_in1k_finetune     30 5e-5         0 1e-8   2e-7   0.8  0.3   0   10  384    1000
revcol_xl_384_in1k_finetune    30 2e-5         0 1e-8   2e-7   0.8  0.4   1   10  384    1000
revcol_h_640_in1k_finetune     20 4e-5         0 1e-8   2e-8   0.8  0.4   1  100  640    1000
"""
COLUMNS, *ROWS = (line.split() for line in RECIPES.split('\n') if line)


def test_every_classification_config_has_a_recipe():
    names = [path.stem for path in (REPO / 'configs').glob('revcol_*_in*k*.py')]
    assert sorted(names) == sorted(row[0] for row in ROWS)


@pytest.fixture(params=ROWS, ids=lambda row: row[0])
def recipe(request):
    """A config, its published numbers, and whether it fine-tunes."""
    name, *numbers = request.param
    cfg = Config.fromfile(REPO / f'configs/{name}.py')
    return cfg, dict(zip(COLUMNS[1:], map(float, numbers))), name.endswith('finetune')


def test_model_is_the_published_one(recipe):
    cfg, numbers, is_finetuning = recipe
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))
    assert isinstance(model, RevColClassifier) and model.backbone.save_memory
    assert len(model.heads) == (1 if is_finetuning else 4)
    assert model.num_classes == numbers['classes'] and model.label_smoothing == 0.1
    supervision = dict(reconstruction_weight=3.0, classification_weight=0.7)
    assert cfg.model.supervision == (None if is_finetuning else supervision)
    assert cfg.model.get('head_init_scale', 1.0) == (0.001 if is_finetuning else 1.0)
    assert ('init_cfg' in cfg.model.backbone) == is_finetuning
    augments = model.data_preprocessor.batch_augments
    assert augments is None if is_finetuning else [a.alpha for a in augments.augments] == [0.8, 1.0]
    assert cfg.model.backbone.drop_path_rate == numbers['drop']


def test_schedule_is_the_published_one(recipe):
    cfg, numbers, _ = recipe
    optimizer, (*warmup, cosine) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', numbers['lr'], numbers['wd'])
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == numbers['decay']
    assert cfg.optim_wrapper.get('clip_grad', dict(max_norm=0))['max_norm'] == numbers['clip']
    assert [s.end for s in warmup] == [numbers['warmup']] * bool(numbers['warmup'])
    assert [s.start_factor * optimizer.lr for s in warmup] == pytest.approx([1e-5] * len(warmup))
    assert cosine.eta_min_ratio * optimizer.lr == pytest.approx(numbers['min_lr'])
    assert cosine.begin == numbers['warmup']
    assert cosine.end == cfg.train_cfg.max_epochs == numbers['epochs']
    assert cosine.T_max == cosine.end - cosine.begin
    assert [hook.momentum for hook in cfg.custom_hooks] == [1e-4] * int(numbers['ema'])


def test_pipelines_are_the_published_ones(recipe):
    cfg, numbers, _ = recipe
    train, test = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline
    augmentations = ['RandomResizedCrop', 'RandomFlip', 'RandAugment', 'RandomErasing']
    assert [t.type for t in train[1:-1]] == augmentations
    assert train[1].scale == numbers['size']
    if numbers['size'] == 224:
        assert (test[1].scale, test[2].crop_size) == (256, 224)
    else:
        assert test[1].scale == (numbers['size'],) * 2 and len(test) == 3
    assert cfg.val_dataloader == cfg.test_dataloader


USER_CONFIG = """
_base_ = ['{repo}/configs/revcol_t_in1k.py']
model = dict(backbone=dict(arch='nano'), num_classes=10)
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=64)
sample = dict(_delete_=True, type='CustomDataset', data_root='{data}')
loader = dict(batch_size=6, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(data_prefix='train', pipeline=train_pipeline, **sample), **loader)
val_dataloader = dict(dataset=dict(data_prefix='val', pipeline=_base_.test_pipeline, **sample), **loader)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2)
"""


@pytest.mark.slow
def test_config_trains_on_other_data_with_ema_and_is_tested(sample_data, tmp_path):
    config = tmp_path / 'user.py'
    config.write_text(USER_CONFIG.format(repo=REPO, data=sample_data / 'imagenet'))
    printed = run('tools/train.py', config, '--work-dir', tmp_path, '--seed', 0)
    assert 'Epoch(val) [2]' in printed and 'loss_rec_2' in printed
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    parts = {name.split('.')[0] for name in checkpoint['state_dict']}
    assert parts == {'backbone', 'cls_blocks', 'decoder_blocks'}
    for name, averaged in checkpoint['state_dict'].items():
        assert averaged.isfinite().all(), name
    trained = checkpoint['ema_state_dict']['module.cls_blocks.3.classifier.1.weight']
    assert not torch.equal(trained, checkpoint['state_dict']['cls_blocks.3.classifier.1.weight'])
    printed = run('tools/test.py', config, tmp_path / 'epoch_2.pth', '--work-dir', tmp_path)
    assert 'accuracy/top1' in printed
