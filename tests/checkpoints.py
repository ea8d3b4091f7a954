"""Small models, checkpoints of them in every layout, and pickled code, for tests of checkpoints."""

import builtins
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from revcol_mm import LoadFromHook, RevCol

SMALL = dict(channels=(8, 16, 24, 32), layers=(1, 1, 1, 1), num_columns=2)


class Segmentor(BaseModel):
    """A minimal model with OpenMMLab's layout."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.backbone = RevCol(arch=SMALL)
        self.decode_head = torch.nn.Conv2d(8, num_classes, 1)
        self.norm = torch.nn.BatchNorm2d(1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.decode_head(self.backbone(inputs)[0])


def randomize(model):
    """Give all parameters random values, so that no two are equal."""
    for param in model.parameters():
        torch.nn.init.normal_(param)
    return model


def assert_same_weights(weights, expected):
    """Check that two state dicts have equal keys and bitwise equal tensors."""
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


def assert_same_features(model, expected):
    """Compare two models on one image."""
    image = torch.rand(1, 3, 64, 64)
    for feature, expected_feature in zip(model.eval()(image), expected.eval()(image)):
        torch.testing.assert_close(feature, expected_feature, rtol=1e-4, atol=1e-4)


def save_published(path, weights, **others):
    """Write a checkpoint as RevCol's authors do, with a pickled yacs config and a pickled builtin."""
    yacs = types.ModuleType('yacs.config')
    yacs.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    config = yacs.CfgNode(MODEL=yacs.CfgNode(TYPE='revcol_tiny'))
    config.frozen = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', yacs)
        others = {'config': config, 'input': builtins.input, 'epoch': 299, 'lr': [0.1], **others}
        torch.save({'model': weights, **others}, path)
    return path


def save_mmcv1(path, model):
    """Write a checkpoint as MMCV 1 does."""
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    meta = dict(mmcv_version='1.7.0', CLASSES=('wall', 'sky'), epoch=36)
    optimizer = dict(state={0: dict(step=3)}, param_groups=[dict(lr=1e-4, params=[0])])
    torch.save(dict(meta=meta, state_dict=weights, optimizer=optimizer), path)
    return path


def load_from(source, model, work_dir, *hooks, strict=False):
    """Load a checkpoint as MMEngine's Runner does for ``load_from``; return the text of the log."""
    runner = Runner(model, str(work_dir), load_from=str(source), experiment_name=str(work_dir))
    for hook in (LoadFromHook(strict), *hooks):
        runner.register_hook(hook)
    runner.call_hook('before_run')
    runner.load_or_resume()
    return ''.join(path.read_text() for path in Path(runner.log_dir).glob('*.log'))


class Pickled:
    """An object whose unpickling calls ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Trap:
    """Code that leaves a file when it is run.

    Args:
        folder: Where the file is left.
    """

    def __init__(self, folder):
        self.file = folder / 'it_ran'
        self.code = f'open({str(self.file)!r}, "w").close()'

    def pickled(self, function=eval):
        """Return an object whose unpickling runs the code.

        Args:
            function: ``eval``, ``exec``, ``os.system`` or ``subprocess.call``.
        """
        commands = {os.system: f'touch {self.file}', subprocess.call: ['touch', str(self.file)]}
        return Pickled(function, commands.get(function, self.code))

    def has_run(self):
        """Return whether the code has run since the last call."""
        has_run = self.file.exists()
        self.file.unlink(missing_ok=True)
        return has_run
