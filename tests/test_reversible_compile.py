"""torch.compile of models that train plainly or reversibly."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from revcol_mm.ops import call

from .test_reversible import compare, pair

SHALLOW = dict(channels=(8, 16), layers=(1, 1), num_columns=3)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    """Other tests may have reached the limit on variants of a function, above which it is not compiled."""
    torch._dynamo.reset()


def test_compiled_plain_training_is_a_single_graph_with_the_same_gradients(device):
    _, model = pair('spread', arch=SHALLOW, out_indices=(0, 1), device=device)
    model.save_memory = False
    compiled = copy.deepcopy(model)
    compiled.compile(backend='aot_eager', fullgraph=True)
    compare(model, compiled, torch.randn(1, 3, 32, 32, device=device))


def test_compiled_reversible_training_compiles_levels_and_gives_the_same_gradients(monkeypatch, device):
    plain, model = pair('spread', arch=SHALLOW, out_indices=(0, 1), device=device)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(call._apply, backend=counter)
    monkeypatch.setattr(call, '_compiled', lambda: compiled)
    model.compile(backend='aot_eager')
    for _ in range(2):
        compare(plain, model, torch.randn(1, 3, 32, 32, device=device))
    # Both levels of the first column, and the lower level of the others, which also reads the level above;
    # forward and backward share them.
    assert counter.frame_count == 3
    for graph in counter.graphs:
        assert 'conv2d' in graph.code
        assert 'layer_norm' in graph.code
        assert 'gelu' in graph.code
