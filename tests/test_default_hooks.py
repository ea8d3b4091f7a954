"""A hook of `default_hooks` is removed by None, whether it is MMEngine's or not."""

import pytest
from mmengine.runner import Runner

from revcol_mm.training.runner import MMENGINE_HOOKS, ResumableRunner

from .tiny_runs import make


def types(runner):
    return {type(hook).__name__ for hook in runner.hooks}


def test_hooks_of_this_package_are_removed(tmp_path):
    hooks = dict(nonfinite=dict(type='NonFiniteHook'), preflight=dict(type='PreflightHook'))
    assert {'NonFiniteHook', 'PreflightHook'} <= types(make(tmp_path, default_hooks=hooks))
    removed = types(make(tmp_path, default_hooks=dict.fromkeys(hooks)))
    assert not {'NonFiniteHook', 'PreflightHook'} & removed
    assert 'IterTimerHook' in removed


@pytest.mark.parametrize('name', MMENGINE_HOOKS)
def test_hooks_of_mmengine_are_removed(name, tmp_path):
    assert (
        len(make(tmp_path, default_hooks={name: None}).hooks)
        == len(make(tmp_path, default_hooks={}).hooks) - 1
    )


def test_mmengine_refuses_none_for_other_names():
    """If it no longer does, `ResumableRunner.register_default_hooks` can be removed."""
    with pytest.raises(AssertionError):
        Runner.register_default_hooks(ResumableRunner.__new__(ResumableRunner), dict(nonfinite=None))
