"""RevColClassifier: equality with the published model, its losses, predictions and errors."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import nn

from revcol_mm import RevCol, RevColClassifier
from revcol_mm.models import ReversibleColumns
from revcol_mm.testing import peak_bytes, worst_errors

from .checkpoints import assert_same_weights
from .conftest import DATA
from .test_revcol import assert_near
from .test_reversible_columns import TwoStages

WIDTHS = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1))
SUPERVISION = dict(reconstruction_weight=3.0, classification_weight=0.7)
STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def classifier(num_columns=4, num_classes=10, save_memory=False, widths=WIDTHS, **kwargs):
    """Build a small model with layer scales of 0.3, so that every branch matters."""
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


def with_prefix(published):
    """Add 'backbone.' to the backbone's names in a published classification checkpoint."""
    heads = ('cls.', 'cls_blocks.', 'decoder_blocks.')
    return {name if name.startswith(heads) else f'backbone.{name}': x for name, x in published.items()}


@pytest.fixture
def golden(device):
    """Weights, logits, reconstructions, loss and gradient norms of the published code in float64."""
    return torch.load(DATA / 'supervised_10cls.pt', device, weights_only=True)


@pytest.mark.parametrize('save_memory', [False, True])
def test_outputs_losses_and_gradients_equal_the_published_model(golden, save_memory):
    config = golden['config']
    model = classifier(
        num_columns=config['num_columns'],
        num_classes=config['num_classes'],
        save_memory=save_memory,
        widths={key: config[key] for key in WIDTHS},
        supervision={key: config[key] for key in SUPERVISION},
    ).to(golden['input'].device)
    model.load_state_dict(with_prefix(golden['state_dict']), strict=True)

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
    expected = with_prefix(golden['param_grad_norms'])
    assert gradients.keys() == expected.keys()
    for name, norm in expected.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize('arch', ['tiny', 'base', 'huge'])
def test_keys_and_shapes_are_the_published_ones(arch, published_keys):
    with torch.device('meta'):
        model = RevColClassifier(RevCol(arch), 1000, SUPERVISION, data_preprocessor=STATISTICS)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == with_prefix(published_keys[arch])


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
def test_unsupervised_model_has_one_head_and_the_published_size(arch, millions):
    with torch.device('meta'):
        model = RevColClassifier(RevCol(arch), 1000)
    heads = [name for name in model.state_dict() if not name.startswith('backbone.')]
    assert heads == [f'cls.classifier.{i}.{kind}' for i in (0, 1) for kind in ('weight', 'bias')]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_decoders_of_more_than_1000_classes_predict_patches_with_one_layer():
    decoder = classifier(num_classes=1001).decoder_blocks[2]
    assert {k: tuple(v.shape) for k, v in decoder.state_dict().items()} == {
        'projback.0.weight': (32,),
        'projback.0.bias': (32,),
        'projback.1.weight': (3 * 32 * 32, 32, 1, 1),
        'projback.1.bias': (3 * 32 * 32,),
    }
    feature = torch.zeros(1, 32, 2, 3)
    flat = decoder(feature)[0]
    feature[0, :16, 1, 2] = 1.0  # changes only the last patch
    (image,) = decoder(feature)
    changed = (image != flat).any(0)
    assert image.shape == (3, 64, 96) and changed[32:, 64:].all()
    assert not changed[:32].any() and not changed[:, :64].any()


@pytest.mark.parametrize('num_columns', [4, 8, 16])
@pytest.mark.parametrize(
    'num_classes, supervision', [(10, SUPERVISION), (1001, SUPERVISION), (10, None)], ids=str
)
def test_reversible_losses_and_gradients_equal_plain_ones(num_columns, num_classes, supervision):
    plain = classifier(num_columns, num_classes, supervision=supervision)
    reversible = classifier(num_columns, num_classes, save_memory=True, supervision=supervision)
    reversible.load_state_dict(plain.state_dict())
    inputs, samples = torch.randn(2, 3, 64, 96), labelled([1, 2])
    expected_losses, expected = loss_and_gradients(plain, inputs, samples)
    losses, gradients = loss_and_gradients(reversible, inputs, samples)
    assert worst_errors(losses, expected_losses)[0][0] <= 2e-5
    assert worst_errors(gradients, expected)[0][0] <= 2e-5
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_reversible_gradients_under_autocast_equal_plain_ones():
    plain, reversible = classifier(8), classifier(8, save_memory=True)
    reversible.load_state_dict(plain.state_dict())
    inputs, samples = torch.randn(2, 3, 64, 96), labelled([1, 2])
    _, truth = loss_and_gradients(plain, inputs, samples)
    results = []
    for model in (plain, reversible):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = sum(model.loss(inputs, samples).values())
        assert loss.dtype == torch.float32
        loss.backward()  # outside of autocast, as in MMEngine
        results.append({name: param.grad for name, param in model.named_parameters()})
    expected, actual = results
    assert worst_errors(actual, truth)[0][0] <= 1.5 * worst_errors(expected, truth)[0][0]
    (error, name), *_ = worst_errors(actual, expected)
    assert error <= 2e-2, (name, error)


@pytest.mark.parametrize('num_classes', [10, 1001])
def test_supervision_with_save_memory_stores_no_column(num_classes):
    """The additional peak memory is below one column's features and does not grow with the columns."""
    widths = dict(channels=(32, 48, 64, 96), layers=(1, 1, 1, 1))
    inputs, samples = torch.randn(2, 3, 128, 128), labelled([1, 2])

    def peak(num_columns, supervision):
        model = classifier(num_columns, num_classes, True, widths, supervision=supervision)
        loss_and_gradients(model, inputs, samples)  # allocates gradients
        return peak_bytes(lambda: sum(model.loss(inputs, samples).values()).backward())

    def extra(num_columns):
        return peak(num_columns, SUPERVISION) - peak(num_columns, None)

    column = 2 * 4 * sum(width * (32 // 2**level) ** 2 for level, width in enumerate(widths['channels']))
    assert extra(8) < column
    assert extra(16) < extra(8) + column / 8


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('supervision', [None, SUPERVISION])
def test_loss_of_mixed_labels_is_the_mixture_of_losses(label_smoothing, supervision):
    model = classifier(label_smoothing=label_smoothing, supervision=supervision)
    inputs = torch.randn(2, 3, 64, 64)
    first, second = (model.loss(inputs, labelled(labels)) for labels in ([1, 2], [3, 2]))
    score = torch.zeros(2, 10)
    score[0, 1], score[0, 3], score[1, 2] = 0.7, 0.3, 1.0
    mixed = model.loss(inputs, [DataSample().set_gt_score(row) for row in score])
    for name, value in mixed.items():
        assert_near(value, 0.7 * first[name] + 0.3 * second[name], rtol=1e-5)


def test_label_smoothing_covers_all_classes():
    model = classifier(label_smoothing=0.1, supervision=None)
    inputs = torch.randn(2, 3, 64, 64)
    log_likelihood = model(inputs).log_softmax(1)
    expected = -0.9 * log_likelihood[[0, 1], [4, 2]].mean() - 0.1 * log_likelihood.mean()
    assert_near(model.loss(inputs, labelled([4, 2]))['loss_cls'], expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ['Mixup', 'CutMix'])
def test_batch_augmentations_of_mmpretrain_train(kind):
    init_default_scope('mmpretrain')
    preprocessing = dict(STATISTICS, batch_augments=dict(augments=dict(type=kind, alpha=1.0)))
    model = classifier(save_memory=True, data_preprocessor=preprocessing)
    images = list(torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8))
    batch = model.data_preprocessor(dict(inputs=images, data_samples=labelled(range(4))), training=True)
    assert all(sample.gt_score.shape == (10,) for sample in batch['data_samples'])
    losses = model(**batch, mode='loss')
    assert len(losses) == 7 and all(loss.isfinite() for loss in losses.values())
    model.parse_losses(losses)[0].backward()


@pytest.mark.parametrize('channel', range(3))
def test_reconstruction_target_is_the_image_in_the_network_s_channel_order(channel):
    """With a constant logit in one channel and 0 elsewhere, the loss depends on that channel's mean only."""
    model = classifier(data_preprocessor=dict(STATISTICS, to_rgb=True))
    (project, _), logit = model.decoder_blocks[0].projback, 2.0
    nn.init.zeros_(project.weight)
    nn.init.zeros_(project.bias)
    nn.init.constant_(project.bias[16 * channel : 16 * (channel + 1)], logit)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)  # BGR, as read from files
    images[:, 0] //= 2
    images[:, 1] //= 3
    batch = model.data_preprocessor(dict(inputs=list(images), data_samples=labelled([1, 2])))
    loss = model.loss(**batch)['loss_rec_0'].item() / SUPERVISION['reconstruction_weight']
    target = (images[:, 2 - channel] / 255).clamp(0.01, 0.99).mean()
    cross_entropies = torch.tensor(logit).exp().log1p() - logit * target + 2 * torch.tensor(2.0).log()
    assert loss == pytest.approx(cross_entropies.item() / 3, rel=1e-5)


def test_predictions_come_from_the_last_column():
    model = classifier().eval()
    inputs = torch.randn(3, 3, 70, 98)  # not multiples of 32
    features = model.supervised_features(inputs)
    expected = model.cls_blocks[3](features[-1]).softmax(1)
    samples = labelled([1, 2, 3])
    predicted = model(inputs, samples, mode='predict')
    assert all(a is b for a, b in zip(predicted, samples, strict=True))
    for sample, fresh, score in zip(predicted, model(inputs, mode='predict'), expected, strict=True):
        assert_near(sample.pred_score, score, rtol=1e-5)
        assert sample.pred_label.tolist() == [score.argmax()] == fresh.pred_label.tolist()
        assert 'gt_label' in sample and 'gt_label' not in fresh


def test_classified_level_is_the_last_of_out_indices():
    backbone = RevCol(dict(WIDTHS, num_columns=4), out_indices=(0, 2))
    model = RevColClassifier(backbone, 10, SUPERVISION, data_preprocessor=STATISTICS)
    inputs = torch.randn(2, 3, 64, 80)
    assert model.supervised_features(inputs)[-1].shape == (2, 24, 4, 5)
    assert model(inputs).shape == (2, 10)
    assert len(model.loss(inputs, labelled([1, 2]))) == 7


def network():
    """Return two stages of strides 8 and 16, and a norm."""
    norm = nn.GroupNorm(1, 16)
    nn.init.uniform_(norm.weight)
    return TwoStages(nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 16, 2, 2), norm)


@pytest.mark.parametrize('save_memory', [False, True])
def test_training_reads_the_features_that_prediction_reads(save_memory):
    backbone = ReversibleColumns(network(), 4, save_memory=save_memory, out_indices=(1,))
    model = RevColClassifier(backbone, 10, SUPERVISION, data_preprocessor=STATISTICS)
    inputs = torch.rand(2, 3, 64, 96)
    losses, gradients = loss_and_gradients(model.train(), inputs, labelled([1, 2]))
    expected = nn.functional.cross_entropy(model.eval()(inputs), torch.tensor([1, 2]))
    assert_near(losses['loss_cls'], expected, rtol=1e-5)
    assert all(gradient is not None for gradient in gradients.values())


def test_decoder_that_cannot_fit_is_an_error():
    backbone = ReversibleColumns(network(), 4)
    backbone.strides, backbone.out_strides = (6, 16), (6, 16)
    with pytest.raises(ValueError, match=r'multiples of the one before, got \(6, 16\)'):
        RevColClassifier(backbone, 10, SUPERVISION, data_preprocessor=STATISTICS)


def test_fine_tuning_loads_a_supervised_backbone_and_scales_the_new_head(tmp_path):
    pretrained = classifier()
    weights = {name.removeprefix('backbone.'): x for name, x in pretrained.state_dict().items()}
    torch.save({'model': weights}, tmp_path / 'published.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'))
    backbone = RevCol(dict(WIDTHS, num_columns=4), init_cfg=init_cfg)
    model = RevColClassifier(backbone, 7, head_init_scale=0.001)
    model.init_weights()
    assert_same_weights(model.backbone.state_dict(), pretrained.backbone.state_dict())
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
def test_invalid_argument_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(**arguments)


def test_invalid_backbone_or_mode_is_an_error():
    with pytest.raises(ValueError, match='RevCol.*Identity'):
        RevColClassifier(nn.Identity(), 10)
    with pytest.raises(ValueError, match='losses'):
        classifier()(torch.randn(1, 3, 64, 80), mode='losses')
