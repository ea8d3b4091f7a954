"""The command `revcol predict`: its inputs, its files, and that it predicts what testing predicts."""

import json
import runpy
import shutil
import sys
from itertools import islice
from unittest.mock import Mock

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import decode

from revcol_mm.apis import init_model
from revcol_mm.panopticapi.utils import rgb2id

from .random_checkpoint import random_checkpoint
from .subprocesses import REPO, run

SEGMENTOR = 'upernet_revcol_nano_sample'
DETECTOR = 'cascade_mask_rcnn_revcol_nano_sample'
PANOPTIC = 'mask2former_revcol_nano_panoptic_sample'
CLASSIFIER = 'revcol_nano_sample'
DIGITS = tuple('0123456789')
UNREADABLE = 65


def config(name):
    return REPO / f'configs/{name}.py'


def checkpoint(name):
    return random_checkpoint(config(name), DIGITS if name == CLASSIFIER else None)


@pytest.fixture
def demo(monkeypatch, capfd, tmp_path):
    """Run the command in this process: (name of the config, *arguments) -> (exit status, output)."""
    main = runpy.run_path(str(REPO / 'tools/demo.py'))['main']
    # Loggers that are created write to the captured output, which is closed after the test.
    monkeypatch.setattr(MMLogger, '_instance_dict', MMLogger._instance_dict.copy())

    def call(name, *arguments):
        options = ('--config', config(name), '--checkpoint', checkpoint(name))
        command = ['demo.py', *options, '--out', tmp_path / 'out', '--device', 'cpu', *arguments]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        status = 0
        try:
            main()
        except SystemExit as error:
            status = error.code
            if isinstance(status, str):  # which the interpreter would print
                print(status)
                status = 1
        return status, ''.join(capfd.readouterr())

    return call


def files_in(folder, part=''):
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
    return [path for path in paths if part in path]


def read_json(path):
    return json.loads(path.read_text())


def test_label_images_equal_those_of_testing(demo, sample_data, tmp_path):
    images = sample_data / 'ade20k/images/validation'
    tested = tmp_path / 'tested'
    options = ('--work-dir', tmp_path / 'work', '--out', tested, '--cfg-options')
    root = f'test_dataloader.dataset.data_root={sample_data / "ade20k"}'
    run('tools/test.py', config(SEGMENTOR), checkpoint(SEGMENTOR), *options, root)

    status, printed = demo(SEGMENTOR, images)
    assert status == 0 and 'semantic segmentation: 4 of 4' in printed
    labels = {}
    for path in sorted(images.iterdir()):
        labels[path.stem] = mmcv.imread(tmp_path / f'out/labels/{path.stem}.png', 'unchanged')
        assert np.array_equal(labels[path.stem], mmcv.imread(tested / f'{path.stem}.png', 'unchanged'))
        assert labels[path.stem].dtype == np.uint8
        assert Image.open(tmp_path / f'out/overlays/{path.stem}.png').size == Image.open(path).size
    found = set().union(*map(np.unique, labels.values()))
    assert len(found) > 2 and 0 not in found  # 0 means other things, as in ADE20K's files
    index = read_json(tmp_path / 'out/images.json')
    assert index['categories'][0] == dict(id=1, name='background') and len(index['categories']) == 11
    assert not (tmp_path / 'out/predictions.json').exists()

    demo(SEGMENTOR, images, '--batch-size', 3)
    for name, before in labels.items():
        assert (mmcv.imread(tmp_path / f'out/labels/{name}.png', 'unchanged') == before).mean() > 0.999


def predicted_in_testing(name, sample_data, layout, test_cfg=()):
    """Yield the metainfo and the data sample of a model's prediction for each image of its test data."""
    cfg = Config.fromfile(config(name))
    cfg.merge_from_dict({f'model.test_cfg.{key}': value for key, value in dict(test_cfg).items()})
    cfg.test_dataloader.dataset.data_root = str(sample_data / layout)
    model = init_model(cfg, checkpoint(name), 'cpu')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        for item in dataset:
            with torch.no_grad():
                yield dataset.metainfo, model.test_step(pseudo_collate([item]))[0]


def test_detections_equal_those_of_testing_and_pycocotools_reads_them(demo, sample_data, tmp_path):
    files = sorted((sample_data / 'coco/val2017').iterdir())[:2]
    status, printed = demo(DETECTOR, *files, '--score-threshold', 0.092)
    assert status == 0 and 'instance segmentation: 2 of 2' in printed
    truth = COCO(str(tmp_path / 'out/images.json'))
    results = truth.loadRes(str(tmp_path / 'out/predictions.json'))
    images = {image['file_name']: image for image in truth.loadImgs(truth.getImgIds())}
    total = 0
    for _, sample in islice(predicted_in_testing(DETECTOR, sample_data, 'coco'), 2):
        instances = sample.pred_instances
        instances = instances[instances.scores >= 0.092]
        image = images[sample.img_path.rpartition('/')[2]]
        assert (image['height'], image['width']) == sample.ori_shape
        written = results.loadAnns(results.getAnnIds(image['id']))
        assert len(written) == len(instances)
        total += len(written)
        order = instances.scores.argsort(descending=True, stable=True)
        for record, instance in zip(written, order.tolist()):
            left, top, right, bottom = instances.bboxes[instance].tolist()
            assert record['bbox'] == pytest.approx([left, top, right - left, bottom - top], abs=1e-4)
            assert record['score'] == pytest.approx(instances.scores[instance].item(), abs=1e-6)
            name = truth.loadCats(record['category_id'])[0]['name']
            assert name == DIGITS[instances.labels[instance]]
            mask = decode(record['segmentation'])
            assert np.array_equal(mask, instances.masks[instance].cpu().numpy())
    assert total > 4


def test_score_threshold_applies_to_files_and_pictures(demo, sample_data, tmp_path):
    image = sample_data / 'coco/val2017/scene_00000.jpg'
    written, drawn = [], []
    for threshold in (0.092, 0.999, 1):
        demo(DETECTOR, image, '--score-threshold', threshold)
        written.append(read_json(tmp_path / 'out/predictions.json'))
        drawn.append(mmcv.imread(str(tmp_path / 'out/overlays/scene_00000.png')))
    assert written[0] and not written[1]
    assert min(record['score'] for record in written[0]) >= 0.092
    assert np.array_equal(drawn[1], drawn[2])  # without masks, whose colours are random
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize('threshold', [0.1, 1.0], ids=['segments', 'none'])
def test_segments_are_written_as_coco_panoptic_results(threshold, demo, sample_data, tmp_path):
    test_cfg = dict(object_mask_thr=threshold, iou_thr=0.0)
    cfg = Config.fromfile(config(PANOPTIC))
    cfg.model.test_cfg.update(test_cfg)
    cfg.dump(tmp_path / 'config.py')
    status, printed = demo(PANOPTIC, sample_data / 'coco/val2017', '--config', tmp_path / 'config.py')
    assert status == 0 and 'panoptic segmentation: 4 of 4' in printed
    written = read_json(tmp_path / 'out/predictions.json')['annotations']
    categories = {each['id']: each['name'] for each in read_json(tmp_path / 'out/images.json')['categories']}
    predicted = predicted_in_testing(PANOPTIC, sample_data, 'coco', test_cfg)
    for annotation, (meta, sample) in zip(written, predicted, strict=True):
        ids = rgb2id(np.asarray(Image.open(tmp_path / 'out/segments' / annotation['file_name'])))
        expected = sample.pred_panoptic_seg.sem_seg[0].numpy()
        segments = annotation['segments_info']
        assert bool(segments) == (threshold < 1)
        assert len(np.unique(expected[ids == 0])) <= 1
        for segment in segments:
            (found,) = np.unique(expected[ids == segment['id']])
            assert categories[segment['category_id']] == meta['classes'][found % 1000]
            assert segment['area'] == (ids == segment['id']).sum() == (expected == found).sum()
        overlay = tmp_path / 'out/overlays' / annotation['file_name']
        assert Image.open(overlay).size == ids.shape[::-1]


def test_classes_equal_those_of_testing(demo, sample_data, tmp_path):
    status, _ = demo(CLASSIFIER, sample_data / 'imagenet/val', '--top-k', 3, '--batch-size', 4)
    assert status == 0
    written = {item['file_name']: item for item in read_json(tmp_path / 'out/predictions.json')}
    for meta, sample in predicted_in_testing(CLASSIFIER, sample_data, 'imagenet'):
        item = written.pop(sample.img_path.partition('imagenet/val/')[2])
        scores, labels = sample.pred_score.topk(3)
        assert [record['label'] for record in item['predictions']] == labels.tolist()
        assert [record['name'] for record in item['predictions']] == [meta['classes'][i] for i in labels]
        assert [record['score'] for record in item['predictions']] == pytest.approx(scores.tolist(), abs=1e-5)
    assert not written

    demo(CLASSIFIER, sample_data / 'imagenet/val', '--score-threshold', 0.9)
    records = [each for item in read_json(tmp_path / 'out/predictions.json') for each in item['predictions']]
    assert all(record['score'] >= 0.9 for record in records)


@pytest.mark.parametrize(
    'name, arguments, message',
    [
        (SEGMENTOR, ['nothing.jpg'], 'no file, folder or match of nothing.jpg'),
        (SEGMENTOR, [REPO / 'revcol_mm/apis'], 'no image or video in'),
        (SEGMENTOR, [REPO, '--batch-size', 0], '--batch-size must be at least 1, got 0'),
        (SEGMENTOR, ['IMAGE', '--score-threshold', 0.5], 'semantic segmentation has no score threshold'),
        (DETECTOR, ['IMAGE', '--top-k', 3], 'detection has no top k'),
        (DETECTOR, ['IMAGE', '--score-threshold', 30], 'score threshold must be from 0 to 1, got 30.0'),
        (CLASSIFIER, ['IMAGE', '--top-k', 0], 'top k must be at least 1, got 0'),
        (CLASSIFIER, ['IMAGE', '--config', 'nothing.py'], 'no config nothing.py'),
        (CLASSIFIER, ['IMAGE', '--checkpoint', 'nothing.pth'], 'no checkpoint nothing.pth'),
        (CLASSIFIER, ['IMAGE', '--device', 'cuda:99'], "there is no device 'cuda:99'; available are cpu"),
        (CLASSIFIER, ['IMAGE', '--out', REPO / 'README.md'], 'cannot write in'),
    ],
)
def test_bad_arguments_are_errors_in_one_line(name, arguments, message, demo, sample_data):
    image = sample_data / 'coco/val2017/scene_00000.jpg'
    status, printed = demo(name, *(image if argument == 'IMAGE' else argument for argument in arguments))
    last = printed.splitlines()[-1]
    assert status == 1 and last.startswith('error: ') and message in last


# Files and videos.


def test_image_formats_are_read_and_broken_files_reported(demo, sample_data, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    source = Image.open(sample_data / 'coco/val2017/scene_00000.jpg')
    source.save(folder / 'plain.png')
    source.convert('L').save(folder / 'grey.png')
    source.convert('RGBA').save(folder / 'rgba.png')
    Image.fromarray(np.array(source.convert('L')).astype(np.uint16) * 257).save(folder / 'grey16.png')
    cv2.imwrite(str(folder / 'colour16.tiff'), np.array(source)[..., ::-1].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x112] = 6  # to be rotated by 90 degrees
    source.transpose(Image.Transpose.ROTATE_90).save(folder / 'rotated.png', exif=exif)
    source.crop((0, 0, 1, 1)).save(folder / 'pixel.png')
    good = {path.stem for path in folder.iterdir()}
    whole = (folder / 'plain.png').read_bytes()
    (folder / 'half.png').write_bytes(whole[: len(whole) // 2])
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.jpg').write_text('no image')
    Image.new('RGB', (3000, 1)).save(folder / 'line.png')
    (folder / 'notes.txt').write_text('found only by its name')

    status, printed = demo(SEGMENTOR, folder, folder / 'notes.txt')
    assert status == UNREADABLE
    for name in ('half.png', 'empty.jpg', 'text.jpg', 'line.png', 'notes.txt'):
        assert printed.count(f'{folder / name}') >= 2  # when it is read, and in the summary
    assert '3000 x 1 pixels' in printed and 'Traceback' not in printed
    assert 'semantic segmentation: 7 of 12' in printed
    labels = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / 'out/labels').iterdir()}
    assert set(labels) == good
    for name in good - {'pixel', 'grey', 'grey16'}:
        assert np.array_equal(labels[name], labels['plain']), name
    assert np.array_equal(labels['grey'], labels['grey16'])
    assert labels['pixel'].shape == (1, 1)

    assert demo(DETECTOR, folder / 'pixel.png')[0] == 0 == demo(CLASSIFIER, folder / 'pixel.png')[0]


def test_results_stay_in_the_output_folder_and_replace_no_others(demo, sample_data, tmp_path):
    image = sample_data / 'coco/val2017/scene_00000.jpg'
    for path in ('a/x.jpg', 'b/x.jpg', 'b/c/x.jpg'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / path)
    before, out = set(files_in(tmp_path)), tmp_path / 'b/out'
    inputs = [tmp_path / each for each in ('a/../b', 'a/*.jpg', 'a/x.jpg')]
    assert demo(SEGMENTOR, *inputs, '--out', out)[0] == 0
    assert files_in(out, 'labels') == ['labels/a/x.png', 'labels/b/c/x.png', 'labels/b/x.png']
    assert set(files_in(tmp_path)) == before | {f'b/out/{name}' for name in files_in(out)}

    demo(SEGMENTOR, tmp_path / 'b', '--out', out)  # does not read the results of the first run
    assert [each['file_name'] for each in read_json(out / 'images.json')['images']] == ['c/x.jpg', 'x.jpg']


def write_video(path, num_frames):
    codec = 'MJPG' if path.suffix == '.avi' else 'mp4v'
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(num_frames):
        video.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48)))
    video.release()


def test_every_frame_of_a_video_is_predicted(demo, sample_data, tmp_path):
    folder = tmp_path / 'videos'
    folder.mkdir()
    write_video(folder / 'clip.mp4', 5)
    write_video(folder / 'other.avi', 2)
    shutil.copy(sample_data / 'coco/val2017/scene_00000.jpg', folder / 'image.jpg')
    assert demo(SEGMENTOR, folder, '--batch-size', 2)[0] == 0
    frames = [
        *(('clip.mp4', i) for i in range(5)),
        ('image.jpg', None),
        *(('other.avi', i) for i in range(2)),
    ]
    assert files_in(tmp_path / 'out', 'labels') == [
        f'labels/{name.partition(".")[0]}{"" if frame is None else f"/{frame:06d}"}.png'
        for name, frame in frames
    ]
    index = read_json(tmp_path / 'out/images.json')
    assert [(entry['file_name'], entry.get('frame')) for entry in index['images']] == frames
    overlay, clip = (mmcv.VideoReader(str(path / 'clip.mp4')) for path in (tmp_path / 'out/overlays', folder))
    assert (overlay.frame_cnt, overlay.fps, overlay.width, overlay.height) == (5, 10, 64, 48)
    drawn, original = (np.array([frame.ravel() for frame in video]) for video in (overlay, clip))
    similarity = np.corrcoef(drawn, original)[:5, 5:]
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_video_that_cannot_be_encoded_is_reported_and_leaves_no_results(demo, tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.mp4', 3)
    writer = Mock(**{'return_value.isOpened.return_value': False}, fourcc=cv2.VideoWriter.fourcc)
    monkeypatch.setattr(cv2, 'VideoWriter', writer)
    status, printed = demo(SEGMENTOR, tmp_path / 'clip.mp4')
    assert status != 0 and 'cannot write a video of 64 x 48 pixels at 10.0 frames per second' in printed
    assert read_json(tmp_path / 'out/images.json')['images'] == []


def test_truncated_video_is_predicted_as_far_as_possible(demo, sample_data, tmp_path):
    write_video(tmp_path / 'whole.mkv', 12)
    data = (tmp_path / 'whole.mkv').read_bytes()
    (tmp_path / 'cut.mkv').write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / 'no.mp4').write_bytes(b'no video')
    inputs = tmp_path / 'no.mp4', tmp_path / 'cut.mkv', sample_data / 'coco/val2017/scene_00000.jpg'
    status, printed = demo(CLASSIFIER, *inputs)
    assert status == UNREADABLE
    assert 'no.mp4: not a video, or a broken one' in printed and 'of 12 frames' in printed
    written = read_json(tmp_path / 'out/predictions.json')
    assert 1 < len(written) < 13 and written[-1]['file_name'].endswith('scene_00000.jpg')
