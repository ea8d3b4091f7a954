"""Inference on images with other than 3 channels: pictures, predictions, exported models and the tutorial."""

import re
import runpy
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from PIL import Image

from revcol_mm.apis import init_inferencer, init_model
from revcol_mm.apis.image_header import ImageError
from revcol_mm.visualization.rgb_picture import rgb_picture

from .subprocesses import REPO, run
from .test_channels import ONE_MEAN, SEGMENTOR, read_config, tiff
from .test_documentation import blocks, commands

PAGE = REPO / 'docs/tutorials/channels.md'
QUICK = """
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
train_dataloader.update(batch_size=2)
"""


@pytest.mark.parametrize('in_channels', [1, 6])
def test_exported_model_takes_the_channels_and_records_them(in_channels, tmp_path, call_tool):
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


def test_pictures_show_the_first_three_channels_or_grey():
    image = np.arange(2 * 3 * 6, dtype=np.uint8).reshape(2, 3, 6)
    assert np.array_equal(rgb_picture(image), image[..., 2::-1])
    assert np.array_equal(rgb_picture(image, is_bgr=False), image[..., :3])
    grey = image[..., 0]
    for single in (grey, grey[..., None], image[..., :2]):
        assert np.array_equal(rgb_picture(single), np.repeat(grey[..., None], 3, axis=-1))


def test_pictures_keep_8_bit_values_and_stretch_others():
    image = np.linspace(0, 255, 300).reshape(10, 10, 3)
    assert np.array_equal(rgb_picture(image, is_bgr=False), image.astype(np.uint8))
    for scale, offset in ((40, 0), (1 / 255, 0), (1, -300)):
        picture = rgb_picture((image * scale + offset).astype(np.float32), is_bgr=False)
        assert picture.min() == 0 and picture.max() == 255
        assert (np.diff(picture.ravel().astype(int)) >= 0).all()
    for constant in (np.full((4, 4), 7000, np.uint16), np.full((4, 4), np.nan)):
        assert not rgb_picture(constant).any()


@pytest.fixture
def inferencer():
    """Return a function that builds a segmentor's inferencer for a number of channels and loader options."""

    def build(in_channels, **load):
        cfg = read_config(SEGMENTOR, in_channels)
        pipeline = [dict(type='LoadImageFromFile', **load), *cfg.test_pipeline[1:]]
        cfg.test_dataloader.dataset.pipeline = pipeline
        return init_inferencer(cfg, device='cpu')

    return build


class LoadWhite(BaseTransform):
    def transform(self, results):
        return dict(results, img=np.full_like(results['img'], 255))


def test_transforms_of_the_test_pipeline_run_except_those_that_read_images_or_annotations():
    cfg = read_config(SEGMENTOR, 3)
    loader, *others = cfg.test_pipeline
    cfg.test_dataloader.dataset.pipeline = [
        loader,
        dict(type=LoadWhite),
        dict(type='LoadAnnotations'),
        *others,
    ]
    picture, _ = init_inferencer(cfg, device='cpu').network_input(np.zeros((64, 96, 3), np.uint8))
    assert (picture == 255).all()


def test_colour_arrays_become_grey_if_the_loader_reads_grey(inferencer, tmp_path):
    predict = inferencer(1, color_type='grayscale')
    colours = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(colours[..., ::-1]).save(tmp_path / 'a.png')
    grey = predict.read(tmp_path / 'a.png')
    assert grey.shape == (64, 96)
    predictions = [predict.predict([image])[0].pred_sem_seg.data for image in (grey, colours)]
    assert (predictions[0] == predictions[1]).float().mean() > 0.99  # rounding of the conversion to grey
    (picture,) = predict.draw([grey], predict.predict([grey]))
    assert picture.shape == (64, 96, 3)
    picture, inputs = predict.network_input(grey)
    assert picture.shape[2] == 3 and inputs.shape[1] == 1


def test_image_with_other_channels_is_an_error(inferencer, tmp_path):
    predict = inferencer(4, color_type='unchanged')
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((64, 64, 4), np.uint8))
    predict.predict([predict.read(tmp_path / 'b.png')])
    for use in (predict.read, lambda path: predict.predict([cv2.imread(str(path))])):
        with pytest.raises(ImageError, match='the image has 3 channels, but the model takes 4'):
            use(tmp_path / 'a.png')


def test_custom_loading_transform_works(inferencer, tmp_path):
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


def test_web_page_takes_tiff_files(inferencer, tmp_path):
    demo = runpy.run_path(str(REPO / 'tools/web_demo.py'))['WebDemo']
    predict = inferencer(6, imdecode_backend='tifffile', to_float32=True)
    tiff(tmp_path / 'a.tif', np.random.default_rng(0).integers(0, 9999, (64, 96, 6), np.uint16))
    app = demo([SimpleNamespace()], 'cpu')
    app._load = lambda model: predict
    upload = SimpleNamespace(filename='a.tif', save=lambda path: shutil.copy(tmp_path / 'a.tif', path))
    answer = app.predict(SimpleNamespace(form={'model': '0'}, files={'image': upload}))
    assert answer['overlay'].startswith('data:image/png') and answer['feature_maps']


def make_tiles(source, folder):
    """Convert the sample data to TIFF files with six 16-bit bands."""
    shutil.copytree(source / 'annotations', folder / 'annotations')
    for path in (source / 'images').rglob('*.jpg'):
        image = np.asarray(Image.open(path)).astype(np.uint16)
        bands = np.concatenate([image * 20, image * 10 + 100], axis=-1)
        tiff(folder / path.relative_to(source).with_suffix('.tif'), bands, planarconfig='contig')


def test_image_probe_of_values_above_255_is_an_error(sample_data, tmp_path, call_tool):
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
    assert re.match(r'error: PSNR needs pixels from 0 to 255, but the images have values up to \d{4}', error)


@pytest.mark.slow
def test_configs_of_the_tutorial_train_test_and_predict(sample_data, tmp_path):
    pytest.importorskip('tifffile')
    for folder in ('configs', 'tools'):
        shutil.copytree(REPO / folder, tmp_path / folder)
    shutil.copytree(sample_data, tmp_path / 'data/sample')
    make_tiles(sample_data / 'ade20k', tmp_path / 'data/my_tiles')
    for code in blocks(PAGE, 'python'):
        if SEGMENTOR in ONE_MEAN:  # the change that the page describes
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
