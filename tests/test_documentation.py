"""The documentation's code runs, and its commands are ones that there are."""

import re
import shlex
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from revcol_mm.check_env import installed_set

from .subprocesses import REPO, run

PAGES = [REPO / 'README.md', REPO / 'CONTRIBUTING.md', *sorted((REPO / 'docs').rglob('*.md'))]
PARSERS = ('revcol_mm/engine/launch.py', 'revcol_mm/analysis/command_line.py')  # what tools share
# The tutorials' runs made small: random weights, two pictures, one iteration; the demo gets one picture.
SMALL = (
    'model.backbone.init_cfg=None',
    'train_dataloader.dataset.indices=2',
    'val_dataloader.dataset.indices=1',
    'test_dataloader.dataset.indices=1',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
)


def blocks(page, language):
    """The code blocks of a page."""
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.S | re.M)


def commands(page):
    """The Python commands of a page, split into words."""
    lines = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines()
    lines = [re.sub(r'^(\w+=\S+ )+', '', line) for line in lines]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_there_are_pages_with_commands():
    assert len(PAGES) > 10 and sum(len(commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_name_tools_configs_and_options_that_there_are(page):
    own = {code.splitlines()[0].removeprefix('# ') for code in blocks(page, 'python')}
    for _, *words in [words for words in commands(page) if words[0] == 'python']:
        if words[0] == '-m':
            continue
        assert (REPO / words[0]).is_file(), words
        options = {'--'}
        for path in (words[0], *PARSERS):
            options |= set(re.findall(r"'(--[\w-]+)'", (REPO / path).read_text()))
        for word in words[1:]:
            if word == 'python':  # a command within a command
                break
            if word.startswith('--'):
                assert word in options, f'{words[0]} has no {word}'
            elif word.startswith('configs/'):
                assert word in own or (REPO / word).is_file(), word


@pytest.mark.parametrize(
    'name, options',
    [
        (
            'detection',
            (
                'train_cfg.max_epochs=1',
                *(
                    f'train_dataloader.dataset.pipeline.3.transforms.{place}.scales=[(96,128)]'
                    for place in ('0.0', '1.0', '1.2')
                ),
                'val_dataloader.dataset.pipeline.1.scale=(128,96)',
                'test_dataloader.dataset.pipeline.1.scale=(128,96)',
            ),
        ),
        (
            'segmentation',
            (
                'train_cfg.max_iters=1',
                'train_cfg.val_interval=1',
                'default_hooks.checkpoint.interval=1',
                'model.test_cfg.mode=whole',
                'val_dataloader.dataset.pipeline.1.scale=(256,64)',
                'test_dataloader.dataset.pipeline.1.scale=(256,64)',
            ),
        ),
    ],
)
def test_a_tutorial_runs_from_clone_to_predictions(name, options, sample_data, tmp_path):
    """All of its commands, in its order, in a copy of what they need."""
    page = REPO / f'docs/tutorials/{name}.md'
    for folder in ('configs', 'tools'):
        shutil.copytree(REPO / folder, tmp_path / folder)
    for code in blocks(page, 'python'):
        (tmp_path / code.splitlines()[0].removeprefix('# ')).write_text(code)
    (tmp_path / 'data').mkdir()
    ran = []
    for program, *words in commands(page):
        if program in ('make', 'source'):
            continue
        words = [re.sub(r'(epoch|iter)_\d+\.pth', r'\1_1.pth', word) for word in words]
        if program in ('mkdir', 'cp'):
            shutil_as(program, *[tmp_path / word for word in words if not word.startswith('-')])
            continue
        assert program == 'python'
        ran.append(words[0])
        if words[0] == 'tools/prepare_sample_data.py':
            shutil.copytree(sample_data, tmp_path / words[1])
        else:
            small = (
                ('--cfg-options', *SMALL, *options) if words[0] in ('tools/train.py', 'tools/test.py') else ()
            )
            if words[0] == 'tools/demo.py':
                words[1] = sorted((tmp_path / words[1]).iterdir())[0]
            run(*words, *small, cwd=tmp_path)
    assert ran[1:] == [f'tools/{tool}.py' for tool in ('analysis/browse_dataset', 'train', 'test', 'demo')]
    assert list(tmp_path.glob('work_dirs/*/demo/**/*.jpg')) or list(
        tmp_path.glob('work_dirs/*/demo/**/*.png')
    )


def shutil_as(program, *paths):
    """What ``mkdir -p`` and ``cp -r`` do with what is not there yet."""
    if program == 'mkdir':
        paths[0].mkdir(parents=True)
    elif paths[0].is_dir():
        shutil.copytree(*paths)
    else:
        shutil.copy(*paths)


@pytest.mark.parametrize('number, scope', enumerate(['mmdet', 'mmseg', 'mmpretrain']))
def test_configs_of_one_s_own_build_and_run(number, scope, tmp_path):
    if scope == 'mmseg' and installed_set() == 'onedl':
        pytest.skip('mmseg:: does not resolve there, as the page says')
    code = blocks(REPO / 'docs/tutorials/backbone.md', 'python')[number]
    path = tmp_path / 'config.py'
    path.write_text(code)
    cfg = Config.fromfile(path)
    init_default_scope(scope)
    model = MODELS.build(cfg.model).eval()
    features = model.extract_feat(torch.rand(1, 3, 64, 64))
    assert type(model.backbone).__name__ == 'RevCol' and features


def test_the_column_of_one_s_own_trains_reversibly():
    code = '\n'.join(blocks(REPO / 'docs/tutorials/column.md', 'python'))
    training = 'sum(f.mean() for f in model(torch.rand(1, 3, 64, 64))).backward()'
    assert 'reconstruction_error=0.0' in run('-c', f'{code}\n{training}')
