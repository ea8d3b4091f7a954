"""Small valid data sets for detection, segmentation and classification, and ways to break and check them."""

import json

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from revcol_mm.data.findings import report
from revcol_mm.data.run_checks import check_run
from revcol_mm.data.splits import splits_of
from revcol_mm.preflight import check_files
from revcol_mm.preflight.check_data import check_data
from revcol_mm.training.runner import ResumableRunner

SPLITS = ('train', 'val')
SIZES = dict(train=(40, 30), val=(36, 28))  # width and height
NUM_IMAGES = dict(train=14, val=12)
BOXES = [[2, 3, 10, 8], [20, 9, 12, 11]]


def start_run(cfg):
    """Check data as training does before the first iteration, and return the splits."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        check_files(cfg, tuple(f'{name}_dataloader' for name in SPLITS))
        splits, runner = [], ResumableRunner.__new__(ResumableRunner)  # without a model
        for name in SPLITS:
            loader = ResumableRunner.build_dataloader(cfg[f'{name}_dataloader'])
            configs = cfg.get(f'{name}_evaluator')
            evaluator = runner.build_evaluator(configs) if configs else None
            splits += splits_of(name, loader.dataset, evaluator, configs)
        report(check_run(splits))
        return splits


def kinds(cfg, severity='error'):
    """Return the kinds of findings of tools/check_data.py."""
    return {finding.kind for finding in check_data(cfg)[1] if finding.severity == severity}


def save_noise(path, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def data_config(scope, evaluator, dataset_of):
    loaders = {
        f'{split}_dataloader': dict(
            batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dataset_of(split)
        )
        for split in SPLITS
    }
    model = dict(type='BaseDataPreprocessor')  # has nothing to compare the data with
    return Config(dict(default_scope=scope, model=model, val_evaluator=evaluator, **loaders))


def coco_content(split):
    width, height = SIZES[split]
    images = [
        dict(id=index, file_name=f'{split}_{index}.png', width=width, height=height)
        for index in range(NUM_IMAGES[split])
    ]
    annotations = [
        dict(
            id=2 * image['id'] + i + 1,
            image_id=image['id'],
            category_id=i + 1,
            bbox=[x, y, w, h],
            area=w * h,
            iscrowd=0,
            segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
        )
        for image in images
        for i, (x, y, w, h) in enumerate(BOXES)
    ]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    return dict(images=images, annotations=annotations, categories=categories)


def detection_config(folder):
    """Write a valid data set of boxes and masks, and return its config."""
    for number, split in enumerate(SPLITS):
        content = coco_content(split)
        (folder / split).mkdir()
        for image in content['images']:
            save_noise(folder / split / image['file_name'], SIZES[split], 100 * number + image['id'])
        (folder / f'{split}.json').write_text(json.dumps(content))

    def dataset(split):
        return dict(
            type='CocoDataset',
            data_root=str(folder),
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=('cat', 'dog')),
            test_mode=split != 'train',
            serialize_data=False,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='PackDetInputs'),
            ],
        )

    evaluator = dict(type='CocoMetric', ann_file=str(folder / 'val.json'), metric=['bbox', 'segm'])
    return data_config('mmdet', evaluator, dataset)


def rewrite(folder, split, change):
    """Apply a change to the content of an annotation file."""
    path = folder / f'{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_in_all(key, value):
    """Return a change that sets a field of all objects, to ``value(object)`` if ``value`` is a function."""

    def change(content):
        for each in content['annotations']:
            each[key] = value(each) if callable(value) else value

    return change


def set_in_first(kind, **values):
    return lambda content: content[kind][0].update(values)


def delete(kind, key):
    def change(content):
        for each in content[kind]:
            del each[key]

    return change


def rename_images(function):
    def change(content):
        for each in content['images']:
            each['file_name'] = function(each['file_name'])

    return change


def swap_sizes(content):
    for each in content['images']:
        each['width'], each['height'] = each['height'], each['width']


def as_corners(each):
    x, y, width, height = each['bbox']
    return [x, y, x + width, y + height]


def segmentation_config(folder):
    """Write a valid data set of semantic masks, and return its config."""
    for number, split in enumerate(SPLITS):
        for kind in ('images', 'masks'):
            (folder / kind / split).mkdir(parents=True)
        for index in range(NUM_IMAGES[split]):
            width, height = SIZES[split]
            save_noise(folder / f'images/{split}/{split}_{index}.jpg', SIZES[split], 100 * number + index)
            labels = np.zeros((height, width), np.uint8)
            labels[:9], labels[9:12], labels[-1] = 1, 2, 255
            Image.fromarray(labels).save(folder / f'masks/{split}/{split}_{index}.png')

    def dataset(split):
        return dict(
            type='BaseSegDataset',
            data_root=str(folder),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'masks/{split}'),
            metainfo=dict(classes=('sky', 'road', 'car'), palette=[[0, 0, 0]] * 3),
            serialize_data=False,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )

    return data_config('mmseg', dict(type='IoUMetric'), dataset)


def relabel(folder, split, function):
    """Replace the pixels of all masks of a split by ``function(pixels)``."""
    for path in (folder / 'masks' / split).iterdir():
        Image.fromarray(function(np.array(Image.open(path)))).save(path)


def classification_config(folder):
    """Write a valid data set with a folder for each class and a list of images, and return its config."""
    names = ('cat', 'dog')
    for number, split in enumerate(SPLITS):
        lines = []
        for label, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for index in range(3):
                save_noise(folder / split / name / f'{index}.png', (8, 6), 100 * number + 10 * label + index)
                lines.append(f'{name}/{index}.png {label}')
        (folder / f'{split}.txt').write_text('\n'.join(lines))

    def dataset(split):
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
        return dict(type='CustomDataset', data_root=str(folder), data_prefix=split, pipeline=pipeline)

    return data_config('mmpretrain', dict(type='Accuracy'), dataset)
