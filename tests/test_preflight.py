"""What would fail late fails early, with a message that names the path, key or number."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from revcol_mm import RevCol
from revcol_mm.config.options import merge_options, tell_of_misspelt_keys
from revcol_mm.config.scope import check_scope
from revcol_mm.preflight import PreflightHook, check_files

from .subprocesses import REPO

LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def cfg():
    return Config.fromfile(REPO / 'configs/mask2former_revcol_b_ade20k.py')


@pytest.fixture
def ade(cfg, tmp_path):
    """The config on a data set with one image and mask in each split."""
    for split in ('training', 'validation'):
        for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f'a.{suffix}')
    cfg.train_dataloader.dataset.data_root = cfg.val_dataloader.dataset.data_root = str(tmp_path)
    cfg.model.backbone.init_cfg = None
    return cfg


def test_a_missing_data_root_is_named_once(cfg):
    with pytest.raises(FileNotFoundError) as error:
        check_files(cfg, LOADERS)
    assert str(error.value) == (
        'no data folder data/ade/ADEChallengeData2016 (train_dataloader.dataset, val_dataloader.dataset)'
    )


def test_whole_data_pass(ade):
    check_files(ade, LOADERS)


def test_a_missing_checkpoint_to_start_from_is_named_unless_the_run_resumes(ade):
    ade.load_from = 'nowhere.pth'
    with pytest.raises(FileNotFoundError, match='nowhere.pth.*--cfg-options load_from=None'):
        check_files(ade, LOADERS)
    ade.resume = True
    check_files(ade, LOADERS)
    ade.update(resume=False, load_from='s3://bucket/weights.pth')  # for MMEngine's own loaders
    check_files(ade, LOADERS)


def test_a_missing_and_an_empty_folder_are_named(ade, tmp_path):
    (tmp_path / 'images/training/a.jpg').unlink()
    (tmp_path / 'annotations/validation').rename(tmp_path / 'annotations/valid')
    with pytest.raises(FileNotFoundError) as error:
        check_files(ade, LOADERS)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f'data folder {tmp_path}/images/training is empty')
    assert lines[1].startswith(f'no data folder {tmp_path}/annotations/validation')
    assert len(lines) == 2


def test_data_inside_of_a_wrapper_are_found(ade):
    inner = ade.train_dataloader.dataset
    inner.data_root = 'nowhere'
    ade.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    with pytest.raises(FileNotFoundError, match=r'nowhere \(train_dataloader\.dataset\.dataset\)'):
        check_files(ade, LOADERS)


@pytest.mark.parametrize('content', [None, ''])
def test_a_missing_or_empty_annotation_file_is_named(ade, tmp_path, content):
    ade.train_dataloader.dataset.ann_file = 'instances.json'
    if content is not None:
        (tmp_path / 'instances.json').write_text(content)
    with pytest.raises(FileNotFoundError, match=r'instances\.json'):
        check_files(ade, LOADERS)


def test_a_missing_pretrained_file_names_the_file_the_url_and_the_way_without(ade):
    ade.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='pretrained/revcol_b.pth')
    with pytest.raises(FileNotFoundError, match=r'pretrained/revcol_b\.pth.*https://.*init_cfg=None'):
        check_files(ade, LOADERS)
    check_files(ade, ('val_dataloader',))  # testing loads the checkpoint over it


def test_a_missing_default_scope_is_named(cfg):
    check_scope(cfg)
    cfg.default_scope = None
    with pytest.raises(ValueError, match='default_scope is None.*mmseg'):
        check_scope(cfg)


@pytest.mark.parametrize(
    'key, message',
    [
        ('train_confg.max_iters', "no 'train_confg'.*train_cfg"),
        ('train_cfg.max_iter', "train_cfg has no 'max_iter'.*max_iters"),
        ('model.backbone.drop_path', "no 'drop_path'.*drop_path_rate"),
        ('train_dataloader.dataset.data_rot', "no 'data_rot'.*data_root"),
        ('train_pipeline.9.prob', '9'),
        ('num_classes.x', 'num_classes is 150, not a dict'),
    ],
)
def test_an_unknown_option_is_named_with_what_is_near(cfg, key, message):
    with pytest.raises(ValueError, match=message):
        merge_options(cfg, {key: 1})


@pytest.mark.parametrize(
    'key',
    [
        'train_cfg.max_iters',
        'model.backbone.save_memory',  # not in the config, but an argument of RevCol
        'train_dataloader.dataset.indices',  # an argument that ADE20KDataset passes on to its base
        'train_dataloader.dataset.pipeline.2.ratio_range',
        'randomness',
        'work_dir',
    ],
)
def test_options_of_the_config_or_of_what_it_builds_pass(cfg, key):
    merge_options(cfg, {key: 7})
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == 7


@pytest.mark.parametrize(
    'key',
    [
        'model.test_cfg.crop_size',  # of sliding windows, which this config does without
        'model.train_cfg.anything',
        'model.decode_head.pixel_decoder.norm_cfg.requires_grad',
        'optim_wrapper.paramwise_cfg.custom_keys.decode_head.lr_mult',
        'optim_wrapper.paramwise_cfg.norm_decay_mult',
        'optim_wrapper.clip_grad.norm_type',
        'train_dataloader.dataset.metainfo.palette',
        'env_cfg.dist_cfg.timeout',
        'env_cfg.resource_limit',
        'randomness.seed',
        'param_scheduler.0.convert_to_iter_based',
        'default_hooks.checkpoint.priority',
        'model_wrapper_cfg.find_unused_parameters',
        'val_cfg.fp16',
        'train_cfg.by_epoch',
    ],
)
def test_documented_options_of_dicts_without_a_type_pass(cfg, key):
    merge_options(cfg, {key: 7})
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == 7


@pytest.mark.parametrize(
    'key, message',
    [
        ('model.test_cfg.crop_sise', "test_cfg has no 'crop_sise'; it has crop_size"),
        ('test_cfg.crop_size', "^--cfg-options test_cfg.crop_size: test_cfg has no 'crop_size'"),
        ('optim_wrapper.paramwise_cfg.custom_key.x', "no 'custom_key'; it has custom_keys"),
        ('optim_wrapper.paramwise_cfg.custom_keys.decode_head.lr_mul', 'it has lr_mult'),
        ('optim_wrapper.clip_grad.max_nrom', 'it has max_norm'),
        ('optim_wrapper.construct', 'it has constructor'),
        ('train_dataloader.dataset.metainfo.palete', 'it has palette'),
        ('env_cfg.cudnn_bencmark', 'it has cudnn_benchmark'),
        ('env_cfg.anything', 'it has cudnn_benchmark'),
        ('env_cfg.dist_cfg.time', 'it has timeout'),
        ('randomness.sead', 'it has seed'),
        ('auto_scale_lr.base_batchsize', 'it has base_batch_size'),
        ('val_cfg.fp61', 'it has fp16'),
    ],
)
def test_misspelt_options_of_dicts_without_a_type_are_named(cfg, key, message):
    with pytest.raises(ValueError, match=message):
        merge_options(cfg, {key: 1})


def test_an_option_that_nobody_knows_is_told_of(cfg, log_messages):
    merge_options(cfg, {'model.test_cfg.anything': 1, 'model.test_cfg.stride': 2})
    assert [message for message in log_messages if 'cfg-options' in message] == [
        "--cfg-options model.test_cfg.anything: model.test_cfg had no 'anything', and nobody can tell "
        'whether it is read'
    ]


def test_a_misspelt_key_of_a_config_is_told_of(cfg, log_messages):
    tell_of_misspelt_keys(cfg)
    assert log_messages == []
    cfg.custom_hook = [dict(type='EMAHook')]
    tell_of_misspelt_keys(cfg)
    assert log_messages == [f'{cfg.filename}: nothing reads custom_hook; it may be meant for custom_hooks']


def test_the_arguments_of_a_model_with_supervision_are_known():
    cfg = Config.fromfile(REPO / 'configs/upernet_revcol_nano_supervised_sample.py')
    merge_options(cfg, {'model.pretrained': None})
    with pytest.raises(ValueError, match="model has no 'decode_hed'; it has decode_head"):
        merge_options(cfg, {'model.decode_hed': 1})


def test_options_may_change_a_type_and_add_a_hook_with_arguments_of_their_own(cfg):
    uri = 'visualizer.vis_backends.1.tracking_uri'
    with pytest.raises(ValueError, match="vis_backends.1 has no 'tracking_uri'"):
        merge_options(cfg, {uri: 'sqlite:///a.db'})
    hook = 'default_hooks.column_statistics'
    merge_options(cfg, {uri: 'sqlite:///a.db', 'visualizer.vis_backends.1.type': 'MLflowVisBackend'})
    merge_options(cfg, {f'{hook}.interval': 7, f'{hook}.type': 'ColumnStatisticsHook'})
    assert cfg.visualizer.vis_backends[1] == dict(type='MLflowVisBackend', tracking_uri='sqlite:///a.db')
    assert cfg.default_hooks.column_statistics == dict(type='ColumnStatisticsHook', interval=7)
    with pytest.raises(ValueError, match="column_statistics has no 'every'"):
        merge_options(cfg, {f'{hook}.every': 7})


class Dataset:
    """As much of a data set as the hook looks at."""

    data_root = 'somewhere'
    reduce_zero_label = True
    label_map = None

    def __init__(self, paths, num_classes=3, **attributes):
        self.paths = paths
        self.metainfo = dict(classes=('x',) * num_classes)
        vars(self).update(attributes)

    def __len__(self):
        return len(self.paths)

    def get_data_info(self, index):
        return dict(seg_map_path=self.paths[index])


class Runner:
    """As much of a runner as the hook looks at."""

    _val_loop = _test_loop = None
    cfg = Config()

    def __init__(self, dataset, num_classes=3):
        self.model = nn.ModuleDict(dict(decode_head=nn.Identity()))
        self.model.decode_head.num_classes = num_classes
        self._train_loop = type('Loop', (), {})()
        self._train_loop.dataloader = type('Loader', (), dict(dataset=dataset))()


def mask(path, *labels):
    Image.fromarray(np.array([labels], np.uint8)).save(path)
    return str(path)


def test_labels_within_the_classes_pass(tmp_path):
    PreflightHook().before_run(Runner(Dataset([mask(tmp_path / 'a.png', 0, 1, 3, 255)])))


def test_a_label_beyond_the_classes_names_the_file(tmp_path):
    dataset = Dataset([mask(tmp_path / 'a.png', 1), mask(tmp_path / 'b.png', 4)])
    with pytest.raises(ValueError, match=r'b\.png has label 3 .*3 classes'):
        PreflightHook().before_run(Runner(dataset))


def test_another_number_of_classes_than_the_head_has_is_an_error(tmp_path):
    dataset = Dataset([mask(tmp_path / 'a.png', 1)])
    with pytest.raises(ValueError, match=r'decode_head.*num_classes=150.*3 classes'):
        PreflightHook().before_run(Runner(dataset, num_classes=150))


def test_a_classifier_s_own_number_of_classes_is_checked(tmp_path):
    runner = Runner(Dataset([mask(tmp_path / 'a.png', 1)]))
    runner.model = nn.Identity()  # without a module that is called head
    runner.model.num_classes = 1000
    with pytest.raises(ValueError, match=r'Identity of the model has num_classes=1000.*3 classes'):
        PreflightHook().before_run(runner)


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match='somewhere has no images'):
        PreflightHook().before_run(Runner(Dataset([])))


def test_classes_without_a_category_are_an_error(tmp_path):
    dataset = Dataset([mask(tmp_path / 'a.png', 1)], cat_ids=[])
    with pytest.raises(ValueError, match='of 3 classes only 0'):
        PreflightHook().before_run(Runner(dataset))


def test_categories_that_are_no_classes_are_told_of(tmp_path, log_messages):
    images_of = {1: [7], 2: [], 3: [7, 8], 4: []}
    dataset = Dataset([mask(tmp_path / 'a.png', 1)], cat_ids=[1, 2, 3], cat_img_map=images_of)
    PreflightHook().before_run(Runner(dataset))
    assert log_messages == [
        'Dataset at somewhere: 1 categories of its annotation file are none of the classes; their objects '
        'are left out'
    ]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('save_memory', [True, False])
@pytest.mark.parametrize(
    'wrap',
    [nn.DataParallel, lambda model: FullyShardedDataParallel(model, device_id=torch.device('cpu'))],
    ids=['DataParallel', 'FullyShardedDataParallel'],
)
def test_a_wrapper_that_hides_parameters_is_refused_for_reversible_training(wrap, save_memory, process_group):
    arch = dict(channels=(8, 16), layers=(1, 1), num_columns=2)
    runner = Runner(Dataset([]))
    runner._train_loop = None
    runner.model = wrap(RevCol(arch, out_indices=(0, 1), save_memory=save_memory))
    if save_memory:
        with pytest.raises(ValueError, match='save_memory=True .*DataParallel, which hides'):
            PreflightHook().before_run(runner)
    else:
        PreflightHook().before_run(runner)
