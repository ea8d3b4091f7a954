"""Panoptic segmentation: the supplied panopticapi, checks of its data, and the recipes."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import revcol_mm.supplied_modules
from revcol_mm.config.command_line import read_config
from revcol_mm.models.without_weights import without_weights
from revcol_mm.panopticapi.evaluation import PQStat
from revcol_mm.panopticapi.utils import id2rgb, rgb2id
from revcol_mm.preflight.check_data import check_data

SAMPLE = 'configs/mask2former_revcol_nano_panoptic_sample.py'


def test_ids_to_colours_and_back():
    ids = np.array([[0, 1, 255], [256, 11_000, 256**3 - 1]])
    colours = id2rgb(ids)
    assert colours.dtype == np.uint8 and colours.shape == (2, 3, 3)
    assert colours[1, 1].tolist() == [11_000 % 256, 11_000 // 256, 0]
    assert (rgb2id(colours) == ids).all()


def test_panoptic_quality_is_averaged_over_categories_with_segments():
    found, more = PQStat(), PQStat()
    found[1].iou, found[1].tp, found[1].fp = 1.6, 2, 1  # PQ 1.6 / 2.5
    more[1].fn = 1  # PQ 1.6 / 3
    more[7].iou, more[7].tp = 0.9, 1
    found += more
    categories = {1: dict(isthing=1), 2: dict(isthing=1), 7: dict(isthing=0)}
    mean, each = found.pq_average(categories, isthing=None)
    assert mean == pytest.approx(dict(pq=(1.6 / 3 + 0.9) / 2, sq=(0.8 + 0.9) / 2, rq=(2 / 3 + 1) / 2, n=2))
    assert each[2] == dict(pq=0, sq=0, rq=0)
    assert found.pq_average(categories, isthing=True)[0] == pytest.approx(
        dict(pq=1.6 / 3, sq=0.8, rq=2 / 3, n=1)
    )
    assert found.pq_average(categories, isthing=False)[0] == pytest.approx(dict(pq=0.9, sq=0.9, rq=1, n=1))


def test_installed_panopticapi_is_preferred(tmp_path, monkeypatch):
    (tmp_path / 'panopticapi.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split('.')[0] == 'panopticapi']:
        monkeypatch.delitem(sys.modules, name)
    assert find_spec('panopticapi').origin == str(tmp_path / 'panopticapi.py')


def test_only_panopticapi_is_supplied():
    assert revcol_mm.supplied_modules.SuppliedModuleFinder.find_spec('panoptic') is None


@pytest.fixture
def cfg(sample_data, tmp_path):
    """The sample config on a copy of the data whose panoptic annotations a test may change."""
    cfg = read_config(SAMPLE)
    root = shutil.copytree(sample_data / 'coco', tmp_path / 'coco')
    text = cfg.pretty_text.replace('data/sample/coco/', f'{root}/')
    return Config.fromstring(text, '.py')


def errors_of(cfg):
    """Return the first line of every kind of error by its kind."""
    return {each.kind: each.line for each in check_data(cfg)[1] if each.severity == 'error'}


def annotation(cfg, split='val2017'):
    """Return the panoptic annotation file of a split, and the mask of its first image."""
    folder = Path(cfg.val_dataloader.dataset.data_root) / 'annotations'
    return folder / f'panoptic_{split}.json', folder / f'panoptic_{split}/scene_00000.png'


def test_sample_data_have_no_errors(cfg):
    assert not errors_of(cfg)
    file, mask = annotation(cfg)
    content = json.loads(file.read_text())
    segments = content['annotations'][0]['segments_info']
    ids = rgb2id(np.asarray(Image.open(mask)))
    assert {each['id']: each['area'] for each in segments} == {
        number: count for number, count in zip(*np.unique(ids, return_counts=True)) if number
    }
    assert [each['isthing'] for each in content['categories']] == [1] * 10 + [0]


def test_segment_only_in_the_mask_is_an_error(cfg):
    file, mask = annotation(cfg)
    content = json.loads(file.read_text())
    gone = content['annotations'][0]['segments_info'].pop()
    file.write_text(json.dumps(content))
    (found,) = (line for kind, line in errors_of(cfg).items() if kind == 'segment not in file')
    assert f'{mask} has 1 segments that its annotation lacks, such as {gone["id"]}' in found


def test_segment_only_in_the_file_is_an_error(cfg):
    _, mask = annotation(cfg, 'train2017')
    pixels = np.asarray(Image.open(mask))
    Image.fromarray(np.where(rgb2id(pixels)[..., None] >= 11_000, pixels, 0).astype(np.uint8)).save(mask)
    assert str(mask) in errors_of(cfg)['segment not in mask']


def test_grey_mask_is_an_error(cfg):
    _, mask = annotation(cfg)
    Image.open(mask).convert('L').save(mask)
    assert errors_of(cfg)['panoptic channels'].startswith(
        f'CocoPanopticDataset at {cfg.data_root} (val): {mask} has no'
    )


def test_mask_of_another_size_and_missing_mask_are_errors(cfg):
    _, mask = annotation(cfg)
    Image.open(mask).resize((8, 8)).save(mask)
    mask.with_name('scene_00001.png').unlink()
    assert {'mask size', 'missing mask'} <= errors_of(cfg).keys()


def mmdetection(name):
    return Config.fromfile(Path(find_spec('mmdet').origin).parent / f'.mim/configs/mask2former/{name}.py')


DEFAULTS = dict(
    **dict(backend_args=None, resize_type='Resize', format_only=False, offset=0.0),
    **dict(pad_seg=False, seg_pad_value=255, init_cfg=None),
)


def plain(node):
    """Remove scopes and default values from a config."""
    if isinstance(node, dict):
        defaults = dict(DEFAULTS)
        if node.get('type') == 'LoadPanopticAnnotations':
            defaults.update(with_bbox=True, with_mask=True, with_seg=True)
        missing = object()
        return {key: plain(value) for key, value in node.items() if defaults.get(key, missing) != value}
    if isinstance(node, (list, tuple)):
        return [plain(each) for each in node]
    return node.removeprefix('mmdet.') if isinstance(node, str) else node


@pytest.mark.parametrize('arch', 'tsbl')
@pytest.mark.parametrize('task', ['', '_panoptic'])
def test_recipe_equals_mmdetection(arch, task):
    """Except for the backbone, and for the weight decay of biases and norms, which RevCol does without."""
    own = read_config(f'configs/mask2former_revcol_{arch}_coco{task}.py')
    theirs = mmdetection(f'mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco{task.replace("_", "-")}')
    if arch == 'l':  # MMDetection has a large recipe only for panoptic segmentation
        large = mmdetection('mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic')
        assert own.train_dataloader.batch_size == large.train_dataloader.batch_size
        theirs.train_dataloader.batch_size = large.train_dataloader.batch_size
        theirs.model.panoptic_head.num_queries = large.model.panoptic_head.num_queries
        theirs.train_cfg, theirs.param_scheduler = large.train_cfg, large.param_scheduler
    heads = [cfg.model.panoptic_head for cfg in (own, theirs)]
    assert {
        key for key in {**heads[0], **heads[1]} if plain(heads[0].get(key)) != plain(heads[1].get(key))
    } <= {*('in_channels', 'pixel_decoder', 'transformer_decoder', 'num_transformer_feat_level')}
    theirs.model.panoptic_head.in_channels = own.model.panoptic_head.in_channels
    with without_weights(), DefaultScope.overwrite_default_scope('mmdet'):
        built = [
            str(MODELS.build(head)).replace('Dropout(p=0.0, inplace=False)', 'Identity()') for head in heads
        ]
    assert built[0] == built[1]
    for part in ('panoptic_fusion_head', 'train_cfg', 'test_cfg', 'data_preprocessor'):
        assert plain(own.model[part]) == plain(theirs.model[part]), part
    for loader in ('train_dataloader', 'val_dataloader'):
        assert own[loader].dataset.data_prefix.items() <= theirs[loader].dataset.data_prefix.items()
        for key in ('type', 'ann_file', 'pipeline'):
            assert plain(own[loader].dataset[key]) == plain(theirs[loader].dataset[key]), (loader, key)
    assert plain(own.val_evaluator) == plain(theirs.val_evaluator)
    assert plain(own.optim_wrapper.optimizer) == plain(theirs.optim_wrapper.optimizer)
    assert plain(own.optim_wrapper.clip_grad) == plain(theirs.optim_wrapper.clip_grad)
    keys, unit = theirs.optim_wrapper.paramwise_cfg.custom_keys, dict(lr_mult=1, decay_mult=1)
    for name, multiples in own.optim_wrapper.paramwise_cfg.custom_keys.items():
        assert {**unit, **multiples} == {**unit, **keys[name]}, name
    schedule = theirs.param_scheduler
    assert plain(own.param_scheduler) == plain(schedule if isinstance(schedule, list) else [schedule])
    assert own.train_cfg.max_iters == theirs.train_cfg.max_iters
