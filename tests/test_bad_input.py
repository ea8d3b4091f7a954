"""A table of bad input, each with the error that the user gets; and unusual input that must work.

What is not here is in the tests of the part that it is given to: test_preflight.py, test_checkpoint.py,
test_convert_checkpoint.py, test_revcol.py, test_supervision.py, test_demo.py and test_tools.py.
"""

import builtins
import json
import os
import pickle
import re
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from revcol_mm import RevCol
from revcol_mm.apis import init_model, pick_device
from revcol_mm.checkpoints.reading import plain, read_checkpoint
from revcol_mm.checkpoints.run_files import is_whole
from revcol_mm.config.command_line import read_config
from revcol_mm.config.options import merge_options
from revcol_mm.errors import CheckpointError, PreflightError, building
from revcol_mm.preflight import PreflightHook, check_files
from revcol_mm.training.resumable_data import BrokenSampleError, SeededDataset
from revcol_mm.training.runner import ResumableRunner

from .subprocesses import REPO
from .test_checkpoint import RunsCode
from .test_preflight import Dataset, Runner

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
DETECTOR = 'configs/dino_revcol_nano_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
SMALL = dict(channels=(8, 16), layers=(1, 1), num_columns=2)


@pytest.fixture
def in_repo(monkeypatch):
    monkeypatch.chdir(REPO)


# Config files.


@pytest.mark.parametrize(
    'content, message',
    [
        pytest.param('model = dict(', r'bad\.py: .*SyntaxError', id='syntax error'),
        pytest.param('a = 1 / 0', 'ZeroDivisionError', id='code that fails'),
        pytest.param("_base_ = ['nowhere.py']", r'FileNotFoundError: .*nowhere\.py', id='missing base'),
        pytest.param("custom_imports = dict(imports=['no_such'])", 'no_such', id='missing import'),
        pytest.param("_base_ = ['bad.py']", 'RecursionError', id='base of itself'),
        pytest.param(
            "default_scope = 'mmsegs'\nmodel = dict()", "default_scope is 'mmsegs'", id='scope typo'
        ),
        pytest.param('model = dict()', 'default_scope is None', id='no scope'),
        pytest.param("default_scope = 'mmseg'", 'has no model', id='no model'),
        pytest.param("default_scope = 'mmseg'\nmodel = 'upernet'", 'has no model', id='model is text'),
        pytest.param('\0', 'null bytes', id='binary file'),
    ],
)
def test_a_bad_config_file_is_an_error(content, message, tmp_path):
    (tmp_path / 'bad.py').write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / 'bad.py')


def test_a_config_of_another_kind_of_file_is_an_error(tmp_path):
    (tmp_path / 'bad.txt').write_text('model')
    with pytest.raises(ValueError, match='py/yml/yaml/json'):
        read_config(tmp_path / 'bad.txt')


@pytest.mark.parametrize(
    'key, message',
    [
        pytest.param('trian_dataloader.batch_size', 'train_dataloader', id='loader typo'),
        pytest.param('train_dataloader.batchsize', 'batch_size', id='batch size typo'),
        pytest.param('val_dataloader.max_broken', "no 'max_broken'", id='broken images of validation'),
        pytest.param('optim_wrapper.optimiser.lr', 'optimizer', id='optimizer typo'),
        pytest.param('model.backbone.arc', 'arch', id='arch typo'),
        pytest.param('model.backbone.arch.channels', "'nano', not a dict", id='part of a name'),
        pytest.param('param_scheduler.7.power', "no '7'|is .*not a dict", id='list index beyond its end'),
        pytest.param('param_scheduler.0', 'give the whole list', id='list element'),
        pytest.param('model..arch', "no ''", id='empty part'),
        pytest.param('', "no ''", id='empty key'),
    ],
)
def test_an_unknown_option_is_an_error(key, message, in_repo):
    with pytest.raises(ValueError, match=message):
        merge_options(Config.fromfile(SEGMENTOR), {key: 1})


def test_options_of_dataloaders_pass(in_repo):
    cfg = Config.fromfile(SEGMENTOR)
    merge_options(cfg, {'train_dataloader.max_broken': 3, 'val_dataloader.prefetch_factor': 4})
    assert cfg.train_dataloader.max_broken == 3


# Models.


@pytest.mark.parametrize(
    'config, options, message',
    [
        pytest.param(SEGMENTOR, {'backbone.archh': 'tiny'}, "argument 'archh'", id='unknown argument'),
        pytest.param(
            SEGMENTOR, {'backbone.arch': 'giant'}, "arch 'giant' is none of nano", id='unknown arch'
        ),
        pytest.param(SEGMENTOR, {'backbone.type': 'RevColl'}, 'RevColl is not in', id='unknown backbone'),
        pytest.param(SEGMENTOR, {'decode_head.type': 'UperHead'}, 'UperHead is not in', id='unknown head'),
        pytest.param(
            SEGMENTOR, {'decode_head.in_index': [0, 1]}, 'AssertionError', id='indices and channels'
        ),
        pytest.param(SEGMENTOR, {'decode_head.num_classes': -1}, 'Error', id='negative classes'),
        pytest.param(DETECTOR, {'encoder.num_layers': 'two'}, 'TypeError', id='text for a number'),
        pytest.param(CLASSIFIER, {'num_classes': 0}, 'num_classes', id='no classes'),
    ],
)
def test_a_bad_model_is_an_error_that_says_where(config, options, message, in_repo):
    cfg = read_config(config)
    cfg.model.merge_from_dict(options) if hasattr(cfg.model, 'merge_from_dict') else cfg.merge_from_dict(
        {f'model.{key}': value for key, value in options.items()}
    )
    with pytest.raises(PreflightError, match=rf'^cannot build the model: .*{message}.*\.py:\d+\)$'):
        init_model(cfg)


@pytest.mark.parametrize(
    'options, message',
    [
        pytest.param(
            {'neck': dict(in_channels=[32, 64])}, r'neck\.in_channels is \[32, 64\].*\[8, 16\]', id='neck'
        ),
        pytest.param(
            {'decode_head': dict(in_channels=[8, 24])}, r'decode_head.*\[8, 24\].*\[8, 16\]', id='head'
        ),
        pytest.param(
            {'decode_head': dict(in_channels=8, in_index=1)}, r'\[8\].*gives \[16\]', id='one level'
        ),
        pytest.param(
            {'auxiliary_head': dict(in_channels=8, in_index=5)}, r'auxiliary_head.*\[8\]', id='no such level'
        ),
    ],
)
def test_wrong_channel_counts_are_an_error(options, message, tmp_path):
    runner = Runner(Dataset([]))
    runner._train_loop = None
    runner.model = torch.nn.ModuleDict(dict(backbone=RevCol(SMALL, out_indices=(0, 1))))
    runner.cfg = Config(dict(model=options))
    with pytest.raises(PreflightError, match=message):
        PreflightHook().before_run(runner)
    runner.cfg = Config(dict(model=dict(neck=dict(in_channels=[8, 16]), decode_head=dict(in_channels=[3]))))
    PreflightHook().before_run(runner)


@pytest.mark.parametrize(
    'option, value', [('max_iters', 0), ('max_iters', -5), ('max_epochs', 1.5), ('val_interval', 0)]
)
def test_a_run_of_no_length_is_an_error(option, value):
    runner = Runner(Dataset([]))
    runner.cfg = Config(dict(train_cfg={option: value}))
    with pytest.raises(PreflightError, match=rf'train_cfg\.{option} takes a whole number from 1 on, got'):
        PreflightHook().before_run(runner)


# Devices and numbers on command lines.


@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'cuda:-1', 'cpu:x', '', 'meta', 'CUDA 0'])
def test_a_device_that_is_not_there_is_an_error(device):
    with pytest.raises(ValueError, match='is none of cpu'):
        pick_device(device)


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        pytest.param('train', [SEGMENTOR, '--seed', -1], '--seed is from 0 to', id='negative seed'),
        pytest.param('train', [SEGMENTOR, '--seed', 2**40], '--seed is from 0 to', id='huge seed'),
        pytest.param('train', [SEGMENTOR, '--resume', 'no.pth'], 'no checkpoint no.pth', id='resume nothing'),
        pytest.param('test', ['configs', 'no.pth'], 'no checkpoint no.pth', id='test nothing'),
        pytest.param('test', ['configs', 'README.md'], 'no config configs', id='config is a folder'),
        pytest.param(
            'convert_checkpoint', ['README.md', 'a.pth'], 'cannot read README.md', id='convert text'
        ),
        pytest.param('publish_model', ['README.md', 'a.pth'], 'cannot read README.md', id='publish text'),
        pytest.param('publish_model', ['configs', 'a.pth'], 'no checkpoint configs', id='publish a folder'),
    ],
)
def test_a_bad_command_line_is_an_error_in_one_line(tool, arguments, message, call_tool):
    _, error = call_tool(f'tools/{tool}.py', *arguments)
    assert error.startswith('error: ') and message in error and '\n' not in error


# Data.


def coco(folder, pipeline=(), **changes):
    """A COCO-style data set of one image, with changes to its annotation file."""
    (folder / 'images').mkdir(exist_ok=True)
    Image.new('RGB', (8, 6)).save(folder / 'images/a.png')
    content = dict(
        images=[dict(id=1, file_name='a.png', height=6, width=8)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)],
        categories=[dict(id=1, name='x')],
    )
    text = changes.pop('text', None)
    for key, value in changes.items():
        if isinstance(value, list):
            content[key] = value
        else:
            content[key][0].update(value)
    (folder / 'a.json').write_text(json.dumps(content) if text is None else text)
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='a.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('x',)),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
    )


def load(dataset, **loader):
    """As a run builds the data and takes the first sample."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), **loader)
        return ResumableRunner.build_dataloader(dict(loader, dataset=dataset)).dataset[0]


@pytest.mark.parametrize(
    'changes, message',
    [
        pytest.param(dict(text='{"images": ['), 'JSONDecodeError', id='JSON cut short'),
        pytest.param(dict(text='<html>404</html>'), 'JSONDecodeError', id='a web page'),
        pytest.param(dict(text='[1]'), 'AssertionError', id='a list'),
        pytest.param(dict(images=[]), 'it has no images', id='no images'),
        pytest.param(
            dict(images=[dict(file_name='a.png')]), "1 images without 'id'", id='an image without id'
        ),
        pytest.param(
            dict(images=[dict(id=1, height=6, width=8)]), "without 'file_name'", id='without a name'
        ),
        pytest.param(dict(images=dict(width='8')), "a.png with '8' x 6", id='width of text'),
        pytest.param(dict(images=dict(height=0)), 'a.png with 8 x 0', id='no height'),
        pytest.param(dict(categories=[]), 'it has no categories', id='no categories'),
        pytest.param(dict(annotations=[dict(id=1)]), "without 'image_id'", id='an object of no image'),
        pytest.param(dict(annotations=dict(bbox=[1, 1, 3])), 'that are not 4 numbers', id='three numbers'),
        pytest.param(dict(annotations=dict(bbox='1 1 3 3')), 'that are not 4 numbers', id='box of text'),
        pytest.param(
            dict(annotations=dict(bbox=list('1133'))), 'that are not 4 numbers', id='numbers as text'
        ),
        pytest.param(dict(annotations=dict(area='16')), 'area is no number', id='area of text'),
        pytest.param(dict(text='{"images": 3}'), 'no list of objects', id='a number of images'),
    ],
)
def test_a_bad_annotation_file_is_an_error(changes, message, tmp_path):
    with pytest.raises(PreflightError, match=rf'{tmp_path}/a\.json: .*{message}') as error:
        load(coco(tmp_path, **changes))
    assert '; ' in str(error.value) or 'cannot build' in str(error.value)  # with the remedy


BOX = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)


@pytest.mark.parametrize(
    'changes, message',
    [
        pytest.param(
            dict(images=[dict(id=1, file_name=name, height=6, width=8) for name in ('a.png', 'b.png')]),
            '2 images have the id 1; give each an id of its own',
            id='images',
        ),
        pytest.param(dict(annotations=[BOX, BOX]), '2 annotations have the id 1; .* own', id='annotations'),
        pytest.param(
            dict(categories=[dict(id=1, name='x'), dict(id=1, name='y')]),
            '2 categories have the id 1; give each an id of its own',
            id='categories',
        ),
        pytest.param(
            dict(annotations=dict(category_id=7)),
            '1 annotations whose category_id is none of the categories, such as 7; .* such as 1: write these',
            id='no such category',
        ),
    ],
)
def test_ids_that_do_not_fit_are_an_error(changes, message, tmp_path):
    with pytest.raises(PreflightError, match=rf'^{tmp_path}/a\.json: {message}$'):
        load(coco(tmp_path, **changes))


def test_objects_of_images_that_are_not_there_are_told_of(tmp_path, log_messages):
    sample = load(coco(tmp_path, annotations=[BOX, {**BOX, 'id': 2, 'image_id': 5}]))
    assert len(sample['data_samples'].gt_instances) == 1
    assert (
        f'{tmp_path}/a.json: 1 annotations whose image_id is none of the images, such as 5; they are left out'
    ) in log_messages


@pytest.mark.parametrize(
    'box',
    [
        pytest.param([1, 1, 0, 4], id='no width'),
        pytest.param([1, 1, -3, 4], id='negative width'),
        pytest.param([100, 100, 3, 4], id='outside'),
        pytest.param([float('nan'), 1, 3, 4], id='NaN'),
    ],
)
def test_boxes_without_area_are_left_out(box, tmp_path):
    assert len(load(coco(tmp_path, annotations=dict(bbox=box)))['data_samples'].gt_instances) == 0


@pytest.mark.parametrize(
    'loader, message',
    [
        pytest.param(dict(batch_size=0), 'batch_size', id='batches of nothing'),
        pytest.param(dict(num_workers=-1), 'num_workers', id='negative workers'),
        pytest.param(dict(prefetch_factor=-1), 'prefetch_factor', id='negative prefetching'),
        pytest.param(dict(sampler=dict(type='NoSampler')), 'NoSampler is not in', id='unknown sampler'),
    ],
)
def test_a_bad_dataloader_is_an_error(loader, message, tmp_path):
    cfg = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=coco(tmp_path))
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(PreflightError, match=f'cannot build a dataloader: .*{message}'),
    ):
        ResumableRunner.build_dataloader({**cfg, **loader})


@pytest.mark.parametrize(
    'change, message',
    [
        pytest.param(dict(type='CocoDatasett'), 'CocoDatasett is not in', id='unknown data set'),
        pytest.param(dict(ann_fil='a.json'), "argument 'ann_fil'", id='argument typo'),
        pytest.param(dict(pipeline=[dict(type='LoadImage')]), 'LoadImage is not in', id='unknown transform'),
    ],
)
def test_a_bad_data_set_is_an_error(change, message, tmp_path):
    with pytest.raises(PreflightError, match=f'cannot build a dataloader: .*{message}'):
        load({**coco(tmp_path), **change})


def test_a_prefix_that_leaves_no_images_is_an_error_before_the_run(tmp_path):
    dataset = dict(coco(tmp_path), data_prefix=dict(img='pictures/'))
    cfg = Config(dict(model=dict(), val_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match='no data folder .*pictures'):
        check_files(cfg, ('val_dataloader',))


def save_mask(path, kind):
    labels = np.zeros((6, 8), np.uint8)
    if kind == 'RGB':
        labels = np.stack([labels] * 3, -1)
    elif kind == 'other size':
        labels = labels.T
    elif kind == '16 bit':
        labels = labels.astype(np.uint16) + 300
    Image.fromarray(labels).save(path)
    if kind == 'cut short':
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    'kind, message',
    [
        ('other size', r'a\.png has 6 x 8 pixels, its image 8 x 6'),
        ('RGB', r'a\.png has 3 channels'),
        ('16 bit', r'a\.png has label 299 '),
        ('cut short', r'a\.png is broken'),
        ('good', None),
    ],
)
@pytest.mark.parametrize('turned', [False, True], ids=['', 'EXIF-rotated image'])
def test_a_bad_mask_is_an_error_that_names_it(kind, message, turned, tmp_path):
    save_mask(tmp_path / 'a.png', kind)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.new('RGB', (6, 8) if turned else (8, 6)).save(tmp_path / 'a.jpg', exif=exif)
    dataset = Dataset([str(tmp_path / 'a.png')])
    info = dict(seg_map_path=str(tmp_path / 'a.png'), img_path=str(tmp_path / 'a.jpg'))
    dataset.get_data_info = lambda index: dict(info)
    if message is None:
        PreflightHook().before_run(Runner(dataset))
    else:
        with pytest.raises(PreflightError, match=message):
            PreflightHook().before_run(Runner(dataset))


# Images that are unusual, and right.

RED = (200, 40, 20)


def save_image(path, kind):
    """An image of 8 x 6 pixels, red at its top and black below, of a kind; returns its shape and colour."""
    image = Image.new('RGB', (8, 6))
    image.paste(RED, (0, 0, 8, 3))
    if kind == '16 bit':
        grey = np.asarray(image.convert('L')).astype(np.uint16) * 257
        Image.fromarray(grey).save(path.with_suffix('.png'))
        return path.with_suffix('.png'), (6, 8), (85,) * 3
    if kind == 'grey':
        image.convert('L').save(path.with_suffix('.png'))
        return path.with_suffix('.png'), (6, 8), (85,) * 3
    if kind == 'RGBA':
        image.putalpha(0)
        image.save(path.with_suffix('.png'))
        return path.with_suffix('.png'), (6, 8), RED
    if kind == 'palette':
        image.convert('P', palette=Image.Palette.ADAPTIVE).save(path.with_suffix('.png'))
        return path.with_suffix('.png'), (6, 8), RED
    if kind == 'CMYK':
        image.convert('CMYK').save(path, quality=100)
        return path, (6, 8), RED
    if kind == 'EXIF-rotated':
        exif = Image.Exif()
        exif[0x0112] = 8  # the camera was turned: to be shown turned by 90 degrees to the left
        image.transpose(Image.Transpose.ROTATE_270).save(path, exif=exif, quality=100, subsampling=0)
        return path, (6, 8), RED
    if kind == '1 pixel':
        Image.new('RGB', (1, 1), RED).save(path.with_suffix('.png'))
        return path.with_suffix('.png'), (1, 1), RED
    if kind == '20 megapixels':
        Image.new('RGB', (5000, 4000), RED).save(path.with_suffix('.png'), compress_level=1)
        return path.with_suffix('.png'), (4000, 5000), RED
    path = path.with_name('Größe 雪 %20 [1].png')  # spaces and unicode
    image.save(path)
    return path, (6, 8), RED


@pytest.mark.parametrize(
    'kind',
    ['16 bit', 'grey', 'RGBA', 'palette', 'CMYK', 'EXIF-rotated', '1 pixel', '20 megapixels', 'unicode name'],
)
def test_an_unusual_image_is_read_aright(kind, tmp_path):
    path, shape, colour = save_image(tmp_path / 'a.jpg', kind)
    with DefaultScope.overwrite_default_scope('mmseg'):
        image = TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(path)))['img']
    assert image.shape == (*shape, 3) and image.dtype == np.uint8
    assert np.abs(image[0, 0, ::-1].astype(int) - colour).max() <= 8
    if shape == (6, 8):
        assert image[5].max() <= 30


@pytest.mark.parametrize('kind', ['empty', 'text', 'cut short', 'folder', 'missing'])
def test_an_image_that_cannot_be_read_is_named(kind, tmp_path):
    dataset, path = coco(tmp_path), tmp_path / 'images/a.png'
    content = path.read_bytes()
    if kind in ('folder', 'missing'):
        path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        path.write_bytes(dict(empty=b'', text=b'no image')[kind] if kind != 'cut short' else content[:40])
    with pytest.raises(BrokenSampleError, match=rf'^{path} is broken: '):
        load(dataset)


def test_paths_with_spaces_and_unicode_are_read(tmp_path):
    folder = tmp_path / 'Größe 雪 [1]'
    folder.mkdir()
    assert len(load(coco(folder))['data_samples'].gt_instances) == 1


# Checkpoints.


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(
        {
            'meta': {'seed': 0, 'iter': 1, 'epoch': 0},
            'state_dict': RevCol(SMALL, out_indices=(1,)).state_dict(),
        },
        path,
    )
    return path


def compress(path):
    """A zip bomb: the same archive, with a part that unpacks to 256 MiB."""
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
        with archive.open('a/data/bomb', 'w', force_zip64=True) as part:
            for _ in range(16):
                part.write(bytes(2**24))


def overlap(path):
    """A zip bomb whose parts are the same bytes again and again."""
    with zipfile.ZipFile(path, 'a') as archive:
        first = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist.extend([first] * 10_000)
        archive._didModify = True


class Asks:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'damage, message',
    [
        pytest.param(lambda path: path.write_bytes(b''), '', id='empty'),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-500]), '', id='cut short'),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:100]), '', id='only begun'),
        pytest.param(lambda path: path.write_text('<html>'), '', id='a web page'),
        pytest.param(lambda path: path.write_bytes(pickle.dumps(3)), '', id='a pickled number'),
        pytest.param(lambda path: zipfile.ZipFile(path, 'w').close(), '', id='empty archive'),
        pytest.param(lambda path: torch.save([1], path), 'holds a list', id='a list'),
        pytest.param(lambda path: torch.save(torch.ones(3), path), 'holds a Tensor', id='a tensor'),
        pytest.param(compress, 'it is compressed', id='zip bomb'),
        pytest.param(overlap, 'it is compressed', id='overlapping zip bomb'),
        pytest.param(
            lambda path: torch.save({'a': Asks(bytearray, 2**38)}, path), 'bytearray', id='pickle bomb'
        ),
        pytest.param(
            lambda path: torch.save(
                {'a': Asks(bytearray, 2**38)}, path, _use_new_zipfile_serialization=False
            ),
            'bytearray',
            id='old pickle bomb',
        ),
    ],
)
def test_a_bad_checkpoint_is_an_error_and_takes_no_memory(damage, message, checkpoint):
    damage(checkpoint)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=f'^cannot read .*{message}') as error:
        read_checkpoint(checkpoint)
    assert '\n' not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB: 128 MiB
    if 'compressed' in message or 'bytearray' in message:
        assert not is_whole(checkpoint)  # so --resume does not take it


@pytest.mark.parametrize(
    'weights, message',
    [
        pytest.param({}, 'no weights', id='nothing'),
        pytest.param({'state_dict': {}}, 'no weights', id='no weights'),
        pytest.param({'state_dict': {'conv1.weight': torch.ones(1)}}, 'has no RevCol', id='another project'),
        pytest.param({'state_dict': 3}, 'no weights', id='a number for weights'),
    ],
)
def test_a_checkpoint_of_another_project_is_an_error(weights, message, tmp_path, in_repo):
    torch.save(weights, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        init_model(SEGMENTOR, tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'content, message',
    [
        pytest.param({'state_dict': {}}, "does not tell of its run .'meta'.*load_from", id='weights alone'),
        pytest.param({'meta': RunsCode(os.system, 'true')}, 'cannot resume', id='code'),
        pytest.param([1], 'cannot resume', id='a list'),
    ],
)
def test_what_no_run_has_saved_cannot_be_resumed(content, message, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        ResumableRunner(
            torch.nn.Identity(), work_dir=str(tmp_path), resume=True, load_from=str(tmp_path / 'a.pth')
        )


# Code in checkpoints.


def nested(code):
    return {'meta': {'list': [({'deep': code},)]}, 'state_dict': {}}


def entry_load_from(path, folder, call_tool):
    ResumableRunner(torch.nn.Identity(), work_dir=str(folder)).load_checkpoint(str(path))


def entry_init_cfg(path, folder, call_tool):
    RevCol(SMALL, out_indices=(1,), init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def entry_resume(path, folder, call_tool):
    ResumableRunner(torch.nn.Identity(), work_dir=str(folder), resume=True, load_from=str(path))


def entry_resume_auto(path, folder, call_tool):
    path.rename(folder / 'iter_1.pth')
    ResumableRunner(torch.nn.Identity(), work_dir=str(folder), resume=True)


def entry_init_model(path, folder, call_tool):  # tools/demo.py, tools/export.py and the analyses
    init_model(REPO / SEGMENTOR, path)


def entry_convert(path, folder, call_tool):
    call_tool('tools/convert_checkpoint.py', path, folder / 'out.pth')


def entry_publish(path, folder, call_tool):
    call_tool('tools/publish_model.py', path, folder / 'out.pth')


@pytest.mark.parametrize(
    'entry',
    [
        entry_load_from,
        entry_init_cfg,
        entry_resume,
        entry_resume_auto,
        entry_init_model,
        entry_convert,
        entry_publish,
    ],
    ids=lambda entry: entry.__name__.removeprefix('entry_'),
)
@pytest.mark.parametrize('function', ['os.system', 'eval'])
@pytest.mark.parametrize('place', ['at the top', 'nested'])
def test_no_code_in_a_checkpoint_runs(entry, function, place, tmp_path, call_tool, in_repo):
    marker, path = tmp_path / 'it_ran', tmp_path / 'a.pth'
    if function == 'os.system':
        code = RunsCode(os.system, f'touch {marker}')
    else:
        code = RunsCode(builtins.eval, f'open({str(marker)!r}, "w").close()')
    torch.save(nested(code) if place == 'nested' else code, path)
    try:
        entry(path, tmp_path, call_tool)
    except (CheckpointError, ValueError):
        pass  # refused, or without weights
    assert not marker.exists()
    file = path if path.exists() else tmp_path / 'iter_1.pth'
    torch.load(file, weights_only=False)
    assert marker.exists()  # the file does what it is made for


@pytest.mark.parametrize(
    'tool, arguments',
    [
        ('train', ['--cfg-options', 'load_from={file}', 'train_dataloader.dataset.data_root={data}']),
        ('train', ['--resume', '{file}', '--cfg-options', 'train_dataloader.dataset.data_root={data}']),
        ('test', ['{file}', '--cfg-options', 'test_dataloader.dataset.data_root={data}']),
        ('demo', ['{data}/images/validation', '--checkpoint', '{file}', '--config']),
        ('export', ['{file}', '--format', 'onnx', '--out', '{out}/model.onnx']),
        ('analysis/confusion', ['{file}', '--cfg-options', 'test_dataloader.dataset.data_root={data}']),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].strip('{}-'),
)
def test_no_tool_runs_code_in_a_checkpoint(tool, arguments, sample_data, tmp_path, call_tool):
    marker, path = tmp_path / 'it_ran', tmp_path / 'a.pth'
    torch.save(nested(RunsCode(builtins.eval, f'open({str(marker)!r}, "w").close()')), path)
    data = sample_data / 'ade20k'
    arguments = [argument.format(file=path, data=data, out=tmp_path) for argument in arguments]
    if tool in ('train', 'test'):
        arguments += [f'val_dataloader.dataset.data_root={data}', f'work_dir={tmp_path / "work"}']
    arguments.insert(len(arguments) if arguments[-1] == '--config' else 0, SEGMENTOR)
    _, error = call_tool(f'tools/{tool}.py', *arguments)
    assert error.startswith('error: ') and '\n' not in error
    assert not marker.exists()


@pytest.mark.parametrize(
    'name, kind',
    [
        ('a.pkl', 'a pickle'),
        ('a.pickle', 'a pickle'),
        ('a.yaml', 'YAML'),
        ('a.yml', 'YAML'),
        ('b/pkl', None),
        ('pkl', 'a pickle'),  # MMEngine goes by what comes after the last dot, and there is none
    ],
)
def test_an_annotation_file_that_may_run_code_is_refused(name, kind, tmp_path):
    dataset = dict(coco(tmp_path), ann_file=name)
    (tmp_path / 'b').mkdir()
    (tmp_path / name).write_bytes(pickle.dumps([]))
    cfg = Config(dict(model=dict(), val_dataloader=dict(dataset=dataset)))
    if kind is None:
        check_files(cfg, ('val_dataloader',))
        return
    message = f'{name} is {kind}, which may run code as it is read: convert it to JSON'
    with pytest.raises(FileNotFoundError) as error:
        check_files(cfg, ('val_dataloader',))
    assert str(error.value) == f'{message} (val_dataloader.dataset.ann_file)'


@pytest.mark.parametrize(
    'place, value, message',
    [
        ('val_dataloader.dataset.proposal_file', 'a.pkl', 'a.pkl is a pickle.*use a model with an rpn_head'),
        ('val_dataloader.dataset.extra_ann_file', 'a.pkl', 'a.pkl is a pickle'),
        ('val_dataloader.dataset.question_file', 'a.yaml', 'a.yaml is YAML'),
        ('val_dataloader.dataset.backend_args', dict(backend='s3', map='a.yml'), 'a.yml is YAML'),
        ('val_dataloader.dataset.pipeline.0.decode_backend', 'pickle', 'pickle is a pickle'),
        ('val_dataloader.dataset.type', 'RefCocoDataset', 'RefCocoDataset reads split_file as a pickle'),
        ('val_dataloader.dataset.type', 'mmpretrain.RefCOCO', 'mmpretrain.RefCOCO reads split_file as a'),
        ('val_dataloader.dataset.type', 'OpenImagesDataset', 'reads meta_file as a pickle'),
        ('val_dataloader.dataset.type', 'OpenImagesChallengeDataset', 'hierarchy_file as pickles'),
        ('val_evaluator.0.ann_file', 'a.pkl', 'a.pkl is a pickle'),
        ('val_evaluator.0.occluded_ann', 'http://a.example/a.pkl', r'a\.pkl is a pickle'),
        ('val_evaluator.0.type', 'CocoOccludedSeparatedMetric', 'set occluded_ann to a JSON file'),
        ('model.decode_head.loss_decode.class_weight', 'a.pkl', 'a.pkl is a pickle'),
    ],
)
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_file_or_class_that_may_run_code_is_refused_wherever_it_is_named(
    place, value, message, wrapped, tmp_path
):
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps([]))
    cfg = Config(
        dict(
            model=dict(decode_head=dict(loss_decode=dict())),
            val_dataloader=dict(dataset=coco(tmp_path)),
            val_evaluator=[dict(type='CocoMetric')],
        )
    )
    check_files(cfg, ('val_dataloader',))
    cfg.merge_from_dict({place: value})
    if wrapped:
        inner, cfg.val_dataloader.dataset = cfg.val_dataloader.dataset, None
        cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner])
        place = place.replace('dataset.', 'dataset.datasets.0.', 1)
    with pytest.raises(FileNotFoundError, match=rf'^.*{message}.* \({place}') as error:
        check_files(cfg, ('val_dataloader',))
    if 'CocoOccluded' not in value:  # which has two of them
        assert '\n' not in str(error.value)
    check_files(cfg, ()) if 'model' not in place else None  # nothing of it will be read


def test_a_model_is_not_built_from_a_pickle(in_repo, tmp_path):
    cfg = read_config(SEGMENTOR)
    cfg.model.decode_head.loss_decode.class_weight = str(tmp_path / 'a.pkl')
    (tmp_path / 'a.pkl').write_bytes(
        pickle.dumps(RunsCode(builtins.eval, f'open({str(tmp_path / "it_ran")!r}, "w") and [1.0] * 11'))
    )
    with pytest.raises(PreflightError, match=r'a\.pkl is a pickle.*\(model\.decode_head\.loss_decode\.class'):
        init_model(cfg, device='cpu')
    assert not (tmp_path / 'it_ran').exists()


def test_what_is_written_names_of_classes_and_text_are_not_refused(tmp_path):
    (tmp_path / 'val.txt').write_text('images/a.png 0\n')
    dataset = dict(
        coco(tmp_path), ann_file='val.txt', metainfo=dict(classes=('pickle', 'a.yaml')), classes=['pkl']
    )
    evaluators = [
        dict(type='DumpResults', out_file_path='out/predictions.pkl'),
        dict(type='DumpProposals', proposals_file='proposals.pkl'),
        dict(type='CocoOccludedSeparatedMetric', occluded_ann='a.json', separated_ann='b.json'),
    ]
    model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='weights.pkl')))
    cfg = Config(dict(model=model, val_dataloader=dict(dataset=dataset), val_evaluator=evaluators))
    check_files(cfg, ('val_dataloader',))


UNSAFE_READS = re.compile(
    r'file_format=.pkl|pickle\.loads?\(|allow_pickle=True|\byaml\.(?:unsafe_|full_)?load\(|\beval\(|\bexec\('
)
# Where data sets and metrics unpickle or evaluate, and why that is no fault, or how it is refused.
KNOWN_READS = {
    'mmdet/datasets/openimages.py': 'CLASSES_WITH_CODE',
    'mmdet/datasets/refcoco.py': 'CLASSES_WITH_CODE',
    'mmpretrain/datasets/refcoco.py': 'CLASSES_WITH_CODE',
    'mmpretrain/datasets/cifar.py': 'files are known by their checksums',
    'mmpretrain/datasets/transforms/processing.py': "evaluates the config's own text",
    'mmdet/evaluation/metrics/base_video_metric.py': 'what other processes of the run wrote',
    'mmdet/evaluation/functional/class_names.py': 'called with names of data sets by programmers',
}


def test_openmmlab_unpickles_nowhere_else():
    import mmdet
    import mmpretrain
    import mmseg

    found = set()
    for package in (mmdet, mmseg, mmpretrain):
        root = Path(package.__file__).parent
        for part in ('datasets', 'evaluation'):
            for path in (root / part).rglob('*.py'):
                if UNSAFE_READS.search(path.read_text(encoding='utf-8')):
                    found.add(path.relative_to(root.parent).as_posix())
    assert found == KNOWN_READS.keys()


@pytest.mark.parametrize('shape', ['shared', 'endless'])
def test_what_a_checkpoint_tells_does_not_unfold_without_end(shape):
    value = []
    value.append(value)
    if shape == 'shared':
        value = [0]
        for _ in range(10):
            value = [value] * 10
    with pytest.raises(CheckpointError, match='unfolds|contains itself'):
        plain(value)


def test_a_negative_limit_on_broken_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='max_broken takes a number from 0 on, got -1'):
        SeededDataset([1], max_broken=-1)


def test_an_error_of_this_package_keeps_its_words():
    with pytest.raises(CheckpointError, match='^no weights$'), building('anything'):
        raise CheckpointError('no weights')


def test_names_in_data_files_do_not_lead_out_of_the_output_folder(tmp_path):
    """Predictions and pictures are called as images are, without their folders."""
    from mmseg.evaluation import IoUMetric

    out = tmp_path / 'a/b/out'
    metric = IoUMetric(output_dir=str(out), format_only=True)
    metric.dataset_meta = dict(classes=('x', 'y'))
    for name in ('../../escaped.png', '/escaped.png', 'x/../../../escaped.png'):
        prediction = dict(data=torch.zeros(1, 4, 4, dtype=torch.long))
        metric.process({}, [dict(pred_sem_seg=prediction, img_path=f'{tmp_path}/data/{name}')])
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.png')]
    assert written == ['a/b/out/escaped.png']


def test_pictures_of_detections_do_not_lead_out_of_the_output_folder(tmp_path):
    from types import SimpleNamespace

    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.structures import InstanceData

    from revcol_mm.visualization.prediction_pictures import PredictionPicturesHook

    (tmp_path / 'data').mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'escaped.png')
    visualizer = DetLocalVisualizer(vis_backends=[dict(type='LocalVisBackend')], save_dir=f'{tmp_path}/out')
    sample = DetDataSample(
        metainfo=dict(img_path=f'{tmp_path}/data/../escaped.png'),
        pred_instances=InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0)),
    )
    hook = PredictionPicturesHook(interval=1)
    hook._after_iter(SimpleNamespace(visualizer=visualizer, iter=0), 0, None, [sample], mode='test')
    written = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / 'out').rglob('*.png')]
    assert written == ['out/vis_data/vis_image/test_escaped.png_0.png']
