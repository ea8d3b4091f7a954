"""Layer-wise decay gives every parameter its published depth, learning rate and weight decay."""

import json

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from revcol_mm import RevCol

from .conftest import DATA

LAYER_IDS = json.loads((DATA / 'layer_ids.json').read_text())
ARCHS = ['nano', 'tiny', 'small', 'base', 'large', 'xlarge', 'huge']


class Segmentor(nn.Module):
    """A backbone, and a head with a convolution and an embedding."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Module()
        self.decode_head.conv_seg = nn.Conv2d(4, 2, 1)
        self.decode_head.query_embed = nn.Embedding(3, 4)


def build(model, **paramwise_cfg):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise_cfg,
        ),
    ).optimizer.param_groups


def by_name(groups):
    return {name: group for group in groups for name in group['param_names']}


def meta_segmentor(arch, **kwargs):
    with torch.device('meta'):
        return Segmentor(RevCol(arch=arch, **kwargs))


def test_depths_of_tiny_are_the_published_ones():
    backbone = meta_segmentor('tiny').backbone
    published = LAYER_IDS['tiny']
    names = {f'backbone.{name}' for name, _ in backbone.named_parameters()}
    assert names | {'decode_head.conv_seg.weight'} == set(published['layer_ids'])
    for name, depth in published['layer_ids'].items():
        assert backbone.get_layer_depth(name, 'backbone.') == (depth, published['num_layers']), name


@pytest.mark.parametrize('arch', ARCHS)
def test_depths_of_every_arch_follow_the_published_table(arch):
    """First row and column of the published table count up; other entries are min(left, above) + 1."""
    backbone = meta_segmentor(arch).backbone
    depth, columns = sum(backbone.layers), backbone.num_columns
    table = [[0] * columns for _ in range(depth)]
    for i in range(depth):
        for j in range(columns):
            table[i][j] = max(i, j) if 0 in (i, j) else min(table[i][j - 1], table[i - 1][j]) + 1
    for name, _ in backbone.named_parameters():
        parts = name.split('.')
        if parts[0] == 'stem':
            expected = 0
        else:
            block = 0
            if parts[1].startswith('level'):
                block = sum(backbone.layers[: int(parts[1][5:])])
                block += int(parts[3]) if parts[2] == 'blocks' else 0
            expected = table[block][int(parts[0][6:])] + 1
        assert backbone.get_layer_depth(name) == (expected, table[-1][-1] + 3), name


def test_parameter_of_unknown_depth_is_an_error():
    backbone = meta_segmentor('nano').backbone
    with pytest.raises(ValueError, match='unknown'):
        backbone.get_layer_depth('backbone.unknown.weight', 'backbone.')
    backbone.register_parameter('unknown', nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match='unknown'):
        build(Segmentor(backbone), decay_rate=0.9)


def test_learning_rates_and_weight_decays():
    model = Segmentor(RevCol(arch=dict(channels=(8, 16), layers=(1, 2), num_columns=3), out_indices=(0, 1)))
    groups = by_name(build(model, decay_rate=0.5))
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    expected = {  # depths 0 to 5, 6 for the head
        'backbone.stem.0.weight': (0.5**6, 0.05),
        'backbone.stem.0.bias': (0.5**6, 0.0),
        'backbone.subnet0.alpha1': (0.5**5, 0.0),
        'backbone.subnet2.alpha0': (0.5**3, 0.0),
        'backbone.subnet0.level0.blocks.0.dwconv.weight': (0.5**5, 0.05),
        'backbone.subnet0.level1.fusion.down.0.weight': (0.5**4, 0.05),
        'backbone.subnet2.level1.blocks.1.pwconv1.weight': (0.5**1, 0.05),
        'backbone.subnet2.level1.blocks.1.gamma': (0.5**1, 0.0),
        'backbone.subnet2.level1.blocks.1.norm.weight': (0.5**1, 0.0),
        'decode_head.conv_seg.weight': (1.0, 0.05),
        'decode_head.conv_seg.bias': (1.0, 0.0),
        'decode_head.query_embed.weight': (1.0, 0.05),
    }
    for name, (scale, weight_decay) in expected.items():
        assert groups[name]['lr'] == pytest.approx(1e-3 * scale), name
        assert groups[name]['weight_decay'] == pytest.approx(weight_decay), name


def test_base_has_fewer_than_60_groups_with_every_parameter_once():
    model = meta_segmentor('base')
    groups = build(model, decay_rate=0.9)
    assert len(groups) < 60
    params = [id(p) for group in groups for p in group['params']]
    assert len(params) == len(set(params)) == len(list(model.parameters()))


def test_custom_keys_scale_learning_rate_and_set_weight_decay():
    groups = by_name(
        build(
            meta_segmentor('nano'),
            decay_rate=0.9,
            custom_keys=dict(query_embed=dict(decay_mult=0.0), decode_head=dict(lr_mult=10)),
        )
    )
    assert groups['decode_head.query_embed.weight']['weight_decay'] == 0
    assert groups['decode_head.query_embed.weight']['lr'] == pytest.approx(1e-3)  # the longest key wins
    assert groups['decode_head.conv_seg.weight']['lr'] == pytest.approx(1e-2)
    assert groups['decode_head.conv_seg.weight']['weight_decay'] == pytest.approx(0.05)
    assert groups['decode_head.conv_seg.bias']['weight_decay'] == 0


def test_frozen_parameters_are_left_out():
    model = meta_segmentor('nano', frozen_columns=2)
    names = by_name(build(model, decay_rate=0.9)).keys()
    assert not any(n.startswith(('backbone.stem', 'backbone.subnet0', 'backbone.subnet1')) for n in names)
    assert any(n.startswith('backbone.subnet2') for n in names)


def test_any_backbone_with_get_layer_depth_works():
    class Backbone(nn.Linear):
        def get_layer_depth(self, param_name, prefix=''):
            return (0, 2) if param_name.startswith(prefix) else (1, 2)

    groups = by_name(build(Segmentor(Backbone(2, 2)), decay_rate=0.1))
    assert groups['backbone.weight']['lr'] == pytest.approx(1e-4)
    assert groups['decode_head.conv_seg.weight']['lr'] == pytest.approx(1e-3)


def test_the_group_table_is_logged_once(log_messages):
    build(meta_segmentor('nano'), decay_rate=0.9)
    (table,) = [message for message in log_messages if 'parameter groups' in message]
    assert 'backbone.stem.0.weight' in table


@pytest.mark.parametrize(
    'paramwise_cfg, message',
    [
        (dict(decay_rate=0.0), 'decay_rate.*0.0'),
        (dict(decay_rate=1.5), 'decay_rate.*1.5'),
        (dict(custom_keys={}), 'decay_rate.*None'),
        (dict(decay_rate=0.9, norm_decay_mult=0), 'norm_decay_mult'),
        (dict(decay_rate=0.9, custom_keys=dict(head=dict(lr=1))), "head.*'lr'"),
        (dict(decay_rate=0.9, custom_keys=dict(neck=dict(lr_mult=1))), 'neck'),
    ],
)
def test_invalid_option_is_named(paramwise_cfg, message):
    with pytest.raises(ValueError, match=message):
        build(meta_segmentor('nano'), **paramwise_cfg)


def test_unimplemented_get_layer_depth_needs_decay_rate_1():
    """MMPretrain's ResNet of less than 50 layers raises NotImplementedError."""
    resnet = pytest.importorskip('mmpretrain.models').ResNet(18, base_channels=4, stem_channels=4)
    groups = by_name(build(Segmentor(resnet), decay_rate=1.0))
    assert groups['backbone.conv1.weight']['lr'] == groups['decode_head.conv_seg.weight']['lr']
    assert len(groups) == len(list(Segmentor(resnet).parameters()))
    with pytest.raises(
        ValueError, match=r"ResNet.get_layer_depth is not implemented for 'backbone.conv1.weight'"
    ):
        build(Segmentor(resnet), decay_rate=0.9)


def test_model_without_get_layer_depth_is_refused():
    with pytest.raises(ValueError, match='get_layer_depth'):
        build(Segmentor(nn.Linear(2, 2)), decay_rate=0.9)
