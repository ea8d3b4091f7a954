"""Properties of any architecture, image size, checkpoint and option, with examples drawn by hypothesis."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('hypothesis')
from hypothesis import given, settings
from hypothesis import strategies as st

from revcol_mm import RevCol
from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.layouts import model_weights, published_layout
from revcol_mm.checkpoints.reading import plain, read_checkpoint
from revcol_mm.checkpoints.writing import save_checkpoint
from revcol_mm.config.options import merge_options
from revcol_mm.testing import gradients, worst_errors

from .checkpoints import assert_same_weights

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)
many = settings(few, max_examples=100)


@st.composite
def archs(draw):
    """Draw an ``arch`` dict with 1 to 4 levels and 1 to 4 columns."""
    num_levels = draw(st.integers(1, 4))

    def per_level(numbers):
        return tuple(draw(st.lists(numbers, min_size=num_levels, max_size=num_levels)))

    arch = dict(
        channels=per_level(st.integers(2, 12)),
        layers=per_level(st.integers(1, 3)),
        num_columns=draw(st.integers(1, 4)),
    )
    if num_levels > 2 and draw(st.booleans()):
        arch['level_connection'] = 'huge'
    return arch


@st.composite
def backbones(draw, **arguments):
    """Draw a backbone with any architecture and random weights."""
    arch = draw(archs())
    levels = st.integers(-len(arch['channels']), len(arch['channels']) - 1)
    torch.manual_seed(draw(st.integers(0, 9)))
    return RevCol(
        arch,
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        out_indices=draw(st.lists(levels, min_size=1, max_size=4)),
        layer_scale_init_value=0.5,
        **arguments,
    )


@few
@given(backbones(), st.integers(1, 2), st.integers(0, 20), st.integers(0, 20))
def test_features_have_the_documented_shapes(backbone, batch, more_height, more_width):
    height, width = backbone.min_size + more_height, backbone.min_size + more_width
    features = backbone.eval()(torch.rand(batch, 3, height, width))
    assert len(features) == len(backbone.out_indices)
    for feature, index, channels, stride in zip(
        features, backbone.out_indices, backbone.out_channels, backbone.out_strides, strict=True
    ):
        assert channels == backbone.channels[index] and stride == 4 * 2**index
        assert feature.shape == (batch, channels, height // stride, width // stride)
        assert feature.isfinite().all()


@few
@given(backbones(save_memory=True), st.integers(0, 12))
def test_reversible_gradients_equal_plain_ones(backbone, more):
    backbone.double().train()
    image = torch.rand(1, 3, backbone.min_size + more, backbone.min_size).double()
    with torch.no_grad():
        weights = [torch.randn_like(feature) for feature in backbone(image)]
    reversible = gradients(backbone, image, weights)
    backbone.save_memory = False
    (worst, name), *_ = worst_errors(reversible, gradients(backbone, image, weights))
    assert worst < 1e-6, name


@few
@given(archs(), st.sampled_from(['', 'backbone.', 'module.backbone.']))
def test_parameter_depths_rise_through_the_network_without_gaps(arch, prefix):
    backbone = RevCol(arch, out_indices=(0,))
    depths = {}
    for name, _ in backbone.named_parameters():
        depths[name], number = backbone.get_layer_depth(prefix + name, prefix)
        assert number == sum(backbone.layers) + backbone.num_columns + 1
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    assert max(depths.values()) == sum(backbone.layers) + backbone.num_columns - 1
    assert all((depth == 0) == name.startswith('stem.') for name, depth in depths.items())
    for index in range(1, backbone.num_columns):
        for name, depth in depths.items():
            if name.startswith(f'subnet{index}.'):
                before = name.replace(f'subnet{index}', f'subnet{index - 1}', 1)
                assert before not in depths or depths[before] == depth - 1


@few
@given(backbones(), st.sampled_from(['.pth', '.safetensors']), st.booleans(), st.booleans())
def test_saving_and_loading_preserves_weights(backbone, suffix, published, module):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')
    state = backbone.state_dict()
    prefix = 'module.' if module else ''
    weights = model_weights({'model': {prefix + name: weight for name, weight in state.items()}})
    checkpoint = published_layout(weights, {}) if published else {'meta': {}, 'state_dict': weights}
    with TemporaryDirectory() as folder:
        path = save_checkpoint(checkpoint, Path(folder, f'a{suffix}'), name_hash=published)
        again = model_weights(read_checkpoint(path))
        assert_same_weights(again, weights)
        for parameter in backbone.parameters():
            parameter.data = torch.zeros_like(parameter)
        load_backbone(backbone, path)
    assert all(torch.equal(backbone.state_dict()[name], weights[f'backbone.{name}']) for name in state)


@many
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.complex_numbers(),
        lambda parts: (
            st.lists(parts) | st.dictionaries(st.text() | st.integers(), parts) | st.tuples(parts, parts)
        ),
        max_leaves=20,
    )
)
def test_any_value_of_a_checkpoint_becomes_json(value):
    converted = plain(value)
    assert plain(converted) == converted
    json.dumps(converted)


KEYS = st.text('abcxyz_', min_size=1, max_size=6).filter(lambda key: key not in ('_base_', '_delete_'))
TREES = st.recursive(
    st.integers() | st.text(max_size=4) | st.none(),
    lambda parts: st.dictionaries(KEYS, parts, max_size=4) | st.lists(parts, max_size=3),
    max_leaves=12,
)


def paths(node, path=()):
    """Yield the path of every node in a tree of dicts and lists."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from paths(child, (*path, str(key)))


@many
@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4), st.data())
def test_option_changes_only_its_own_key(tree, data):
    path = data.draw(st.sampled_from(sorted(each for each in paths(tree) if not each[-1].isdigit())))
    cfg = Config(dict(tree))
    before = {other: _at(cfg, other) for other in paths(tree)}
    merge_options(cfg, {'.'.join(path): 12345})
    for other, value in before.items():
        if other[: len(path)] != path and path[: len(other)] != other:  # neither contains the other
            assert _at(cfg, other) == value
    assert _at(cfg, path) == 12345


@many
@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4), st.data())
def test_unknown_option_is_an_error_and_changes_nothing(tree, data):
    path = data.draw(st.sampled_from(sorted(paths(tree))))
    cfg = Config(dict(tree))
    with pytest.raises(ValueError, match='no_such'):
        merge_options(cfg, {'.'.join((*path, 'no_such')): 1})
    assert cfg.to_dict() == Config(dict(tree)).to_dict()


def _at(node, path):
    for part in path:
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
    return node
