"""Networks of MMPretrain, MMDetection and MMSegmentation as reversible columns."""

import copy

import pytest
import torch
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from revcol_mm.checkpoints import fitting
from revcol_mm.models import ReversibleColumns, Stages, split_stages, stages
from revcol_mm.models.backbones import reversible_columns
from revcol_mm.ops import call
from revcol_mm.testing import StoringChain, check_reversible, worst_errors

LEVELS = dict(out_indices=(0, 1, 2, 3))
SMALL = dict(depths=[1, 1, 2, 1], channels=[16, 32, 48, 64])
CONVNEXT = dict(type='mmpretrain.ConvNeXt', arch=SMALL, gap_before_final_norm=False, **LEVELS)
SWIN_SIZE = dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[2, 2, 4, 4])
SWIN = dict(arch=SWIN_SIZE, drop_path_rate=0.0, pad_small_map=True, **LEVELS)
SWIN_V2 = dict(SWIN, arch=dict(SWIN_SIZE, extra_norm_every_n_blocks=0), window_size=4)
NARROW = dict(base_channels=16, stem_channels=16)
ONE_EACH = dict(embed_dims=16, num_layers=[1, 1, 1, 1])
NETWORKS = {
    'ConvNeXt': CONVNEXT,
    'ConvNeXt V2': dict(CONVNEXT, use_grn=True, layer_scale_init_value=0.0),
    'ResNet': dict(type='mmpretrain.ResNet', depth=18, **NARROW, **LEVELS),
    'ResNet V1d': dict(type='mmpretrain.ResNetV1d', depth=50, base_channels=8, stem_channels=16, **LEVELS),
    'ResNeXt': dict(type='mmpretrain.ResNeXt', depth=50, groups=4, width_per_group=4, **LEVELS),
    'RegNet': dict(type='mmpretrain.RegNet', arch='regnetx_400mf', **LEVELS),
    'ResNet of MMDetection': dict(type='mmdet.ResNet', depth=18, **NARROW),
    'Swin': dict(type='mmpretrain.SwinTransformer', **SWIN),
    'Swin V2': dict(type='mmpretrain.SwinTransformerV2', **SWIN_V2),
    'Swin of MMDetection': dict(type='mmdet.SwinTransformer', drop_path_rate=0.0, **SWIN_SIZE, **LEVELS),
    'PVT V2': dict(type='mmdet.PyramidVisionTransformerV2', **ONE_EACH),
    'MiT': dict(type='mmseg.MixVisionTransformer', num_heads=[1, 2, 2, 4], **ONE_EACH),
    'Twins-PCPVT': dict(type='mmpretrain.PCPVT', arch='small', **LEVELS),
    'Twins-SVT': dict(type='mmpretrain.SVT', arch='small', **LEVELS),
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
    return build_config(NETWORKS[name])


def build_config(net):
    """Build a network with random values in all parameters, also in those that are initialised to zero."""
    torch.manual_seed(0)
    network = MODELS.build(copy.deepcopy(net))
    for param in network.parameters():
        nn.init.normal_(param, std=0.1) if param.ndim > 1 else param.data.add_(0.1 * torch.randn_like(param))
    network.eval()  # which returns None in MMPretrain
    return network


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize('name', NETWORKS)
def test_columns_compute_the_features_of_the_network(name):
    network, images = build(name), torch.rand(2, 3, 75, 97)
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
            # A ViT's features are resized at the end, and have a last row with the class token.
            actual = last[level][:, :, :-1] if name == 'ViT' else backbone.finish(level, last[level])
            assert relative_error(actual, expected) < 1e-5


@torch.no_grad()
def test_vit_that_returns_one_feature_is_split_into_four_equal_parts():
    network, images = build_config(dict(NETWORKS['ViT'], out_indices=-1)), torch.rand(2, 3, 75, 97)
    backbone = ReversibleColumns(network).eval()
    *_, last = backbone.forward_columns(images)
    assert [len(level.layers) for level in backbone.subnet0.levels] == [2, 1, 1, 2]
    assert relative_error(last[-1][:, :, :-1], network(images)[0]) < 1e-5


LIGHT = [(name, 'light') for name in ('ConvNeXt', 'ResNet', 'Swin', 'ViT')]


@pytest.mark.parametrize('name, mode', [*((name, 'copies') for name in NETWORKS), *LIGHT])
def test_reversible_training_equals_storing_activations(name, mode):
    # In float64: a bias before a batch norm has no gradient but rounding errors.
    backbone = ReversibleColumns(build(name), num_columns=3, mode=mode, save_memory=True).train().double()
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        stem = backbone.stem(images)
        start = [torch.zeros_like(feature) for feature in next(backbone.forward_columns(images))]
    report = check_reversible([column.couplings() for column in backbone.columns], stem, start)
    assert report.output_error == 0


class TwoStages(nn.Module):
    """Two stages, and a norm that is applied to the returned feature only."""

    def __init__(self, first, second, norm=None):
        super().__init__()
        self.first, self.second, self.norm = first, second, norm or nn.Identity()

    def forward(self, x):
        return self.norm(self.second(self.first(x)))

    def split_stages(self):
        return Stages(nn.Identity(), [self.first, self.second], [nn.Identity(), self.norm])


class Wrong(TwoStages):
    def split_stages(self):
        return super().split_stages()._replace(outputs=[nn.ReLU(), nn.ReLU()])


CONVS = nn.Conv2d(5, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)


def test_network_with_a_split_stages_method_is_supported():
    backbone = ReversibleColumns(TwoStages(*CONVS), num_columns=2)
    assert backbone.channels == (8, 16) and backbone.out_strides == (4, 8) and backbone.in_channels == 5


def test_plain_module_is_initialised_by_its_constructor(monkeypatch):
    registered = {**MODELS.module_dict, 'TwoConvs': lambda: TwoStages(*copy.deepcopy(CONVS))}
    monkeypatch.setattr(MODELS, '_module_dict', registered)
    backbone = ReversibleColumns(dict(type='TwoConvs'), num_columns=2)
    backbone.init_weights()
    assert torch.equal(backbone.subnet1.level0.stage.weight, CONVS[0].weight)


@pytest.mark.parametrize(
    'net, options, message',
    [
        (Wrong(*CONVS), {}, r'Wrong cannot be split .* not compute its feature \(1, 16, 32, 32\)'),
        (dict(type='mmpretrain.HRNet', arch='w18'), {}, 'HRNet cannot be split .* a method split_stages'),
        (dict(type='mmpretrain.BEiTViT'), {}, 'BEiTViT cannot be split .* a method split_stages'),
        (dict(NETWORKS['Swin'], use_abs_pos_embed=True), {}, 'Swin.* not compute its feature'),
        (dict(NETWORKS['ViT'], patch_size=14), {}, 'level 0 has 19 positions in a row of 256 pixels'),
        (dict(NETWORKS['ViT'], out_indices=(1, 3, 5)), {}, 'one stride .* must return 4 levels, got 3'),
        (dict(type='mmpretrain.ConvNeXt', arch=SMALL), {}, 'ConvNeXt returns .1, 64., not a feature map'),
        (dict(NETWORKS['ResNet'], with_cp=True), dict(save_memory=True), 'with_cp=True and .* save_memory'),
        (NETWORKS['ConvNeXt'], dict(mode='heavy'), "mode must be one of copies, light, got 'heavy'"),
        (NETWORKS['ConvNeXt'], dict(num_columns=0), 'num_columns must be a positive integer, got 0'),
        (NETWORKS['ConvNeXt'], dict(light_blocks=2), "light_blocks=2 needs mode='light'"),
        (
            NETWORKS['ConvNeXt'],
            dict(init_cfg=[dict(type='Normal')]),
            "init_cfg must be dict.*, got .*'Normal'",
        ),
        (
            TwoStages(*CONVS),
            dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth')),
            'init_cfg needs the config',
        ),
    ],
)
def test_unsupported_network_or_option_is_an_error(net, options, message):
    with pytest.raises(ValueError, match=message):
        ReversibleColumns(net, **options)


def test_modules_in_evaluation_mode_and_frozen_stages_stay_so():
    net = dict(NETWORKS['ResNet'], norm_eval=True, frozen_stages=1)
    backbone = ReversibleColumns(net, num_columns=2, save_memory=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = copy.deepcopy(backbone.state_dict())
    sum(feature.sum() for feature in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert norms and not any(norm.training for norm in norms)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    frozen = [name for name, param in backbone.named_parameters() if not param.requires_grad]
    assert {name.split('.')[1] for name in frozen if name.startswith('subnet1')} == {'level0'}
    converted = convert_sync_batchnorm(backbone).train()  # as sync_bn='torch' in a config
    norms = [module for module in converted.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert norms and not any(norm.training for norm in norms)


WITH_DROPOUT = dict(NETWORKS['Swin'], drop_path_rate=0.5, drop_rate=0.1)


@pytest.mark.parametrize('net, tolerance', [(NETWORKS['ResNet'], 1e-6), (WITH_DROPOUT, 1e-5)])
def test_reversible_training_updates_batch_norms_once_and_replays_dropout(net, tolerance):
    results = []
    for save_memory in (False, True):
        torch.manual_seed(0)
        backbone = ReversibleColumns(net, num_columns=3, save_memory=save_memory).train()
        features = backbone(torch.rand(2, 3, 65, 97))
        sum(feature.square().mean() for feature in features).backward()
        results.append([*features, *backbone.buffers(), *(param.grad for param in backbone.parameters())])
    for actual, expected in zip(*results, strict=True):
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize('is_checkpoint_of_columns', [False, True])
def test_initialising_checks_no_network_again_and_reads_a_checkpoint_once(
    is_checkpoint_of_columns, tmp_path, monkeypatch
):
    net = NETWORKS['ConvNeXt']
    saved = ReversibleColumns(net) if is_checkpoint_of_columns else build('ConvNeXt')
    torch.save(saved.state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    networks = [ReversibleColumns(net, init_cfg=options) for options in (None, init_cfg)]
    events, read = [], reversible_columns.read_checkpoint
    for module in (reversible_columns, fitting):
        monkeypatch.setattr(module, 'read_checkpoint', lambda path: events.append('read') or read(path))
    monkeypatch.setattr(stages, '_check_features', lambda *_: events.append('check'))
    for network in networks:
        network.init_weights()
    assert events == ['read']


RESNET_50 = dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8, **LEVELS)


@pytest.mark.parametrize(
    'net', [RESNET_50, *(NETWORKS[name] for name in ('ConvNeXt', 'Swin', 'ViT'))], ids=lambda net: net['type']
)
def test_depths_are_those_of_the_network(net):
    network = build_config(net)
    names = {id(param): f'backbone.{name}' for name, param in network.named_parameters()}
    backbone = ReversibleColumns(network, num_columns=3)
    first = backbone.subnet0.state_dict(keep_vars=True)
    depths = {}
    for name, param in backbone.named_parameters():
        if name.startswith('subnet2.'):  # a copy
            param = first.get(name.removeprefix('subnet2.').replace('.stage.', '.', 1))
        if id(param) in names:
            depths[name] = network.get_layer_depth(names[id(param)], 'backbone.')
            assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == depths[name], name
    parts = {name.partition('.')[0] for name in depths}
    assert {'stem', 'subnet0', 'subnet2'} <= parts and len(set(depths.values())) >= 6


def test_new_parameters_have_the_depth_of_their_level_or_of_the_head():
    backbone = ReversibleColumns(build('ConvNeXt'), num_columns=2)
    new, first = 'subnet1.level1.alpha', 'subnet1.level1.stage.0.0.weight'
    assert backbone.param_depth(new) == backbone.param_depth(first)
    assert backbone.param_depth('subnet1.level9.alpha') is None
    pyramid = ReversibleColumns(build('ViT'))
    assert pyramid.param_depth('outputs.0.1.0.weight') == pyramid.num_depths - 1


def test_depths_without_those_of_the_network_are_levels():
    backbone = ReversibleColumns(build('ResNet'))
    names = 'stem.0.weight', 'subnet0.level0.0.conv1.weight', 'subnet1.level3.stage.0.conv1.weight'
    assert [backbone.param_depth(name) for name in names] == [0, 1, 4] and backbone.num_depths == 6


def test_light_columns_start_as_the_network_and_train_without_it():
    network = build('Swin')
    backbone = ReversibleColumns(network, num_columns=3, mode='light', frozen_columns=1, save_memory=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for feature, expected in zip(backbone.eval()(images), network.eval() or network(images)):
            assert relative_error(feature, expected) < 1e-5
    sum(feature.square().mean() for feature in backbone.train()(images)).backward()
    assert all(param.grad is None for param in backbone.subnet0.parameters())
    assert all(level.gain.grad.abs().max() > 0 for level in backbone.subnet2.levels)
    with pytest.raises(ValueError, match=r'multiples of 32, got \(65, 64\)'):
        backbone(torch.rand(1, 3, 65, 64))


def gradients(model, images):
    model.zero_grad()
    sum(feature.float().square().mean() for feature in model(images)).backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize('name', ['ConvNeXt', 'Swin', 'ResNet'])
def test_autocast_gradients_equal_those_of_storing_activations(name):
    backbone = ReversibleColumns(build(name), num_columns=3, save_memory=True).train()
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        actual = gradients(backbone, images)
        backbone.chain_type = lambda links: StoringChain()
        expected = gradients(backbone, images)
    errors = [relative_error(actual[key], grad) for key, grad in expected.items() if grad.norm() > 1e-3]
    assert len(errors) > 50 and sorted(errors)[len(errors) // 2] < 1e-3 and max(errors) < 0.05


def test_compiled_columns_have_the_same_gradients(monkeypatch):
    compiled = torch.compile(call._apply, backend='eager')
    monkeypatch.setattr(call, '_compiled', lambda: compiled)
    backbone = ReversibleColumns(build('ConvNeXt'), num_columns=2, save_memory=True).train()
    images = torch.rand(2, 3, 64, 64)
    expected = gradients(backbone, images)
    backbone.compile(backend='eager')
    assert worst_errors(gradients(backbone, images), expected)[0][0] < 2e-5


def test_supervised_columns_train_every_parameter():
    head = dict(type='FCNHead', in_channels=64, in_index=0, channels=8, num_convs=1, num_classes=3)
    cfg = dict(
        type='SupervisedColumns',
        model_type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.0] * 3, std=[1.0] * 3, size=(64, 64)),
        backbone=dict(type='ReversibleColumns', net=NETWORKS['ConvNeXt'], num_columns=3, out_indices=(3,)),
        decode_head=head,
        supervision=dict(columns=[0, 1], reconstruction_weight=0.3, head=head),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg).train()
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 64, 64))))
    losses = model(torch.rand(2, 3, 64, 64), [sample] * 2, mode='loss')
    assert {'supervision.0.loss_rec', 'supervision.1.loss_ce'} <= set(losses)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert [name for name, param in model.named_parameters() if param.grad is None] == []
