"""Every config builds, and its values are consistent with each other, the model and the data set."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from revcol_mm import RevCol
from revcol_mm.analysis.complexity import count_complexity
from revcol_mm.models import ReversibleColumns
from revcol_mm.preflight.batch_norm import check_batch_norm
from revcol_mm.preflight.metrics import check_metrics
from revcol_mm.preflight.schedule import check_schedule

from .bare_runner import bare_runner, check_model, metainfo
from .subprocesses import REPO

CONFIGS = sorted((REPO / 'configs').glob('*.py'))


def test_configs_are_found():
    assert len(CONFIGS) > 50


LETTERS = dict(nano='nano', t='tiny', s='small', b='base', l='large', xl='xlarge', h='huge')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_builds_and_is_consistent(path, log_messages, monkeypatch):
    cfg = Config.fromfile(path)
    runner = bare_runner(cfg)
    del log_messages[:]
    check_model(runner)
    check_metrics(runner)
    check_schedule(runner)
    monkeypatch.setattr('revcol_mm.preflight.batch_norm.get_world_size', lambda: 8)  # as in the recipes
    check_batch_norm(runner)
    assert log_messages == []
    backbone = runner.model.backbone
    if 'revcol_' in path.stem:
        assert isinstance(backbone, RevCol)
        assert cfg.model.backbone.arch == LETTERS[path.stem.split('revcol_')[1].split('_')[0]]
    else:
        assert isinstance(backbone, ReversibleColumns) and backbone.num_columns == 2
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.optim_wrapper.constructor == 'LayerDecayOptimWrapperConstructor'
    assert 0 < cfg.optim_wrapper.paramwise_cfg.decay_rate <= 1
    if cfg.load_from:  # a checkpoint of another config
        assert (REPO / 'configs' / f'{cfg.load_from.split("/")[1]}.py').is_file()
    for split, pipeline in (
        ('train', cfg.train_pipeline),
        ('val', cfg.test_pipeline),
        ('test', cfg.test_pipeline),
    ):
        assert cfg[f'{split}_dataloader'].dataset.pipeline == pipeline
        assert pipeline[0].type == 'LoadImageFromFile' and pipeline[-1].type.startswith('Pack')
    check = dict(mmseg=check_segmentor, mmdet=check_detector, mmpretrain=check_classifier)[cfg.default_scope]
    check(cfg, backbone)


def check_segmentor(cfg, backbone):
    head = cfg.model.decode_head
    if head.type == 'SemanticMask2FormerHead':
        assert head.strides == list(backbone.out_strides)
    if cfg.model.test_cfg.mode == 'slide':
        assert cfg.model.test_cfg.crop_size == cfg.crop_size
        assert cfg.model.test_cfg.stride[0] == cfg.crop_size[0] * 2 // 3
    (crop,) = [t.crop_size for t in cfg.train_pipeline if t.type == 'RandomCrop']
    assert tuple(crop) == tuple(cfg.model.data_preprocessor.size)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build({**loader.dataset, 'lazy_init': True})
        assert dataset.reduce_zero_label == ('ade' in cfg.data_root)
    assert cfg.val_evaluator.type == 'IoUMetric'
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end


def check_mask2former(cfg, backbone):
    head, fusion = cfg.model.panoptic_head, cfg.model.panoptic_fusion_head
    assert head.in_channels == list(backbone.out_channels)
    assert head.strides == list(backbone.out_strides)
    numbers = [head.num_things_classes, head.num_stuff_classes]
    assert numbers == [fusion.num_things_classes, fusion.num_stuff_classes]
    assert sum(numbers) == len(metainfo(cfg)['classes'])
    evaluators = cfg.val_evaluator if numbers[1] else [cfg.val_evaluator]
    assert [each.type for each in evaluators] == ['CocoPanopticMetric', 'CocoMetric'][-len(evaluators) :]
    assert all(each.ann_file.startswith(cfg.data_root) for each in evaluators)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters


def check_detector(cfg, backbone):
    assert cfg.train_dataloader.dataset.data_root == cfg.val_dataloader.dataset.data_root == cfg.data_root
    if cfg.model.type == 'Mask2Former':
        check_mask2former(cfg, backbone)
        return
    if cfg.model.type == 'DINO':
        assert cfg.model.neck.num_outs == len(backbone.out_channels) + 1
    with_mask = cfg.model.get('roi_head', {}).get('mask_head') is not None
    loads = [t for t in (*cfg.train_pipeline, *cfg.test_pipeline) if t.type == 'LoadAnnotations']
    assert [load.get('with_mask', False) for load in loads] == [with_mask] * 2
    for evaluator, loader in (
        (cfg.val_evaluator, cfg.val_dataloader),
        (cfg.test_evaluator, cfg.test_dataloader),
    ):
        assert evaluator.metric == (['bbox', 'segm'] if with_mask else 'bbox')
        assert evaluator.ann_file == cfg.data_root + loader.dataset.ann_file
    last = cfg.param_scheduler[-1]
    if last.type == 'LinearLR':  # RevCol-H: constant after the warm-up
        assert last.end == 500
    else:
        assert last.end == (cfg.train_cfg.max_epochs if last.by_epoch else cfg.train_cfg.max_iters)


def check_classifier(cfg, backbone):
    dataset = Path(cfg.filename).stem.removesuffix('_finetune').split('_')[-1]
    assert cfg.model.num_classes == dict(in1k=1000, in22k=21841, sample=10)[dataset]
    assert backbone.out_indices[-1] == len(backbone.channels) - 1
    assert cfg.val_evaluator.type == 'Accuracy'


BASELINES = sorted((REPO / 'configs/baselines').glob('*_camvid.py'))


@pytest.mark.parametrize('path', BASELINES, ids=lambda path: path.stem)
def test_baselines_differ_from_revcol_only_in_the_backbone_of_similar_size(path):
    ours, theirs = (Config.fromfile(each) for each in (REPO / 'configs/upernet_revcol_nano_camvid.py', path))
    counts = [count_complexity(cfg, (256, 256)) for cfg in (ours, theirs)]
    for kind in ('parameters', 'flops'):
        revcol, other = (getattr(count, kind)['backbone'] for count in counts)
        assert other == pytest.approx(revcol, rel=0.15), kind
    for cfg in (ours, theirs):
        del cfg.model.backbone, cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels
        for helper in ('channels', 'convnext', 'convnext_channels'):
            cfg.pop(helper, None)
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize('data, variable', [('camvid', 'CAMVID'), ('bccd', 'BCCD')])
@pytest.mark.parametrize('root', [None, '/elsewhere'])
def test_environment_variable_sets_the_data_folder(data, variable, root, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    if root:
        monkeypatch.setenv(variable, root)
    paths = [path for path in CONFIGS if path.stem.endswith(f'_{data}')]
    assert paths
    for path in paths:
        cfg = Config.fromfile(path)
        for split in ('train', 'val', 'test'):
            assert cfg[f'{split}_dataloader'].dataset.data_root.rstrip('/') == (root or f'data/{data}')


def test_readme_snippet_puts_revcol_into_a_detector_of_mmdetection(tmp_path):
    (snippet,) = re.findall(r'```python\n(.*?)```', (REPO / 'README.md').read_text(), re.S)
    (tmp_path / 'user.py').write_text(snippet)
    cfg = Config.fromfile(tmp_path / 'user.py')
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    outputs = model.extract_feat(torch.rand(1, 3, 64, 64))
    assert [tuple(output.shape[-2:]) for output in outputs] == [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == 'AdamW' and optimizer.defaults['lr'] == 1e-4
    assert {group['lr_scale'] for group in optimizer.param_groups} >= {0.85**13, 0.85, 1.0}
