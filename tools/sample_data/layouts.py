"""The files of the sample data, in the layouts of ADE20K, COCO and ImageNet."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import track

from .scenes import BACKGROUND, SPLITS, Scene, Split, load_photo, make_scene, sample_digits

CROP_MARGIN = 1.3  # side of a classification image relative to the longer side of the digit's box
DIGITS = [dict(id=digit + 1, name=str(digit), supercategory='digit') for digit in range(10)]
PHOTOGRAPH = dict(id=11, name='photograph', supercategory='photograph')  # only in panoptic annotations
VOID = 0  # panoptic id of pixels without a label


def save_jpeg(image: np.ndarray, path: Path) -> None:
    # Chroma subsampling would blur the thin coloured strokes.
    Image.fromarray(image).save(path, quality=92, subsampling=0)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # The file system has no hard links.
        shutil.copyfile(source, target)


def crop_square(image: np.ndarray, box: list[float]) -> np.ndarray:
    """Crop a square around the box with a margin; at the image's border the crop is smaller."""
    x, y, width, height = box
    half = CROP_MARGIN * max(width, height) / 2
    left, top = round(x + width / 2 - half), round(y + height / 2 - half)
    right, bottom = round(x + width / 2 + half), round(y + height / 2 + half)
    return image[max(top, 0) : bottom, max(left, 0) : right]


def describe_mask(mask: np.ndarray) -> tuple[dict, dict]:
    """Return a mask's run-length encoding, and the fields that both kinds of COCO annotations have."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle, dict(area=int(coco_mask.area(rle)), bbox=coco_mask.toBbox(rle).tolist(), iscrowd=0)


def instance_annotation(annotation_id: int, image_id: int, digit: int, mask: np.ndarray) -> dict:
    rle, fields = describe_mask(mask)
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=DIGITS[digit]['id'],
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        **fields,
    )


def write_panoptic(image_id: int, scene: Scene, path: Path) -> dict:
    """Write a scene's segment ids as colours of a PNG and return the annotation."""
    segments = [(PHOTOGRAPH['id'], scene.labels == BACKGROUND)]
    segments += [(DIGITS[digit]['id'], mask) for digit, mask in zip(scene.digits, scene.masks)]
    ids, infos = np.full(scene.labels.shape, VOID), []
    for number, (category_id, mask) in enumerate(segments):
        segment_id = 1000 * category_id + number
        ids[mask] = segment_id
        infos.append(dict(id=segment_id, category_id=category_id, **describe_mask(mask)[1]))
    colours = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)
    return dict(image_id=image_id, file_name=path.name, segments_info=infos)


def write_split(out: Path, split: Split, num_scenes: int, seed: int) -> str:
    """Write a split in all layouts and return a summary of it."""
    ade_images = out / 'ade20k/images' / split.ade20k_name
    ade_annotations = out / 'ade20k/annotations' / split.ade20k_name
    coco_images = out / 'coco' / split.coco_name
    segments = out / f'coco/annotations/panoptic_{split.coco_name}'
    class_folders = [out / 'imagenet' / split.name / str(digit) for digit in range(10)]
    for folder in (ade_images, ade_annotations, coco_images, segments, *class_folders):
        folder.mkdir(parents=True)

    # Each split has its own generator, so that it does not depend on the other's number of scenes.
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    photos = [load_photo(name) for name in split.photos]
    digit_source = sample_digits(split, rng)
    images, annotations, panoptic = [], [], []
    for image_id in track(range(1, num_scenes + 1), description=f'{split.name} scenes'):
        scene = make_scene(photos, digit_source, rng)
        name = f'scene_{image_id - 1:05d}'
        save_jpeg(scene.image, ade_images / f'{name}.jpg')
        Image.fromarray(scene.labels).save(ade_annotations / f'{name}.png')
        link_or_copy(ade_images / f'{name}.jpg', coco_images / f'{name}.jpg')
        height, width = scene.labels.shape
        images.append(dict(id=image_id, file_name=f'{name}.jpg', height=height, width=width))
        panoptic.append(write_panoptic(image_id, scene, segments / f'{name}.png'))

        for digit, mask in zip(scene.digits, scene.masks):
            annotation = instance_annotation(len(annotations) + 1, image_id, digit, mask)
            annotations.append(annotation)
            crop = crop_square(scene.image, annotation['bbox'])
            save_jpeg(crop, class_folders[digit] / f'{name}_{annotation["id"]:05d}.jpg')

    info = dict(description=f'Digits on photographs, {split.name} split, seed {seed}')
    coco = dict(info=info, licenses=[], images=images, annotations=annotations, categories=DIGITS)
    (segments.parent / f'instances_{split.coco_name}.json').write_text(json.dumps(coco))
    categories = [dict(digit, isthing=1) for digit in DIGITS] + [dict(PHOTOGRAPH, isthing=0)]
    coco.update(annotations=panoptic, categories=categories)
    segments.with_suffix('.json').write_text(json.dumps(coco))

    num_empty = num_scenes - len({annotation['image_id'] for annotation in annotations})
    return (
        f'{split.name}: {num_scenes} scenes in ade20k and coco ({num_empty} without digits), '
        f'{len(annotations)} digits in coco and imagenet'
    )
