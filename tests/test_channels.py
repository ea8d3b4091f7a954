"""Images with other than 3 channels: the backbone, its weights, what is checked, read, drawn and exported."""

import random
import re
import runpy
import shutil
from types import SimpleNamespace

import cv2
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
from revcol_mm.apis import init_inferencer, init_model
from revcol_mm.apis.image_header import ImageError
from revcol_mm.checkpoints.fitting import adapt_stem, load_backbone
from revcol_mm.errors import CheckpointError, PreflightError
from revcol_mm.models.image_channels import image_channels
from revcol_mm.preflight import check_normalisation
from revcol_mm.preflight.channels import check_images
from revcol_mm.visualization.prediction_pictures import rgb_picture

from .subprocesses import REPO, run
from .test_checkpoint import SMALL, Segmentor, load_from, randomize, save_mmcv1
from .test_documentation import blocks, commands

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
SUPERVISED = 'configs/upernet_revcol_nano_supervised_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
DETECTOR = 'configs/dino_revcol_nano_sample.py'
PAGE = REPO / 'docs/tutorials/channels.md'
# MMDetection's preprocessor, and that of the onedl forks' segmentors, are MMEngine's, which has 1 or 3 means.
OF_ONE_MEAN = {DETECTOR}
if issubclass(SegDataPreProcessor, ImgDataPreprocessor):
    OF_ONE_MEAN |= {SEGMENTOR, SUPERVISED}
QUICK = """
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
train_dataloader.update(batch_size=2)
"""


# The backbone and its weights.


@pytest.mark.parametrize('in_channels', [1, 4, 12])
def test_revcol_takes_images_of_its_channels_and_no_others(in_channels):
    model = RevCol(SMALL, in_channels=in_channels)
    features = model(torch.rand(1, in_channels, 64, 64))
    assert [feature.shape[1] for feature in features] == list(SMALL['channels'])
    with pytest.raises(ValueError, match=rf'takes images \(B, {in_channels}, H, W\).*got \(1, 3, 64, 64\)'):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize('in_channels', [0, -1, 2.0, '3', None])
def test_another_number_of_channels_is_an_error(in_channels):
    with pytest.raises(ValueError, match='in_channels takes a whole number from 1 on'):
        RevCol(SMALL, in_channels=in_channels)


def test_a_stem_for_one_channel_sees_a_grey_image_as_one_for_rgb_does():
    conv, grey = nn.Conv2d(3, 8, 4, stride=4), torch.rand(1, 1, 16, 16)
    seen = nn.functional.conv2d(grey, adapt_stem(conv.weight, 1), conv.bias, stride=4)
    torch.testing.assert_close(seen, conv(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize('in_channels', [2, 4, 5, 12])
def test_a_stem_for_more_channels_repeats_red_green_and_blue(in_channels):
    weight = torch.rand(8, 3, 4, 4)
    adapted = adapt_stem(weight, in_channels)
    assert adapted.shape == (8, in_channels, 4, 4)
    for channel in range(in_channels):
        torch.testing.assert_close(adapted[:, channel], weight[:, channel % 3] * 3 / in_channels)


def test_half_precision_stays():
    assert adapt_stem(torch.rand(8, 3, 4, 4).half(), 1).dtype == torch.float16
    assert adapt_stem(torch.rand(8, 3, 4, 4).half(), 4).dtype == torch.float16


@pytest.mark.parametrize('in_channels', [1, 6])
def test_a_published_stem_is_adapted_and_the_log_says_so(in_channels, tmp_path, log_messages):
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
def test_other_stems_do_not_fit_and_are_named(own, other, tmp_path):
    torch.save({'model': RevCol(SMALL, in_channels=own).state_dict()}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError) as error:
        load_backbone(RevCol(SMALL, in_channels=other), tmp_path / 'a.pth')
    assert f'stem.0.weight (8, {own}, 4, 4), not (8, {other}, 4, 4)' in str(error.value)
    assert re.search(rf'checkpoint has 2 columns.*, in_channels {own}\n', str(error.value))


def test_load_from_adapts_a_stem_to_train_and_not_to_test(tmp_path):
    trained, model = randomize(Segmentor()), Segmentor()
    model.backbone = RevCol(SMALL, in_channels=4)
    path = save_mmcv1(tmp_path / 'mmcv1.pth', trained)
    logged = load_from(path, model, tmp_path / 'a')
    assert 'backbone.stem.0.weight from 3 to 4' in logged
    assert torch.equal(model.backbone.stem[0].weight, adapt_stem(trained.backbone.stem[0].weight, 4))
    with pytest.raises(CheckpointError, match=r'backbone\.stem\.0\.weight \(8, 3, 4, 4\), not \(8, 4'):
        load_from(path, model, tmp_path / 'b', strict=True)


def read_config(path, in_channels):
    """A config of this project for images of other channels."""
    cfg = Config.fromfile(REPO / path)
    cfg.model.backbone.in_channels = in_channels
    preprocessor = cfg.model.data_preprocessor
    values = 1 if path in OF_ONE_MEAN else in_channels
    preprocessor.update(mean=[100.0] * values, std=[50.0] * values)
    if path in OF_ONE_MEAN and in_channels != 3:
        preprocessor.bgr_to_rgb = False
    return cfg


def test_a_model_to_predict_with_is_not_adapted(tmp_path):
    model = init_model(REPO / SEGMENTOR, device='cpu')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'backbone\.stem\.0\.weight'):
        init_model(read_config(SEGMENTOR, 4), tmp_path / 'a.pth', 'cpu')


# Every family, and what makes its own images.


@pytest.mark.parametrize('in_channels', [1, 6])
@pytest.mark.parametrize('path', [SUPERVISED, DETECTOR, CLASSIFIER])
def test_models_of_every_kind_train_and_predict_on_made_up_images(path, in_channels):
    cfg = read_config(path, in_channels)
    cfg.model.backbone.arch = dict(channels=(8, 16, 24, 32), layers=(1,) * 4, num_columns=4)
    heads = {SUPERVISED: ('decode_head', 'auxiliary_head'), DETECTOR: ('neck',), CLASSIFIER: ()}
    narrow = {
        'decode_head': [8, 16, 24, 32],
        'auxiliary_head': 24,
        'neck': [16, 24, 32],
    }
    for part in heads[path]:
        cfg.model[part].in_channels = narrow[part]
    if path == SUPERVISED:
        cfg.model.supervision.head.in_channels = 24
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


def test_a_classifier_of_many_classes_rebuilds_images_of_other_channels():
    preprocessor = MODELS.build(dict(type='ImgDataPreprocessor', mean=[100.0], std=[50.0]))
    weights = dict(reconstruction_weight=1.0, classification_weight=1.0)
    model = RevColClassifier(
        RevCol(dict(SMALL, num_columns=4), in_channels=2), 1001, weights, data_preprocessor=preprocessor
    )
    losses = model.loss(torch.rand(1, 2, 64, 64), [DataSample().set_gt_label(3)])
    assert losses['loss_rec_0'].isfinite()


def test_channels_are_counted_as_the_stem_has_them():
    of_three, of_five = (count_complexity(read_config(SEGMENTOR, n), (64, 64)) for n in (3, 5))
    assert of_five.flops['backbone'] - of_three.flops['backbone'] == 2 * 4 * 4 * 32 * 16 * 16
    assert of_five.parameters['backbone'] - of_three.parameters['backbone'] == 2 * 4 * 4 * 32


@pytest.mark.parametrize('in_channels', [1, 6])
def test_an_exported_file_takes_images_of_the_model_s_channels_and_says_so(in_channels, tmp_path, call_tool):
    cfg = read_config(SEGMENTOR, in_channels)
    cfg.model.test_cfg = dict(mode='whole')
    cfg.dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=init_model(cfg, device='cpu').state_dict()), tmp_path / 'a.pth')
    arguments = ('--format', 'torchscript', '--shape', 64, 64, '--out', tmp_path / 'a.pt')
    _, error = call_tool('tools/export.py', tmp_path / 'config.py', tmp_path / 'a.pth', *arguments)
    assert not error
    extra = {'metadata.json': ''}
    labels, _ = torch.jit.load(tmp_path / 'a.pt', _extra_files=extra)(torch.rand(1, in_channels, 64, 64))
    assert labels.shape == (1, 64, 64)
    assert f'(B, {in_channels}, H, W)' in extra['metadata.json'].decode()
    assert '"channel_order": "as read"' in extra['metadata.json'].decode()


def test_swapping_revcol_in_keeps_the_channels_and_their_normalisation():
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


# What is checked before a run.


class Model(nn.Module):
    def __init__(self, in_channels, preprocessor=None):
        super().__init__()
        self.backbone = RevCol(SMALL, in_channels=in_channels)
        self.data_preprocessor = preprocessor


@pytest.mark.parametrize('number, fits', [(1, True), (4, True), (3, False), (5, False)])
def test_means_are_one_for_each_channel_or_one_for_all(number, fits):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocessor = MODELS.build(
            dict(type='ClsDataPreprocessor', mean=[1.0] * number, std=[1.0] * number, to_rgb=False)
        )
    if fits:
        check_normalisation(Model(4, preprocessor))
        return
    with pytest.raises(PreflightError, match=rf'mean has {number} values.*in_channels=4'):
        check_normalisation(Model(4, preprocessor))


def test_a_preprocessor_that_would_drop_channels_is_refused():
    preprocessor = ImgDataPreprocessor(mean=[1.0], std=[1.0], bgr_to_rgb=True)
    with pytest.raises(PreflightError, match='in_channels=6: set data_preprocessor.bgr_to_rgb=False'):
        check_normalisation(Model(6, preprocessor))
    check_normalisation(Model(3, preprocessor))


def test_images_to_be_rebuilt_have_values_up_to_255():
    cfg = read_config(SUPERVISED, 6)
    cfg.model.data_preprocessor.mean = [1000.0]
    with pytest.raises(PreflightError, match='mean is up to 1000, but supervision rebuilds'):
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


def test_the_first_image_has_the_model_s_channels(tmp_path):
    tiff(tmp_path / 'a.tif', np.zeros((64, 48, 6), np.uint16))
    data = dataset(tmp_path, imdecode_backend='tifffile', to_float32=True)
    check_images(data, Model(6))
    with pytest.raises(PreflightError) as error:
        check_images(data, Model(4))
    assert 'images have 6 channels, but the backbone has in_channels=4' in str(error.value)
    assert 'a.tif, read by LoadImageFromFile as 64 x 48 x 6' in str(error.value)


@pytest.mark.parametrize('resize', [(), (dict(type='Resize', scale=(32, 32)),)])
def test_bands_that_come_first_are_told_of(resize, tmp_path):
    tiff(tmp_path / 'a.tif', np.zeros((6, 64, 48), np.uint16), planarconfig='separate')
    data = dataset(tmp_path, *resize, imdecode_backend='tifffile')
    with pytest.raises(PreflightError, match='6 x 64 x 48.*store bands last, not first'):
        check_images(data, Model(6))


@pytest.mark.parametrize(
    'color_type, in_channels', [('grayscale', 1), ('color', 3), ('unchanged', 4)], ids=str
)
def test_png_files_are_read_as_the_loader_says(color_type, in_channels, tmp_path):
    Image.new('RGBA', (64, 48)).save(tmp_path / 'a.png')
    data = dataset(tmp_path, suffix='.png', color_type=color_type)
    check_images(data, Model(in_channels))
    with pytest.raises(PreflightError, match=f'images have {in_channels} channels.*in_channels=2'):
        check_images(data, Model(2))


@pytest.mark.parametrize('nested', [False, True])
def test_augmentation_of_colours_is_refused_for_images_that_have_none(nested, tmp_path):
    Image.new('L', (64, 48)).save(tmp_path / 'a.png')
    distort = dict(type='PhotoMetricDistortion')
    if nested:
        distort = dict(type='RandomApply', transforms=[distort], prob=0.1)
    data = dataset(tmp_path, distort, suffix='.png', color_type='grayscale')
    with pytest.raises(PreflightError, match='PhotoMetricDistortion is for images of 3 channels'):
        check_images(data, Model(1))
    check_images(dataset(tmp_path, distort, suffix='.png'), Model(3))


def test_a_broken_first_image_is_left_to_training(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'nothing')
    check_images(dataset(tmp_path, suffix='.png'), Model(6))


def test_looking_at_an_image_draws_no_random_numbers(tmp_path):
    Image.new('RGB', (64, 48)).save(tmp_path / 'a.png')
    data, model = dataset(tmp_path, dict(type='RandomFlip', prob=0.5), suffix='.png'), Model(3)
    draws = []
    for look in (False, True):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if look:
            check_images(data, model)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


# Pictures and predictions.


def test_pictures_are_of_the_first_three_channels_or_of_grey():
    image = np.arange(2 * 3 * 6, dtype=np.uint8).reshape(2, 3, 6)
    assert np.array_equal(rgb_picture(image), image[..., 2::-1])
    assert np.array_equal(rgb_picture(image, is_bgr=False), image[..., :3])
    grey = image[..., 0]
    for single in (grey, grey[..., None], image[..., :2]):
        assert np.array_equal(rgb_picture(single), np.repeat(grey[..., None], 3, axis=-1))


def test_values_of_8_bits_stay_and_others_are_stretched():
    image = np.linspace(0, 255, 300).reshape(10, 10, 3)
    assert np.array_equal(rgb_picture(image, is_bgr=False), image.astype(np.uint8))
    for scale, offset in ((40, 0), (1 / 255, 0), (1, -300)):
        picture = rgb_picture((image * scale + offset).astype(np.float32), is_bgr=False)
        assert picture.min() == 0 and picture.max() == 255
        assert (np.diff(picture.ravel().astype(int)) >= 0).all()
    for constant in (np.full((4, 4), 7000, np.uint16), np.full((4, 4), np.nan)):
        assert not rgb_picture(constant).any()


@pytest.fixture
def inferencer(tmp_path):
    """One of a segmentor for images of so many channels, read so."""

    def build(in_channels, **load):
        cfg = read_config(SEGMENTOR, in_channels)
        pipeline = [dict(type='LoadImageFromFile', **load), *cfg.test_pipeline[1:]]
        cfg.test_dataloader.dataset.pipeline = pipeline
        return init_inferencer(cfg, device='cpu')

    return build


def test_frames_of_videos_and_arrays_are_turned_grey_where_images_are_read_so(inferencer, tmp_path):
    predict = inferencer(1, color_type='grayscale')
    colours = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(colours[..., ::-1]).save(tmp_path / 'a.png')
    grey = predict.read(tmp_path / 'a.png')
    assert grey.shape == (64, 96)
    predictions = [predict.predict([image])[0].pred_sem_seg.data for image in (grey, colours)]
    assert (predictions[0] == predictions[1]).float().mean() > 0.99  # decoders round otherwise
    (picture,) = predict.draw([grey], predict.predict([grey]))
    assert picture.shape == (64, 96, 3)
    picture, inputs = predict.network_input(grey)
    assert picture.shape[2] == 3 and inputs.shape[1] == 1


def test_an_image_of_other_channels_is_named(inferencer, tmp_path):
    predict = inferencer(4, color_type='unchanged')
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((64, 64, 4), np.uint8))
    predict.predict([predict.read(tmp_path / 'b.png')])
    for use in (predict.read, lambda path: predict.predict([cv2.imread(str(path))])):
        with pytest.raises(ImageError, match='it has 3 channels, the model takes 4'):
            use(tmp_path / 'a.png')


def test_other_transforms_than_loadimagefromfile_may_read(inferencer, tmp_path):
    pytest.importorskip('tifffile')
    from mmcv.transforms import LoadImageFromFile
    from mmseg.registry import TRANSFORMS

    @TRANSFORMS.register_module(force=True)
    class LoadBandsImage(LoadImageFromFile):
        def __init__(self):
            super().__init__(imdecode_backend='tifffile', to_float32=True)

    cfg = read_config(SEGMENTOR, 6)
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadBandsImage'), *cfg.test_pipeline[1:]]
    predict = init_inferencer(cfg, device='cpu')
    tiff(tmp_path / 'a.tif', np.random.default_rng(0).integers(0, 9999, (64, 96, 6), np.uint16))
    image = predict.read(tmp_path / 'a.tif')
    (sample,) = predict.predict([image])
    assert sample.pred_sem_seg.data.shape == (1, 64, 96)
    assert predict.draw([image], [sample])[0].shape == (64, 96, 3)


def test_the_web_page_takes_grey_images_and_tiffs(inferencer, tmp_path):
    demo = runpy.run_path(str(REPO / 'tools/web_demo.py'))['WebDemo']
    predict = inferencer(6, imdecode_backend='tifffile', to_float32=True)
    tiff(tmp_path / 'a.tif', np.random.default_rng(0).integers(0, 9999, (64, 96, 6), np.uint16))
    app = demo([SimpleNamespace()], 'cpu')
    app._load = lambda model: predict
    upload = SimpleNamespace(filename='a.tif', save=lambda path: shutil.copy(tmp_path / 'a.tif', path))
    answer = app.predict(SimpleNamespace(form={'model': '0'}, files={'image': upload}))
    assert answer['overlay'].startswith('data:image/png') and answer['feature_maps']


# The page's configs, from training to predictions.


def make_tiles(source, folder):
    """The sample data as TIFF files of six bands of 16 bits."""
    shutil.copytree(source / 'annotations', folder / 'annotations')
    for path in (source / 'images').rglob('*.jpg'):
        image = np.asarray(Image.open(path)).astype(np.uint16)
        bands = np.concatenate([image * 20, image * 10 + 100], axis=-1)
        tiff(folder / path.relative_to(source).with_suffix('.tif'), bands, planarconfig='contig')


def test_probes_of_the_image_are_refused_for_other_values_than_of_8_bits(sample_data, tmp_path, call_tool):
    make_tiles(sample_data / 'ade20k', tmp_path / 'tiles')
    cfg = read_config(SEGMENTOR, 6)
    load = dict(type='LoadImageFromFile', imdecode_backend='tifffile', to_float32=True)
    for loader in ('train_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        dataset.update(data_root=str(tmp_path / 'tiles'), img_suffix='.tif')
        dataset.pipeline = [load, *dataset.pipeline[1:]]
    cfg.dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=init_model(cfg, device='cpu').state_dict()), tmp_path / 'a.pth')
    arguments = (tmp_path / 'config.py', tmp_path / 'a.pth', '--size', 64, 64)
    _, error = call_tool('tools/analysis/information.py', *arguments)
    assert re.match(r'error: PSNR is of images with values from 0 to 255, these have up to \d{4}', error)


@pytest.mark.slow
def test_the_page_s_configs_train_test_and_predict(sample_data, tmp_path):
    pytest.importorskip('tifffile')
    for folder in ('configs', 'tools'):
        shutil.copytree(REPO / folder, tmp_path / folder)
    shutil.copytree(sample_data, tmp_path / 'data/sample')
    make_tiles(sample_data / 'ade20k', tmp_path / 'data/my_tiles')
    for code in blocks(PAGE, 'python'):
        if SEGMENTOR in OF_ONE_MEAN:  # as the page says
            code = re.sub(r'(mean|std)=\[([\d.]+), .*\]', r'\1=[\2]', code)
        (tmp_path / code.splitlines()[0].removeprefix('# ')).write_text(code + QUICK)
    for program, *words in commands(PAGE):
        assert program == 'python'
        run(*[re.sub(r'iter_\d+\.pth', 'iter_1.pth', word) for word in words], cwd=tmp_path)
    for run_, suffix in (('grey', 'jpg'), ('tiles', 'tif')):
        work_dir = tmp_path / 'work_dirs' / run_
        images = tmp_path / f'data/{"my_tiles" if suffix == "tif" else "sample/ade20k"}/images/validation'
        stems = {path.stem for path in images.iterdir()}
        assert {path.stem for path in (work_dir / 'demo/labels').iterdir()} == stems
        assert {path.stem for path in (work_dir / 'demo/overlays').iterdir()} == stems
        pictures = list((work_dir / 'pictures').glob('*.png'))
        assert {path.name for path in pictures} == {f'test_{stem}.{suffix}_0.png' for stem in stems}
        assert all(np.ptp(np.asarray(Image.open(path))) > 200 for path in pictures)
