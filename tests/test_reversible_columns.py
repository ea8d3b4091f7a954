"""Networks of MMPretrain, MMDetection and MMSegmentation as reversible columns."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from revcol_mm.models import ReversibleColumns, Stages, split_stages
from revcol_mm.testing import check_reversible

LEVELS = (0, 1, 2, 3)
SMALL = dict(depths=[1, 1, 2, 1], channels=[16, 32, 48, 64])
SWIN = dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[2, 2, 4, 4])
NETWORKS = {
    'ConvNeXt': dict(type='mmpretrain.ConvNeXt', arch=SMALL, out_indices=LEVELS, gap_before_final_norm=False),
    'ConvNeXt V2': dict(
        type='mmpretrain.ConvNeXt',
        arch=SMALL,
        out_indices=LEVELS,
        gap_before_final_norm=False,
        use_grn=True,
        layer_scale_init_value=0.0,
    ),
    'ResNet': dict(
        type='mmpretrain.ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=LEVELS
    ),
    'ResNet V1d': dict(
        type='mmpretrain.ResNetV1d', depth=50, base_channels=8, stem_channels=16, out_indices=LEVELS
    ),
    'ResNeXt': dict(type='mmpretrain.ResNeXt', depth=50, groups=4, width_per_group=4, out_indices=LEVELS),
    'RegNet': dict(type='mmpretrain.RegNet', arch='regnetx_400mf', out_indices=LEVELS),
    'ResNet of MMDetection': dict(type='mmdet.ResNet', depth=18, base_channels=16, stem_channels=16),
    'Swin': dict(
        type='mmpretrain.SwinTransformer',
        arch=SWIN,
        out_indices=LEVELS,
        drop_path_rate=0.0,
        pad_small_map=True,
    ),
    'Swin V2': dict(
        type='mmpretrain.SwinTransformerV2',
        arch=dict(**SWIN, extra_norm_every_n_blocks=0),
        out_indices=LEVELS,
        drop_path_rate=0.0,
        window_size=4,
        pad_small_map=True,
    ),
    'Swin of MMDetection': dict(
        type='mmdet.SwinTransformer', drop_path_rate=0.0, **{**SWIN, 'out_indices': LEVELS}
    ),
    'PVT V2': dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=16, num_layers=[1, 1, 1, 1]),
    'MiT': dict(
        type='mmseg.MixVisionTransformer', embed_dims=16, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]
    ),
    'Twins-PCPVT': dict(type='mmpretrain.PCPVT', arch='small', out_indices=LEVELS),
    'Twins-SVT': dict(type='mmpretrain.SVT', arch='small', out_indices=LEVELS),
    'EfficientNet': dict(type='mmpretrain.EfficientNet', arch='b0', out_indices=(2, 3, 4, 5)),
    'MobileNet V2': dict(type='mmpretrain.MobileNetV2', out_indices=(1, 2, 4, 6)),
    'MobileNet V3': dict(type='mmpretrain.MobileNetV3', arch='small', out_indices=(0, 1, 3, 8)),
    'ViT': dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=48, num_layers=6, num_heads=3, feedforward_channels=96),
        img_size=64,
        out_type='featmap',
        out_indices=(1, 2, 4, 5),
        final_norm=True,
    ),
}


def build(name):
    """A network with random weights everywhere, also where they begin at zero."""
    torch.manual_seed(0)
    network = MODELS.build(copy.deepcopy(NETWORKS[name]))
    for param in network.parameters():
        nn.init.normal_(param, std=0.1) if param.ndim > 1 else param.data.add_(0.1 * torch.randn_like(param))
    network.eval()  # which returns nothing in MMPretrain
    return network


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize('name', NETWORKS)
def test_columns_compute_what_the_network_computes(name):
    network, images = build(name), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = split_stages(network).forward(images)
        for feature, expected in zip(features, network(images)):
            assert relative_error(feature, expected) < 1e-5
        for num_columns in (1, 2, 4):
            backbone = ReversibleColumns(network, num_columns=num_columns).eval()
            for column in backbone.columns[1:]:
                for alpha in column.alphas:
                    nn.init.uniform_(alpha, 0.1, 0.9)
            *_, last = backbone.forward_columns(images)
            for level, expected in enumerate(features):
                if name != 'ViT':  # whose features are scaled
                    assert relative_error(backbone.finish(level, last[level]), expected) < 1e-5


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('mode', ['copies', 'light'])
def test_columns_train_reversibly(name, mode):
    network = build(name)
    # A bias in front of a BatchNorm has no gradient but rounding.
    backbone = ReversibleColumns(network, num_columns=3, mode=mode, save_memory=True).train().double()
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        stem = backbone.stem(images)
        start = [torch.zeros_like(feature) for feature in next(backbone.forward_columns(images))]
    report = check_reversible([column.couplings() for column in backbone.columns], stem, start)
    assert report.output_error == 0


def test_a_network_of_one_s_own_joins_by_a_method():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)

        def split_stages(self):
            return Stages(nn.Identity(), [self.first, self.second], [nn.Identity(), nn.Identity()])

    backbone = ReversibleColumns(Own(), num_columns=2)
    assert backbone.channels == (8, 16) and backbone.out_strides == (4, 8)


def test_a_network_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match='HRNet cannot be split into stages: give it a method split_stages'):
        ReversibleColumns(dict(type='mmpretrain.HRNet', arch='w18'))
    with pytest.raises(ValueError, match="mode 'heavy' is none of copies, light"):
        ReversibleColumns(dict(NETWORKS['ConvNeXt']), mode='heavy')
    with pytest.raises(ValueError, match='num_columns takes a whole number from 1 on, got 0'):
        ReversibleColumns(dict(NETWORKS['ConvNeXt']), num_columns=0)
