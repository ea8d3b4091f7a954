"""Counting parameters and FLOPs, the metafiles that record them, and the tables made from the metafiles."""

import copy
import importlib.util
import re
import runpy
import shutil
from pathlib import Path

import modelindex
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from revcol_mm.analysis.complexity import count_complexity
from revcol_mm.check_env import installed_set
from revcol_mm.models.without_weights import without_weights

from .subprocesses import REPO

GET_FLOPS = 'tools/analysis/get_flops.py'
ZOO = runpy.run_path(str(REPO / 'tools/model_zoo.py'))
METAFILES = ZOO['read_metafiles']()
ENTRIES = {model['Name']: model for metafile in METAFILES.values() for model in metafile['Models']}

# Parameters in M and FLOPs in G from the RevCol paper. Its parameters of classifiers are those at inference,
# which tests/test_revcol.py compares.
PUBLISHED = {
    'cascade_mask_rcnn_revcol_t_coco': (88, 741),
    'cascade_mask_rcnn_revcol_s_coco': (118, 833),
    'cascade_mask_rcnn_revcol_b_coco': (196, 988),
    'cascade_mask_rcnn_revcol_l_coco': (330, 1453),
    'upernet_revcol_t_ade20k': (60, 937),
    'upernet_revcol_s_ade20k': (90, 1031),
    'upernet_revcol_l_ade20k': (306, 2610),
    'revcol_t_in1k': (None, 4.5),
    'revcol_s_in1k': (None, 9.0),
    'revcol_b_in1k': (None, 16.6),
    'revcol_l_in1k_finetune': (None, 39),
    'revcol_h_640_in1k_finetune': (None, 2537),
}
# Counting all models takes minutes. These include every kind of model and the largest one.
RECOUNTED = (
    *PUBLISHED,
    'dino_revcol_t_coco',
    'mask2former_revcol_h_ade20k',
)


@pytest.fixture(autouse=True)
def _no_initialization(monkeypatch):
    """Skip random initialization, which takes half the time to build a model."""
    monkeypatch.setattr(torch.nn.init, 'trunc_normal_', lambda tensor, **_: tensor)


@pytest.mark.parametrize('name', RECOUNTED)
def test_metafiles_have_the_counted_sizes(name):
    if name.startswith('dino') and installed_set() == 'onedl':
        pytest.skip("the fork's DINO has more parameters, see the next test")
    assert not ZOO['recount'](copy.deepcopy(ENTRIES[name]))


@pytest.mark.parametrize('name', [name for name in ENTRIES if name not in RECOUNTED])
def test_metafiles_have_the_number_of_parameters(name):
    cfg = Config.fromfile(REPO / ENTRIES[name]['Config'])
    init_default_scope(cfg.default_scope)
    with without_weights():
        model = MODELS.build(cfg.model)
    expected = ENTRIES[name]['Metadata']['Parameters']
    if name.startswith('dino') and installed_set() == 'onedl':
        expected += 512 * 256  # the fork's decoder has a longer encoding of boxes
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize('name', PUBLISHED)
def test_counted_sizes_equal_published_ones(name):
    metadata = ENTRIES[name]['Metadata']
    millions, giga = PUBLISHED[name]
    assert (metadata.get('Published Parameters (M)'), metadata['Published FLOPs (G)']) == (millions, giga)
    assert millions is None or metadata['Parameters'] / 1e6 == pytest.approx(millions, rel=0.01)
    assert metadata['FLOPs'] / 1e9 == pytest.approx(giga, rel=0.01)
    assert not list(ZOO['contradicting_sizes'](ENTRIES[name]))


def test_only_upernet_on_b_has_another_published_size():
    wrong = {name: list(ZOO['contradicting_sizes'](model)) for name, model in ENTRIES.items()}
    assert {name: sizes for name, sizes in wrong.items() if sizes} == {
        'upernet_revcol_b_ade20k': ['122 M', '1169 G'],
        'upernet_revcol_b_in22k_ade20k': ['122 M', '1827 G'],
    }


@pytest.mark.parametrize(
    'config, shape, millions, giga',
    [
        ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', (800, 1280), 47, 279),
        ('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', (512, 512), 44, 71),
    ],
)
def test_flops_of_deformable_attention_equal_published_ones(config, shape, millions, giga):
    """From table 1 of the DINO paper, and table VII in the supplement of the Mask2Former paper."""
    # Not by MMEngine's `get_config`, which does not find the MMSegmentation of the onedl forks.
    package, path = config.split('::')
    folder = Path(importlib.util.find_spec(package).origin).parent / '.mim/configs'
    complexity = count_complexity(Config.fromfile(folder / path), shape)
    assert complexity.parameters.total() / 1e6 == pytest.approx(millions, rel=0.02)
    assert complexity.flops.total() / 1e9 == pytest.approx(giga, rel=0.02)


def test_flops_are_multiply_accumulates_and_grow_with_the_image():
    complexity = count_complexity(Config.fromfile(REPO / 'configs/revcol_t_in1k.py'))
    assert complexity.shape == (224, 224)
    assert complexity.flops['cls_blocks'] == 512 * 1000  # inference runs one of four heads
    cfg = Config.fromfile(REPO / 'tests/configs/retinanet_revcol_nano_sample.py')
    small, large = count_complexity(cfg, (64, 96)), count_complexity(cfg, (128, 192))
    assert large.parameters == small.parameters
    assert large.flops == {part: 4 * small.flops[part] for part in ('backbone', 'neck', 'bbox_head')}


def test_readme_command_prints_parts_and_totals(call_tool):
    (command,) = re.findall(rf'`python ({GET_FLOPS} .*?)`', (REPO / 'README.md').read_text())
    printed, _ = call_tool(*command.split())
    metadata = ENTRIES[command.split('/')[-1].removesuffix('.py')]['Metadata']
    rows = {
        row[0]: tuple(map(float, row[1:]))
        for row in re.findall(r'^(\w+) +([\d.]+) +([\d.]+)$', printed, re.M)
    }
    assert set(rows) == {'backbone', 'decode_head', 'auxiliary_head', 'total'}
    assert rows['total'] == (round(metadata['Parameters'] / 1e6, 2), round(metadata['FLOPs'] / 1e9, 2))
    assert rows['auxiliary_head'][1] == 0
    assert 'multiply-accumulates' in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('configs/nothing.py',), 'error: no config configs/nothing.py'),
        (
            ('configs/revcol_t_in1k.py', '--shape', '0', '224'),
            'error: height and width of the input must be positive, got 0 and 224',
        ),
        (
            ('configs/revcol_t_in1k.py', '--shape', '8', '8'),
            'error: RevCol takes images (B, 3, H, W) with H and W of at least 32, got (1, 3, 8, 8)',
        ),
        (
            ('tests/configs/classifier_revcol_nano_sample.py',),
            'error: tests/configs/classifier_revcol_nano_sample.py: the training pipeline has no crop; '
            'give an input shape',
        ),
    ],
)
def test_get_flops_reports_bad_input_in_one_line(arguments, message, call_tool):
    assert call_tool(GET_FLOPS, *arguments)[1] == message


def test_metafiles_and_tables_are_up_to_date():
    for path, text in ZOO['render'](METAFILES).items():
        assert path.read_text() == text, f'{path} is stale: run python tools/model_zoo.py'


def test_every_config_is_listed_once_and_every_listed_config_exists():
    assert not ZOO['unlisted_configs'](METAFILES)
    metafiles = copy.deepcopy(METAFILES)
    models = next(iter(metafiles.values()))['Models']
    gone, twice = models[0]['Config'], models[1]['Config']
    models[0]['Config'] = twice
    models[2]['Config'] = 'configs/nothing.py'
    assert {gone, twice, 'configs/nothing.py'} < set(ZOO['unlisted_configs'](metafiles))


def test_model_index_has_the_openmmlab_format():
    index = modelindex.load(str(REPO / 'model-index.yml'))
    assert [model.name for model in index.models] == list(ENTRIES)
    assert not index.check(silent=True)
    for model in index.models:
        assert model.full_model.paper['URL'] == 'https://arxiv.org/abs/2212.11696'
        assert model.full_model.metadata.parameters and model.full_model.metadata.flops


def test_results_are_labelled_as_published_and_stated_in_the_configs():
    for model in ENTRIES.values():
        assert model.get('Results Source') == ('published' if 'Results' in model else None)
        heading = ' '.join(re.findall(r'^# (.*)', (REPO / model['Config']).read_text(), re.M))
        for name, value in ZOO['metrics'](model):
            if 'flip' not in name:
                assert str(value) in heading, f'{model["Config"]} does not say {value} {name}'


def test_readme_links_lead_to_sections():
    sections = re.findall(r'^## (.*)', (REPO / 'configs/README.md').read_text(), re.M)
    slugs = {section.lower().replace(' ', '-') for section in sections}
    anchors = re.findall(r'\(configs/README.md#(.*?)\)', (REPO / 'README.md').read_text())
    assert len(anchors) == len(METAFILES) and set(anchors) <= slugs


def test_check_lists_stale_files_and_a_run_updates_them(tmp_path, call_tool):
    name = 'revcol_t_in1k'
    shutil.copytree(REPO / 'configs/_base_', tmp_path / 'configs/_base_')
    for path in ('tools/model_zoo.py', f'configs/{name}.py'):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / path, tmp_path / path)
    (tmp_path / 'model-index.yml').write_text('Import: [configs/metafiles/one.yml]')
    (tmp_path / 'configs/metafiles').mkdir()
    metafile = dict(Collections=[dict(Name='One')], Models=[copy.deepcopy(ENTRIES[name])])
    metafile['Models'][0]['Metadata'].update(FLOPs=1)
    (tmp_path / 'configs/metafiles/one.yml').write_text(yaml.safe_dump(metafile))
    (tmp_path / 'README.md').write_text('# One\n<!-- table: summary -->\nold\n<!-- end -->\nend\n')
    (tmp_path / 'configs/README.md').write_text('# One\n<!-- table: one -->\n<!-- end -->\n')

    tool = str(tmp_path / 'tools/model_zoo.py')
    names = f'{name}, configs/metafiles/one.yml, README.md, configs/README.md'
    assert call_tool(tool, '--check')[1] == f'error: stale: {names}; run: python tools/model_zoo.py'
    assert f'written: {names}' in call_tool(tool)[0]
    assert '1 models are up to date' in call_tool(tool, '--check')[0]
    written = yaml.safe_load((tmp_path / 'configs/metafiles/one.yml').read_text())
    assert written['Models'] == [ENTRIES[name]]
    readme = (tmp_path / 'README.md').read_text()
    assert 'old' not in readme and readme.endswith('<!-- end -->\nend\n') and '82.2 Top 1 Accuracy' in readme
