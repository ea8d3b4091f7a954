"""Classification equals the published model, with and without intermediate supervision and save_memory."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch import nn

from revcol_mm import RevCol, RevColClassifier
from revcol_mm.testing import peak_bytes, worst_errors

from .conftest import DATA
from .subprocesses import REPO, run
from .test_revcol import assert_near

WIDTHS = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1))
SUPERVISION = dict(reconstruction_weight=3.0, classification_weight=0.7)
STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def classifier(num_columns=4, num_classes=10, save_memory=False, widths=WIDTHS, **kwargs):
    """A small model whose every branch counts: published layer scales begin at 1e-6."""
    backbone = dict(arch=dict(widths, num_columns=num_columns), save_memory=save_memory)
    kwargs = dict(supervision=SUPERVISION, data_preprocessor=STATISTICS) | kwargs
    model = RevColClassifier(RevCol(**backbone), num_classes, **kwargs)
    for name, param in model.named_parameters():
        if name.endswith('gamma'):
            nn.init.constant_(param, 0.3)
    return model


def labelled(labels):
    return [DataSample().set_gt_label(label) for label in labels]


def loss_and_gradients(model, inputs, samples):
    model.zero_grad(set_to_none=True)
    losses = model.loss(inputs, samples)
    sum(losses.values()).backward()
    return losses, {name: param.grad for name, param in model.named_parameters()}


def ours(published):
    """A published classification checkpoint's names or weights, under the names here."""
    heads = ('cls.', 'cls_blocks.', 'decoder_blocks.')
    return {name if name.startswith(heads) else f'backbone.{name}': x for name, x in published.items()}


@pytest.fixture
def golden(device):
    """Weights, logits, reconstructions, loss and gradient norms, computed in float64 with the published
    code."""
    return torch.load(DATA / 'supervised_10cls.pt', device, weights_only=True)


@pytest.mark.parametrize('save_memory', [False, True])
def test_logits_reconstructions_loss_and_gradients_equal_the_published_model(golden, save_memory):
    config = golden['config']
    model = classifier(
        num_columns=config['num_columns'],
        num_classes=config['num_classes'],
        save_memory=save_memory,
        widths={key: config[key] for key in WIDTHS},
        supervision={key: config[key] for key in SUPERVISION},
    ).to(golden['input'].device)
    model.load_state_dict(ours(golden['state_dict']), strict=True)

    features = model.supervised_features(golden['input'])
    for feature, head, expected in zip(features, model.heads, golden['cls_logits'], strict=True):
        assert_near(head(feature), expected)
    expected = golden['reconstructions']
    for feature, decoder, reconstruction in zip(features[:3], model.decoder_blocks, expected, strict=True):
        assert_near(decoder(feature), reconstruction)
    assert_near(model(golden['input']), golden['cls_logits'][-1])

    losses, gradients = loss_and_gradients(model, golden['input'], labelled(golden['target']))
    parts = [losses[f'loss_rec_{i}'] + losses[f'loss_cls_{i}'] for i in range(3)] + [losses['loss_cls']]
    for part, expected in zip(parts, golden['loss_parts'], strict=True):
        assert part.item() == pytest.approx(float(expected), rel=1e-4)
    assert sum(losses.values()).item() == pytest.approx(float(golden['loss']), rel=1e-4)
    expected = ours(golden['param_grad_norms'])
    assert gradients.keys() == expected.keys()
    for name, norm in expected.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize('arch', ['tiny', 'base', 'huge'])
def test_keys_and_shapes_are_the_published_ones(arch, published_keys):
    with torch.device('meta'):
        model = RevColClassifier(RevCol(arch), 1000, SUPERVISION, data_preprocessor=STATISTICS)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == ours(published_keys[arch])


def test_with_more_than_1000_classes_each_decoder_is_one_layer():
    model = classifier(num_classes=1001)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if k.startswith('decoder_blocks.2.')}
    assert shapes == {
        'decoder_blocks.2.projback.0.weight': (32,),
        'decoder_blocks.2.projback.0.bias': (32,),
        'decoder_blocks.2.projback.1.weight': (3 * 32 * 32, 32, 1, 1),
        'decoder_blocks.2.projback.1.bias': (3 * 32 * 32,),
    }
    feature = torch.zeros(1, 32, 2, 3)
    feature[0, :16, 1, 2] = 1.0  # a bright spot in the last patch, and only there
    (image,) = model.decoder_blocks[2](feature)
    flat = model.decoder_blocks[2](torch.zeros(1, 32, 2, 3))[0]
    changed = (image != flat).any(0)
    assert image.shape == (3, 64, 96) and changed[32:, 64:].all()
    assert not changed[:32].any() and not changed[:, :64].any()


@pytest.mark.parametrize(
    ('arch', 'millions'),
    [
        ('tiny', 30.456),
        ('small', 60.568),
        ('base', 138.616),
        ('large', 273.095),
        ('xlarge', 833.807),
        ('huge', 2157.600),
    ],
)
def test_without_supervision_there_is_one_head_and_sizes_are_the_published_ones(arch, millions):
    with torch.device('meta'):
        model = RevColClassifier(RevCol(arch), 1000)
    heads = [name for name in model.state_dict() if not name.startswith('backbone.')]
    assert heads == [f'cls.classifier.{i}.{kind}' for i in (0, 1) for kind in ('weight', 'bias')]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize('num_columns', [4, 8, 16])
@pytest.mark.parametrize('num_classes', [10, 1001])
def test_reversible_gradients_are_the_plain_model_s(num_columns, num_classes):
    plain = classifier(num_columns, num_classes)
    reversible = classifier(num_columns, num_classes, save_memory=True)
    reversible.load_state_dict(plain.state_dict())
    inputs, samples = torch.randn(2, 3, 64, 96), labelled([1, 2])
    expected_losses, expected = loss_and_gradients(plain, inputs, samples)
    losses, gradients = loss_and_gradients(reversible, inputs, samples)
    assert worst_errors(losses, expected_losses)[0][0] <= 2e-5
    assert worst_errors(gradients, expected)[0][0] <= 2e-5


def test_under_autocast_reversible_gradients_are_the_plain_model_s():
    plain, reversible = classifier(8), classifier(8, save_memory=True)
    reversible.load_state_dict(plain.state_dict())
    inputs, samples = torch.randn(2, 3, 64, 96), labelled([1, 2])
    _, truth = loss_and_gradients(plain, inputs, samples)
    grads = []
    for model in (plain, reversible):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = sum(model.loss(inputs, samples).values())
        assert loss.dtype == torch.float32
        loss.backward()  # outside of autocast, as MMEngine does
        grads.append({name: param.grad for name, param in model.named_parameters()})
    expected, actual = grads
    assert worst_errors(actual, truth)[0][0] <= 1.5 * worst_errors(expected, truth)[0][0]
    (error, name), *_ = worst_errors(actual, expected)
    assert error <= 2e-2, (name, error)


@pytest.mark.parametrize('num_classes', [10, 1001])
def test_with_save_memory_supervision_stores_no_column(num_classes):
    """Extra memory at the peak is below one column's features, and no more for twice the columns."""
    widths = dict(channels=(32, 48, 64, 96), layers=(1, 1, 1, 1))
    inputs, samples = torch.randn(2, 3, 128, 128), labelled([1, 2])

    def peak(num_columns, supervision):
        model = classifier(num_columns, num_classes, True, widths, supervision=supervision)
        loss_and_gradients(model, inputs, samples)  # what is allocated once
        return peak_bytes(lambda: sum(model.loss(inputs, samples).values()).backward())

    def extra(num_columns):
        return peak(num_columns, SUPERVISION) - peak(num_columns, None)

    column = 2 * 4 * sum(width * (32 // 2**level) ** 2 for level, width in enumerate(widths['channels']))
    assert extra(8) < column
    assert extra(16) < extra(8) + column / 8


@pytest.mark.parametrize('num_classes', [10, 1001])
def test_every_parameter_gets_a_gradient_in_every_mode_of_training(num_classes):
    inputs, samples = torch.randn(2, 3, 64, 64), labelled([1, 2])
    for kwargs in (dict(), dict(supervision=None)):
        model = classifier(num_classes=num_classes, save_memory=True, **kwargs)
        _, gradients = loss_and_gradients(model, inputs, samples)
        for name, gradient in gradients.items():
            assert gradient is not None and gradient.isfinite().all(), name


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('supervision', [None, SUPERVISION])
def test_a_mixed_label_costs_what_its_parts_cost(label_smoothing, supervision):
    model = classifier(label_smoothing=label_smoothing, supervision=supervision)
    inputs = torch.randn(2, 3, 64, 64)
    first, second = (model.loss(inputs, labelled(labels)) for labels in ([1, 2], [3, 2]))
    score = torch.zeros(2, 10)
    score[0, 1], score[0, 3], score[1, 2] = 0.7, 0.3, 1.0
    mixed = model.loss(inputs, [DataSample().set_gt_score(row) for row in score])
    for name, value in mixed.items():
        assert_near(value, 0.7 * first[name] + 0.3 * second[name], rtol=1e-5)


def test_label_smoothing_is_over_all_classes():
    model = classifier(label_smoothing=0.1, supervision=None)
    inputs = torch.randn(2, 3, 64, 64)
    log_likelihood = model(inputs).log_softmax(1)
    expected = -0.9 * log_likelihood[[0, 1], [4, 2]].mean() - 0.1 * log_likelihood.mean()
    assert_near(model.loss(inputs, labelled([4, 2]))['loss_cls'], expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ['Mixup', 'CutMix'])
def test_mixup_and_cutmix_of_mmpretrain_s_data_preprocessor_train(kind):
    init_default_scope('mmpretrain')
    preprocessing = dict(STATISTICS, batch_augments=dict(augments=dict(type=kind, alpha=1.0)))
    model = classifier(save_memory=True, data_preprocessor=preprocessing)
    data = dict(
        inputs=list(torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)), data_samples=labelled(range(4))
    )
    batch = model.data_preprocessor(data, training=True)
    assert all(sample.gt_score.shape == (10,) for sample in batch['data_samples'])
    losses = model(**batch, mode='loss')
    assert len(losses) == 7 and all(loss.isfinite() for loss in losses.values())
    model.parse_losses(losses)[0].backward()


@pytest.mark.parametrize('channel', range(3))
def test_the_target_of_reconstruction_is_the_image_in_the_network_s_channel_order(channel):
    """A decoder that says one logit in a channel, and 0 in the others, tells the mean of the target there."""
    model = classifier(data_preprocessor=dict(STATISTICS, to_rgb=True))
    (project, _), logit = model.decoder_blocks[0].projback, 2.0
    nn.init.zeros_(project.weight)
    nn.init.zeros_(project.bias)
    nn.init.constant_(project.bias[16 * channel : 16 * (channel + 1)], logit)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)  # BGR, as files are read
    images[:, 0] //= 2
    images[:, 1] //= 3
    batch = model.data_preprocessor(dict(inputs=list(images), data_samples=labelled([1, 2])))
    loss = model.loss(**batch)['loss_rec_0'].item() / SUPERVISION['reconstruction_weight']
    target = (images[:, 2 - channel] / 255).clamp(0.01, 0.99).mean()
    cross_entropies = torch.tensor(logit).exp().log1p() - logit * target + 2 * torch.tensor(2.0).log()
    assert loss == pytest.approx(cross_entropies.item() / 3, rel=1e-5)


def test_predictions_are_the_last_column_s():
    model = classifier().eval()
    inputs = torch.randn(3, 3, 70, 98)  # predicting takes any size
    features = model.supervised_features(inputs)
    expected = model.cls_blocks[3](features[-1]).softmax(1)
    samples = labelled([1, 2, 3])
    predicted = model(inputs, samples, mode='predict')
    assert all(a is b for a, b in zip(predicted, samples, strict=True))
    for sample, fresh, score in zip(predicted, model(inputs, mode='predict'), expected, strict=True):
        assert_near(sample.pred_score, score, rtol=1e-5)
        assert sample.pred_label.tolist() == [score.argmax()] == fresh.pred_label.tolist()
        assert 'gt_label' in sample and 'gt_label' not in fresh


def test_the_classified_level_is_the_last_of_out_indices():
    backbone = RevCol(dict(WIDTHS, num_columns=4), out_indices=(0, 2))
    model = RevColClassifier(backbone, 10, SUPERVISION, data_preprocessor=STATISTICS)
    inputs = torch.randn(2, 3, 64, 80)  # multiples of 16
    assert model.supervised_features(inputs)[-1].shape == (2, 24, 4, 5)
    assert model(inputs).shape == (2, 10)
    assert len(model.loss(inputs, labelled([1, 2]))) == 7


def test_fine_tuning_takes_the_backbone_of_a_supervised_checkpoint_and_scales_its_new_head(tmp_path):
    pretrained = classifier()
    weights = {name.removeprefix('backbone.'): x for name, x in pretrained.state_dict().items()}
    torch.save({'model': weights}, tmp_path / 'published.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'))
    backbone = RevCol(dict(WIDTHS, num_columns=4), init_cfg=init_cfg)
    model = RevColClassifier(backbone, 7, head_init_scale=0.001)
    model.init_weights()
    for name, weight in pretrained.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], weight), name
    norm, linear = model.cls.classifier
    assert (norm.weight == 1).all()
    assert linear.weight.shape == (7, 32) and linear.weight.std().item() == pytest.approx(0.02e-3, rel=0.2)
    assert list(model.loss(torch.randn(2, 3, 70, 98), labelled([1, 2]))) == ['loss_cls']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_columns=6), 'multiple of 4 columns.*6'),
        (dict(num_classes=0), 'num_classes.*0'),
        (dict(label_smoothing=1.0), 'label_smoothing.*1.0'),
        (dict(supervision=dict(reconstruction_weight=3.0)), 'classification_weight'),
        (dict(supervision=dict(SUPERVISION, weight=1.0)), "'weight'"),
        (dict(data_preprocessor=None), 'mean and std.*BaseDataPreprocessor'),
        (dict(data_preprocessor=dict()), 'mean and std.*ClsDataPreprocessor'),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(**arguments)


def test_a_bad_backbone_mode_or_image_is_an_error_that_names_it():
    with pytest.raises(ValueError, match='RevCol.*Identity'):
        RevColClassifier(nn.Identity(), 10)
    model, inputs = classifier(), torch.randn(1, 3, 64, 80)
    with pytest.raises(ValueError, match='losses'):
        model(inputs, mode='losses')


# RevCol's released configs. Of clip_grad, those that name none have the default of its `config.py`.
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


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_a_config_holds_the_published_numbers(row):
    recipe = dict(zip(COLUMNS[1:], map(float, row[1:])))
    cfg = Config.fromfile(REPO / 'configs' / f'{row[0]}.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))
    finetuning = row[0].endswith('finetune')
    assert isinstance(model, RevColClassifier) and model.backbone.save_memory
    assert len(model.heads) == (1 if finetuning else 4)
    assert model.num_classes == recipe['classes'] and model.label_smoothing == 0.1
    assert cfg.model.supervision == (None if finetuning else SUPERVISION)
    assert cfg.model.get('head_init_scale', 1.0) == (0.001 if finetuning else 1.0)
    assert ('init_cfg' in cfg.model.backbone) == finetuning
    augments = model.data_preprocessor.batch_augments
    assert [a.alpha for a in augments.augments] == [0.8, 1.0] if not finetuning else augments is None
    assert cfg.model.backbone.drop_path_rate == recipe['drop']

    optimizer, (*warmup, cosine) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', recipe['lr'], recipe['wd'])
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == recipe['decay']
    assert cfg.optim_wrapper.get('clip_grad', dict(max_norm=0))['max_norm'] == recipe['clip']
    assert [s.end for s in warmup] == [recipe['warmup']] * bool(recipe['warmup'])
    assert [s.start_factor * optimizer.lr for s in warmup] == pytest.approx([1e-5] * len(warmup))
    assert cosine.eta_min_ratio * optimizer.lr == pytest.approx(recipe['min_lr'])
    assert cosine.begin == recipe['warmup'] and cosine.end == cfg.train_cfg.max_epochs == recipe['epochs']
    assert cosine.T_max == cosine.end - cosine.begin
    assert [hook.momentum for hook in cfg.custom_hooks] == [1e-4] * int(recipe['ema'])

    train, test = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline
    assert [t.type for t in train[1:-1]] == [
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
    ]
    assert train[1].scale == recipe['size']
    if recipe['size'] == 224:
        assert (test[1].scale, test[2].crop_size) == (256, 224)
    else:
        assert test[1].scale == (recipe['size'],) * 2 and len(test) == 3
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
def test_a_config_trains_on_other_data_with_ema_and_the_result_is_tested(sample_data, tmp_path):
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
