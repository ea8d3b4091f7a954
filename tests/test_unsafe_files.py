"""Configs that name pickles or YAML files as data are refused, because reading these may run code."""

import pickle
import re
from pathlib import Path

import pytest

from revcol_mm.apis import init_model
from revcol_mm.config.command_line import read_config
from revcol_mm.errors import PreflightError
from revcol_mm.preflight import check_files


@pytest.mark.parametrize(
    'name, format',
    [
        ('a.pkl', 'a pickle'),
        ('a.pickle', 'a pickle'),
        ('a.yaml', 'YAML'),
        ('a.yml', 'YAML'),
        ('pkl', 'a pickle'),  # MMEngine takes the name for a suffix
        ('b/pkl', None),
    ],
)
def test_annotation_file_in_an_unsafe_format_is_refused(name, format, coco, tmp_path):
    coco.val_dataloader.dataset.ann_file = name
    (tmp_path / 'b').mkdir()
    (tmp_path / name).write_bytes(pickle.dumps([]))
    if format is None:
        check_files(coco, ('val_dataloader',))
        return
    message = f'{name} is {format}, which may run code as it is read: convert it to JSON'
    with pytest.raises(FileNotFoundError) as error:
        check_files(coco, ('val_dataloader',))
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
def test_unsafe_file_or_class_is_refused_anywhere_in_a_config(place, value, message, wrapped, coco, tmp_path):
    coco.model = dict(decode_head=dict(loss_decode=dict()))
    coco.val_evaluator = [dict(type='CocoMetric')]
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps([]))
    check_files(coco, ('val_dataloader',))
    coco.merge_from_dict({place: value})
    if wrapped:
        inner, coco.val_dataloader.dataset = coco.val_dataloader.dataset, None
        coco.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner])
        place = place.replace('dataset.', 'dataset.datasets.0.', 1)
    with pytest.raises(FileNotFoundError, match=rf'^.*{message}.* \({place}') as error:
        check_files(coco, ('val_dataloader',))
    if value != 'CocoOccludedSeparatedMetric':  # has two such files
        assert '\n' not in str(error.value)
    if not place.startswith('model'):
        check_files(coco, ())  # passes, because the file will not be read


def test_model_is_not_built_from_a_pickle(in_repo, tmp_path, trap):
    cfg = read_config('configs/upernet_revcol_nano_sample.py')
    cfg.model.decode_head.loss_decode.class_weight = str(tmp_path / 'a.pkl')
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(trap.pickled()))
    with pytest.raises(PreflightError, match=r'a\.pkl is a pickle.*\(model\.decode_head\.loss_decode\.class'):
        init_model(cfg, device='cpu')
    assert not trap.has_run()


def test_output_files_class_names_checkpoints_and_text_files_pass(coco, tmp_path):
    names = dict(metainfo=dict(classes=('pickle', 'a.yaml')), classes=['pkl'])
    coco.val_dataloader.dataset.update(ann_file='val.txt', **names)
    (tmp_path / 'val.txt').write_text('val/val_0.png 0\n')
    coco.val_evaluator = [
        dict(type='DumpResults', out_file_path='out/predictions.pkl'),
        dict(type='DumpProposals', proposals_file='proposals.pkl'),
        dict(type='CocoOccludedSeparatedMetric', occluded_ann='a.json', separated_ann='b.json'),
    ]
    coco.model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='weights.pkl')))
    check_files(coco, ('val_dataloader',))


UNSAFE_READS = re.compile(
    r'file_format=.pkl|pickle\.loads?\(|allow_pickle=True|\byaml\.(?:unsafe_|full_)?load\(|\beval\(|\bexec\('
)
# Files of OpenMMLab that unpickle or evaluate, and why that is safe or where it is refused.
KNOWN_READS = {
    'mmdet/datasets/openimages.py': 'UNSAFE_CLASSES',
    'mmdet/datasets/refcoco.py': 'UNSAFE_CLASSES',
    'mmpretrain/datasets/refcoco.py': 'UNSAFE_CLASSES',
    'mmpretrain/datasets/cifar.py': 'files are checked against known hashes',
    'mmpretrain/datasets/transforms/processing.py': "evaluates the config's own text",
    'mmdet/evaluation/metrics/base_video_metric.py': 'reads what other processes of the run wrote',
    'mmdet/evaluation/functional/class_names.py': 'evaluates names of data sets given by programmers',
}


def test_openmmlab_unpickles_or_evaluates_only_in_known_files():
    """Fails if a version of OpenMMLab does so elsewhere, which UNSAFE_CLASSES may then have to list."""
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
