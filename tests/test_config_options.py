"""--cfg-options: misspelt keys are errors, and keys that the config or its classes know are accepted.

Also what other arguments of `revcol train` change in a config.
"""

import sys

import pytest
from mmengine.config import Config

from revcol_mm.cli import train
from revcol_mm.config.options import merge_options, warn_about_misspelt_keys
from revcol_mm.preflight import files
from revcol_mm.training.runner import ResumableRunner

from .subprocesses import REPO


@pytest.fixture
def cfg():
    return Config.fromfile(REPO / 'configs/mask2former_revcol_b_ade20k.py')


@pytest.mark.parametrize(
    'key',
    [
        'train_cfg.max_iters',
        'model.backbone.save_memory',  # not in the config, but an argument of RevCol
        'train_dataloader.dataset.indices',  # an argument that ADE20KDataset passes to its base class
        'train_dataloader.dataset.pipeline.2.ratio_range',
        'randomness',
        'work_dir',
        # Documented keys of dicts without a type
        'model.test_cfg.crop_size',
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
        'find_unused_parameters',
        'sync_bn',
        'activation_checkpointing',
        'efficient_conv_bn_eval',
        'val_cfg.fp16',
        'train_cfg.by_epoch',
        'train_dataloader.max_broken',
        'val_dataloader.prefetch_factor',
    ],
)
def test_known_keys_are_set(cfg, key):
    merge_options(cfg, {key: 7})
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == 7


@pytest.mark.parametrize(
    'key, message',
    [
        ('train_confg.max_iters', "no 'train_confg'.*train_cfg"),
        ('train_cfg.max_iter', "train_cfg has no 'max_iter'.*max_iters"),
        ('model.backbone.drop_path', "no 'drop_path'.*drop_path_rate"),
        ('train_dataloader.dataset.data_rot', "no 'data_rot'.*data_root"),
        ('train_pipeline.9.prob', "train_pipeline has 7 elements, but no '9'"),
        ('num_classes.x', 'num_classes is 150, not a dict'),
        ('model.backbone.arch.channels', "is 'base', not a dict"),
        ('trian_dataloader.batch_size', 'train_dataloader'),
        ('train_dataloader.batchsize', "no 'batchsize'.*batch_size"),
        ('val_dataloader.max_broken', "no 'max_broken'"),
        ('optim_wrapper.optimiser.lr', 'optimizer'),
        ('param_scheduler.0', 'give the whole list'),
        ('model..arch', "no ''"),
        ('', "no ''"),
        # Dicts without a type
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
def test_unknown_keys_are_errors_that_suggest_similar_ones(cfg, key, message):
    with pytest.raises(ValueError, match=message):
        merge_options(cfg, {key: 1})


def test_a_key_that_may_have_no_effect_is_a_warning(cfg, log_messages):
    merge_options(cfg, {'model.test_cfg.anything': 1, 'model.test_cfg.stride': 2})
    assert [message for message in log_messages if 'cfg-options' in message] == [
        "--cfg-options model.test_cfg.anything: model.test_cfg had no 'anything'; it may have no effect"
    ]


def test_a_misspelt_key_of_a_config_is_a_warning(cfg, log_messages):
    warn_about_misspelt_keys(cfg)
    assert log_messages == []
    cfg.custom_hook = [dict(type='EMAHook')]
    warn_about_misspelt_keys(cfg)
    assert log_messages == [f'{cfg.filename}: custom_hook is not used; did you mean custom_hooks?']


def test_arguments_of_a_model_with_supervision_are_known():
    cfg = Config.fromfile(REPO / 'configs/upernet_revcol_nano_supervised_sample.py')
    merge_options(cfg, {'model.pretrained': None})
    with pytest.raises(ValueError, match="model has no 'decode_hed'; it has decode_head"):
        merge_options(cfg, {'model.decode_hed': 1})


def test_options_may_change_a_type_or_add_a_hook(cfg):
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


@pytest.fixture
def train_config(tmp_path, monkeypatch):
    """A function that returns the config from which `revcol train` builds its runner; no data are needed."""
    built = []

    class Built:
        def train(self): ...

    monkeypatch.setattr(files, 'missing_data', lambda *_: {})
    monkeypatch.setattr(ResumableRunner, 'from_cfg', lambda cfg: built.append(cfg) or Built())

    def configure(content, *arguments):
        path = tmp_path / 'config.py'
        path.write_text(f"_base_ = ['{REPO}/configs/upernet_revcol_nano_sample.py']\n{content}")
        monkeypatch.setattr(
            sys, 'argv', ['train', str(path), '--work-dir', str(tmp_path / 'run'), *arguments]
        )
        train.main()
        return built.pop()

    return configure


def test_resuming_keeps_load_from_for_a_new_run_and_does_not_need_it(train_config, tmp_path):
    cfg = train_config("load_from = 'gone.pth'", '--resume')
    assert (cfg.resume, cfg.load_from) == ('auto', 'gone.pth')
    named = tmp_path / 'iter_1.pth'
    named.touch()
    cfg = train_config("load_from = 'gone.pth'", '--resume', str(named))
    assert (cfg.resume, cfg.load_from) == (True, str(named))


def test_seed_and_deterministic_keep_the_other_randomness(train_config):
    content = 'randomness = dict(seed=1, diff_rank_seed=True)'
    assert train_config(content).randomness == dict(seed=1, diff_rank_seed=True)
    cfg = train_config(content, '--seed', '5')
    assert cfg.randomness == dict(seed=5, diff_rank_seed=True)
    cfg = train_config(content, '--deterministic')
    assert cfg.randomness == dict(seed=1, diff_rank_seed=True, deterministic=True)


@pytest.mark.parametrize(
    'hook, expected', [('None', None), ("dict(type='LoadFromHook', strict=True)", True)], ids=str
)
def test_load_from_hook_of_a_config_is_kept(hook, expected, train_config):
    hook = train_config(f'default_hooks = dict(load_from={hook})').default_hooks.load_from
    assert (hook and hook.strict) is expected
