"""Images with other than 3 channels: the backbone, its weights, models of every task, and checks."""

import random
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmpretrain.structures import DataSample
from mmseg.models import SegDataPreProcessor
from PIL import Image
from torch import nn

from revcol_mm import RevCol, RevColClassifier
from revcol_mm.analysis.complexity import count_complexity
from revcol_mm.analysis.swap_in import swap_in
from revcol_mm.analysis.synthetic_batch import synthetic_batch
from revcol_mm.apis import init_model
from revcol_mm.checkpoints.fitting import adapt_stem, load_backbone
from revcol_mm.errors import CheckpointError, PreflightError
from revcol_mm.models.image_channels import image_channels
from revcol_mm.preflight import check_normalisation
from revcol_mm.preflight.channels import check_images

from .checkpoints import SMALL, Segmentor, load_from, randomize, save_mmcv1
from .subprocesses import REPO

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
SUPERVISED = 'configs/upernet_revcol_nano_supervised_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
DETECTOR = 'configs/dino_revcol_nano_sample.py'
# MMDetection, and MMSegmentation of the onedl forks, use MMEngine's data preprocessor, with 1 or 3 means.
ONE_MEAN = {DETECTOR}
if issubclass(SegDataPreProcessor, ImgDataPreprocessor):
    ONE_MEAN |= {SEGMENTOR, SUPERVISED}


@pytest.mark.parametrize('in_channels', [1, 4, 12])
def test_revcol_takes_only_images_with_its_channels(in_channels):
    model = RevCol(SMALL, in_channels=in_channels)
    features = model(torch.rand(1, in_channels, 64, 64))
    assert [feature.shape[1] for feature in features] == list(SMALL['channels'])
    with pytest.raises(ValueError, match=rf'takes images \(B, {in_channels}, H, W\).*got \(1, 3, 64, 64\)'):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize('in_channels', [0, -1, 2.0, '3', None])
def test_invalid_in_channels_is_an_error(in_channels):
    with pytest.raises(ValueError, match='in_channels must be a positive integer'):
        RevCol(SMALL, in_channels=in_channels)


def test_adapted_stem_gives_the_same_features_of_a_grey_image():
    conv, grey = nn.Conv2d(3, 8, 4, stride=4), torch.rand(1, 1, 16, 16)
    seen = nn.functional.conv2d(grey, adapt_stem(conv.weight, 1), conv.bias, stride=4)
    torch.testing.assert_close(seen, conv(grey.expand(-1, 3, -1, -1)))
    assert adapt_stem(conv.weight.half(), 1).dtype == torch.float16


@pytest.mark.parametrize('in_channels', [2, 4, 5, 12])
def test_adapted_stem_repeats_the_rgb_weights(in_channels):
    weight = torch.rand(8, 3, 4, 4)
    adapted = adapt_stem(weight, in_channels)
    assert adapted.shape == (8, in_channels, 4, 4)
    assert adapt_stem(weight.half(), in_channels).dtype == torch.float16
    for channel in range(in_channels):
        torch.testing.assert_close(adapted[:, channel], weight[:, channel % 3] * 3 / in_channels)


@pytest.mark.parametrize('in_channels', [1, 6])
def test_adapting_a_published_stem_is_logged(in_channels, tmp_path, log_messages):
    source = randomize(RevCol(SMALL))
    torch.save({'model': source.state_dict()}, tmp_path / 'published.pth')
    model = RevCol(
        SMALL,
        in_channels=in_channels,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth')),
    )
    model.init_weights()
    assert torch.equal(model.stem[0].weight, adapt_stem(source.stem[0].weight, in_channels))
    assert torch.equal(model.subnet1.alpha2, source.subnet1.alpha2)
    assert f"to the channels of the images: ['stem.0.weight from 3 to {in_channels}']" in log_messages[-1]
    load_backbone(source, tmp_path / 'published.pth')
    assert 'channels of the images' not in log_messages[-1]


@pytest.mark.parametrize('own, other', [(12, 3), (4, 1), (1, 4), (1, 3)])
def test_stems_of_other_channels_are_not_adapted(own, other, tmp_path):
    torch.save({'model': RevCol(SMALL, in_channels=own).state_dict()}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError) as error:
        load_backbone(RevCol(SMALL, in_channels=other), tmp_path / 'a.pth')
    assert f'stem.0.weight (8, {own}, 4, 4), not (8, {other}, 4, 4)' in str(error.value)
    assert re.search(rf'checkpoint has 2 columns.*, in_channels {own}\n', str(error.value))


def test_load_from_adapts_a_stem_only_for_training(tmp_path):
    trained, model = randomize(Segmentor()), Segmentor()
    model.backbone = RevCol(SMALL, in_channels=4)
    path = save_mmcv1(tmp_path / 'mmcv1.pth', trained)
    logged = load_from(path, model, tmp_path / 'a')
    assert 'backbone.stem.0.weight from 3 to 4' in logged
    assert torch.equal(model.backbone.stem[0].weight, adapt_stem(trained.backbone.stem[0].weight, 4))
    with pytest.raises(CheckpointError, match=r'backbone\.stem\.0\.weight \(8, 3, 4, 4\), not \(8, 4'):
        load_from(path, model, tmp_path / 'b', strict=True)


def read_config(path, in_channels):
    """Read a config of this project and change the number of image channels."""
    cfg = Config.fromfile(REPO / path)
    cfg.model.backbone.in_channels = in_channels
    preprocessor = cfg.model.data_preprocessor
    values = 1 if path in ONE_MEAN else in_channels
    preprocessor.update(mean=[100.0] * values, std=[50.0] * values)
    if path in ONE_MEAN and in_channels != 3:
        preprocessor.bgr_to_rgb = False
    return cfg


def test_init_model_does_not_adapt_a_stem(tmp_path):
    model = init_model(REPO / SEGMENTOR, device='cpu')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'backbone\.stem\.0\.weight'):
        init_model(read_config(SEGMENTOR, 4), tmp_path / 'a.pth', 'cpu')


@pytest.mark.parametrize('in_channels', [1, 6])
@pytest.mark.parametrize('path', [SUPERVISED, DETECTOR, CLASSIFIER])
def test_models_of_every_task_train_and_predict(path, in_channels):
    cfg = read_config(path, in_channels)
    cfg.model.backbone.arch = dict(channels=(8, 16, 24, 32), layers=(1,) * 4, num_columns=4)
    if path == SUPERVISED:
        cfg.model.decode_head.in_channels = [8, 16, 24, 32]
        cfg.model.auxiliary_head.in_channels = cfg.model.supervision.head.in_channels = 24
    elif path == DETECTOR:
        cfg.model.neck.in_channels = [16, 24, 32]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = init_model(cfg, device='cpu')
        assert image_channels(model) == in_channels
        batch = synthetic_batch(model, cfg.default_scope, 2, 64, 64)
        assert {image.shape for image in batch['inputs']} == {(in_channels, 64, 64)}
        data = model.train().data_preprocessor(batch, training=True)
        losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
        assert loss.isfinite() and model.backbone.stem[0].weight.grad.abs().sum() > 0
        assert any('rec' in name for name in losses) == (path != DETECTOR)
        with torch.no_grad():
            batch = synthetic_batch(model, cfg.default_scope, 1, 64, 64)
            assert len(model.eval().test_step(batch)) == 1


def test_single_layer_decoders_reconstruct_images_with_other_channels():
    preprocessor = MODELS.build(dict(type='ImgDataPreprocessor', mean=[100.0], std=[50.0]))
    weights = dict(reconstruction_weight=1.0, classification_weight=1.0)
    model = RevColClassifier(
        RevCol(dict(SMALL, num_columns=4), in_channels=2), 1001, weights, data_preprocessor=preprocessor
    )
    losses = model.loss(torch.rand(1, 2, 64, 64), [DataSample().set_gt_label(3)])
    assert losses['loss_rec_0'].isfinite()


def test_channels_change_only_the_complexity_of_the_stem():
    three, five = (count_complexity(read_config(SEGMENTOR, channels), (64, 64)) for channels in (3, 5))
    assert five.flops['backbone'] - three.flops['backbone'] == 2 * 4 * 4 * 32 * 16 * 16
    assert five.parameters['backbone'] - three.parameters['backbone'] == 2 * 4 * 4 * 32


def test_swap_in_keeps_the_channels_and_their_normalisation():
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', mean=[1.0] * 4, std=[2.0] * 4),
                backbone=dict(type='ResNetV1c', depth=18, in_channels=4),
                decode_head=dict(type='FCNHead', in_channels=512, in_index=3, channels=8, num_classes=2),
            ),
        )
    )
    swapped = swap_in(cfg, dict(type='RevCol', arch='nano'))
    assert swapped.model.backbone.in_channels == 4 and swapped.model.decode_head.in_channels == 256
    assert swapped.model.data_preprocessor.mean == [1.0] * 4
    cfg.model.backbone.in_channels = 3
    assert 'in_channels' not in swap_in(cfg, dict(type='RevCol', arch='nano')).model.backbone


class Model(nn.Module):
    def __init__(self, in_channels, preprocessor=None):
        super().__init__()
        self.backbone = RevCol(SMALL, in_channels=in_channels)
        self.data_preprocessor = preprocessor


@pytest.mark.parametrize('number, fits', [(1, True), (4, True), (3, False), (5, False)])
def test_number_of_means_is_checked(number, fits):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocessor = MODELS.build(
            dict(type='ClsDataPreprocessor', mean=[1.0] * number, std=[1.0] * number, to_rgb=False)
        )
    if fits:
        check_normalisation(Model(4, preprocessor))
        return
    with pytest.raises(PreflightError, match=rf'mean has {number} values.*in_channels=4'):
        check_normalisation(Model(4, preprocessor))


def test_bgr_to_rgb_of_more_than_3_channels_is_an_error():
    preprocessor = ImgDataPreprocessor(mean=[1.0], std=[1.0], bgr_to_rgb=True)
    with pytest.raises(PreflightError, match='in_channels=6: set data_preprocessor.bgr_to_rgb=False'):
        check_normalisation(Model(6, preprocessor))
    check_normalisation(Model(3, preprocessor))


def test_reconstruction_of_images_with_values_above_255_is_an_error():
    cfg = read_config(SUPERVISED, 6)
    cfg.model.data_preprocessor.mean = [1000.0]
    with pytest.raises(PreflightError, match='mean is up to 1000, but supervision reconstructs'):
        init_model(cfg, device='cpu')


def tiff(path, image, **options):
    tifffile = pytest.importorskip('tifffile')
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric='minisblack', **options)


def dataset(tmp_path, *transforms, suffix='.tif', **load):
    load = dict(type='LoadImageFromFile', **load)
    pipeline = [load, *transforms, dict(type='PackSegInputs', meta_keys=())]
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(
            dict(
                type='BaseSegDataset',
                data_root=str(tmp_path),
                data_prefix=dict(img_path='', seg_map_path=''),
                img_suffix=suffix,
                pipeline=pipeline,
            )
        )


def test_channels_of_the_first_image_are_checked(tmp_path):
    tiff(tmp_path / 'a.tif', np.zeros((64, 48, 6), np.uint16))
    data = dataset(tmp_path, imdecode_backend='tifffile', to_float32=True)
    check_images(data, Model(6))
    with pytest.raises(PreflightError) as error:
        check_images(data, Model(4))
    assert 'images have 6 channels, but the backbone has in_channels=4' in str(error.value)
    assert 'a.tif, read by LoadImageFromFile as 64 x 48 x 6' in str(error.value)


@pytest.mark.parametrize('resize', [(), (dict(type='Resize', scale=(32, 32)),)])
def test_band_first_image_is_an_error(resize, tmp_path):
    tiff(tmp_path / 'a.tif', np.zeros((6, 64, 48), np.uint16), planarconfig='separate')
    data = dataset(tmp_path, *resize, imdecode_backend='tifffile')
    with pytest.raises(PreflightError, match='6 x 64 x 48.*bands in the last dimension, not the first'):
        check_images(data, Model(6))


@pytest.mark.parametrize(
    'color_type, in_channels', [('grayscale', 1), ('color', 3), ('unchanged', 4)], ids=str
)
def test_color_type_of_the_loader_is_respected(color_type, in_channels, tmp_path):
    Image.new('RGBA', (64, 48)).save(tmp_path / 'a.png')
    data = dataset(tmp_path, suffix='.png', color_type=color_type)
    check_images(data, Model(in_channels))
    with pytest.raises(PreflightError, match=f'images have {in_channels} channels.*in_channels=2'):
        check_images(data, Model(2))


@pytest.mark.parametrize('nested', [False, True])
def test_colour_augmentation_of_grey_images_is_an_error(nested, tmp_path):
    Image.new('L', (64, 48)).save(tmp_path / 'a.png')
    distort = dict(type='PhotoMetricDistortion')
    if nested:
        distort = dict(type='RandomApply', transforms=[distort], prob=0.1)
    data = dataset(tmp_path, distort, suffix='.png', color_type='grayscale')
    with pytest.raises(PreflightError, match='PhotoMetricDistortion needs images of 3 channels'):
        check_images(data, Model(1))
    check_images(dataset(tmp_path, distort, suffix='.png'), Model(3))


def test_broken_first_image_is_not_an_error(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'nothing')
    check_images(dataset(tmp_path, suffix='.png'), Model(6))


def test_checking_images_draws_no_random_numbers(tmp_path):
    Image.new('RGB', (64, 48)).save(tmp_path / 'a.png')
    data, model = dataset(tmp_path, dict(type='RandomFlip', prob=0.5), suffix='.png'), Model(3)
    draws = []
    for look in (False, True):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if look:
            check_images(data, model)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
