"""tools/analysis/benchmark_published.py on a replacement of the published code."""

import re

import pytest

from .subprocesses import run

TOOL = 'tools/analysis/benchmark_published.py'
PUBLISHED_CODE = """
import imp
from timm.models.layers import trunc_normal_
from revcol_mm import RevCol

class FullNet(RevCol):
    def forward(self, x):
        return [self.cls(super().forward(x)[0])], None

def revcol_tiny(save_memory, inter_supv=True, drop_path=0.1):
    return FullNet('tiny', drop_path_rate=drop_path, save_memory=save_memory, out_indices=(3,))
"""


@pytest.mark.slow
def test_tool_compares_outputs_and_prints_ratios(tmp_path):
    (tmp_path / 'models').mkdir()
    code = tmp_path / 'models/revcol.py'
    code.write_text(PUBLISHED_CODE)
    options = (tmp_path, 'tiny', '--size', 32, 64, '--batch-size', 1, '--repeats', 1, '--device', 'cpu')
    *_, row = run(TOOL, *options).splitlines()
    assert re.fullmatch(r'\| tiny (\| \d+\.\d\d ){5}\|', row)
    code.write_text(PUBLISHED_CODE.replace('(x)[0])]', '(x)[0] + 1)]'))
    assert 'Tensor-likes are not close' in run(TOOL, *options, expect=1)


def test_folder_without_the_published_code_is_an_error(tmp_path):
    assert 'is no checkout of megvii-research/RevCol' in run(TOOL, tmp_path, 'tiny', expect=1)
