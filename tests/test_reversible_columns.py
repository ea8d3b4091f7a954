"""Networks of MMPretrain, MMDetection and MMSegmentation as reversible columns."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from revcol_mm import LoadFromHook
from revcol_mm.errors import CheckpointError
from revcol_mm.models import ReversibleColumns, Stages, split_stages
from revcol_mm.ops import call
from revcol_mm.testing import StoringChain, check_reversible, worst_errors

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
    return build_config(NETWORKS[name])


def build_config(net):
    """A network with random weights everywhere, also where they begin at zero."""
    torch.manual_seed(0)
    network = MODELS.build(copy.deepcopy(net))
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


LIGHT = [(name, 'light') for name in ('ConvNeXt', 'ResNet', 'Swin', 'ViT')]


@pytest.mark.parametrize('name, mode', [*((name, 'copies') for name in NETWORKS), *LIGHT])
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
            self.first, self.second = nn.Conv2d(5, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)

        def forward(self, x):
            return self.second(self.first(x))

        def split_stages(self):
            return Stages(nn.Identity(), [self.first, self.second], [nn.Identity(), nn.Identity()])

    class Wrong(Own):
        def split_stages(self):
            stem, stages, _ = super().split_stages()
            return Stages(stem, stages, [nn.ReLU(), nn.ReLU()])

    backbone = ReversibleColumns(Own(), num_columns=2)
    assert backbone.channels == (8, 16) and backbone.out_strides == (4, 8) and backbone.in_channels == 5
    with pytest.raises(
        ValueError, match=r'Wrong cannot be split .* not compute its feature \(1, 16, 32, 32\)'
    ):
        ReversibleColumns(Wrong())


def test_a_network_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match='HRNet cannot be split into stages: give it a method split_stages'):
        ReversibleColumns(dict(type='mmpretrain.HRNet', arch='w18'))
    with pytest.raises(ValueError, match='of one stride are scaled to four, but the network has 3'):
        ReversibleColumns(dict(NETWORKS['ViT'], out_indices=(1, 3, 5)))
    with pytest.raises(ValueError, match='ConvNeXt returns .1, 64., no feature map: see its options'):
        ReversibleColumns(dict(type='mmpretrain.ConvNeXt', arch=SMALL))
    with pytest.raises(ValueError, match='with_cp=True, which stores what save_memory=True need not'):
        ReversibleColumns(dict(NETWORKS['ResNet'], with_cp=True), save_memory=True)
    with pytest.raises(ValueError, match="mode 'heavy' is none of copies, light"):
        ReversibleColumns(dict(NETWORKS['ConvNeXt']), mode='heavy')
    with pytest.raises(ValueError, match='num_columns takes a whole number from 1 on, got 0'):
        ReversibleColumns(dict(NETWORKS['ConvNeXt']), num_columns=0)


def saved(weights, path):
    torch.save(weights, path)
    return dict(type='Pretrained', checkpoint=str(path))


def classifier(name):
    """A checkpoint as MMPretrain publishes it: only the last level is returned, and has a norm."""
    net = {**NETWORKS[name], 'out_indices': -1 if 'ConvNeXt' in name else (3,)}
    network = build_config(net)
    weights = {f'backbone.{name}': weight for name, weight in network.state_dict().items()}
    return network, dict(state_dict={**weights, 'head.fc.weight': torch.rand(10, 64)}, meta={})


@pytest.mark.parametrize('name', ['ConvNeXt', 'ResNet', 'Swin'])
def test_every_column_gets_the_weights_of_a_published_network(name, tmp_path):
    network, checkpoint = classifier(name)
    init_cfg = saved(checkpoint, tmp_path / 'network.pth')
    backbone = ReversibleColumns(NETWORKS[name], num_columns=3, init_cfg=init_cfg)
    backbone.init_weights()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(backbone.eval()(images)[-1], network(images)[-1]) < 1e-5
    # and one's own checkpoint goes on from where it was
    for param in backbone.parameters():
        param.data.add_(0.01)
    again = ReversibleColumns(
        NETWORKS[name], num_columns=3, init_cfg=saved(backbone.state_dict(), tmp_path / 'columns.pth')
    )
    again.init_weights()
    for key, weight in again.state_dict().items():
        assert torch.equal(weight, backbone.state_dict()[key]), key


def test_torchvision_s_weights_are_a_resnet_s(tmp_path):
    torchvision = pytest.importorskip('torchvision')
    published = torchvision.models.resnet18().eval()
    net = dict(type='mmpretrain.ResNet', depth=18, out_indices=(3,))
    init_cfg = saved(published.state_dict(), tmp_path / 'resnet18.pth')
    backbone = ReversibleColumns(net, init_cfg=init_cfg)
    backbone.init_weights()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(published.children())[:-2])(images)
        assert relative_error(backbone.eval()(images)[-1], expected) < 1e-5


@pytest.mark.parametrize('name', ['ConvNeXt', 'ConvNeXt V2'])
def test_the_authors_convnext_has_other_names(name, tmp_path):
    network = build(name)
    published = {}
    for key, weight in network.state_dict().items():
        if key.startswith('norm') and not key.startswith('norm3.'):
            continue
        key = key.replace('depthwise_conv', 'dwconv').replace('pointwise_conv', 'pwconv')
        published[key.replace('norm3.', 'norm.')] = weight[None, None, None] if '.grn.' in key else weight
    backbone = ReversibleColumns(NETWORKS[name], init_cfg=saved(dict(model=published), tmp_path / 'a.pth'))
    backbone.init_weights()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(backbone.eval()(images)[-1], network(images)[-1]) < 1e-5


@pytest.mark.parametrize(
    'model_name',
    [
        'convnext_atto',
        'swin_tiny_patch4_window7_224',
        'resnet10t',
        'efficientnet_lite0',
        'mobilenetv3_small_050',
    ],
)
def test_networks_of_timm(model_name, tmp_path):
    timm = pytest.importorskip('timm')
    sizes = dict(img_size=256) if 'swin' in model_name else {}
    published = timm.create_model(model_name, **sizes).eval()
    net = dict(
        type='mmpretrain.TIMMBackbone',
        model_name=model_name,
        features_only=True,
        out_indices=(-4, -3, -2, -1),
        **sizes,
    )
    init_cfg = saved(published.state_dict(), tmp_path / 'timm.pth')
    backbone = ReversibleColumns(net, num_columns=2, init_cfg=init_cfg)
    backbone.init_weights()
    images = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        expected = published.forward_intermediates(images, intermediates_only=True)[-4:]
        for feature, each in zip(backbone.eval()(images), expected, strict=True):
            assert relative_error(feature, each) < 1e-5


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    _, checkpoint = classifier('ResNet')
    init_cfg = saved(checkpoint, tmp_path / 'network.pth')
    deeper = dict(NETWORKS['ResNet'], depth=34)
    for net, problem in (
        (deeper, "missing .'layer1.2.conv1.weight'"),
        (dict(NETWORKS['ResNet'], base_channels=8), 'size mismatch'),
        (NETWORKS['Swin'], "missing .'patch_embed"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            ReversibleColumns(net, init_cfg=init_cfg).init_weights()
    checkpoint = {f'backbone.{key}': value for key, value in build_config(deeper).state_dict().items()}
    init_cfg = saved(dict(state_dict=checkpoint), tmp_path / 'deeper.pth')
    with pytest.raises(CheckpointError, match="unexpected .'layer1.2.conv1.weight'"):
        ReversibleColumns(NETWORKS['ResNet'], init_cfg=init_cfg).init_weights()


def test_what_a_network_keeps_in_evaluation_mode_stays_so():
    net = dict(NETWORKS['ResNet'], norm_eval=True, frozen_stages=1)
    backbone = ReversibleColumns(net, num_columns=2, save_memory=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = copy.deepcopy(backbone.state_dict())
    sum(feature.sum() for feature in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert norms and not any(norm.training for norm in norms)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    frozen = [name for name, param in backbone.named_parameters() if not param.requires_grad]
    assert {name.split('.')[1] for name in frozen if name.startswith('subnet1')} == {'level0'}


def test_batch_norms_move_once_and_dropout_is_replayed():
    """Reversible training moves statistics and draws random numbers as a plain one does."""
    with_dropout = dict(NETWORKS['Swin'], drop_path_rate=0.5, drop_rate=0.1)
    for net, tolerance in ((NETWORKS['ResNet'], 1e-6), (with_dropout, 1e-5)):
        features = []
        for save_memory in (False, True):
            torch.manual_seed(0)
            backbone = ReversibleColumns(net, num_columns=3, save_memory=save_memory).train()
            output = backbone(torch.rand(2, 3, 65, 97))
            sum(feature.square().mean() for feature in output).backward()
            features.append([*output, *backbone.buffers(), *(param.grad for param in backbone.parameters())])
        for mine, expected in zip(*features, strict=True):
            if mine is not None:
                torch.testing.assert_close(mine, expected, rtol=1e-3, atol=tolerance)


def test_depths_are_the_network_s_own():
    network = build('ConvNeXt')
    backbone = ReversibleColumns(network, num_columns=2)
    assert backbone.num_depths == network.get_layer_depth('stages.3.0.gamma')[1]
    for own, single in (
        ('stem.0.weight', 'downsample_layers.0.0.weight'),
        ('subnet0.level2.1.0.gamma', 'stages.2.0.gamma'),
        ('subnet1.level2.stage.1.0.gamma', 'stages.2.0.gamma'),
    ):
        assert (
            backbone.get_layer_depth(f'backbone.{own}', 'backbone.')[0] == network.get_layer_depth(single)[0]
        )
    # what is new is as deep as the first of its level
    assert backbone.param_depth('subnet1.level1.alpha') == backbone.param_depth(
        'subnet1.level1.stage.0.0.weight'
    )
    assert ReversibleColumns(build('ResNet')).param_depth('subnet1.level3.stage.0.conv1.weight') == 4


def test_light_columns_begin_as_the_network_and_train_alone():
    network = build('Swin')
    backbone = ReversibleColumns(network, num_columns=3, mode='light', frozen_columns=1, save_memory=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for feature, expected in zip(backbone.eval()(images), network.eval() or network(images)):
            assert relative_error(feature, expected) < 1e-5
    backbone.train()
    sum(feature.square().mean() for feature in backbone(images)).backward()
    assert all(param.grad is None for param in backbone.subnet0.parameters())
    assert all(
        level.gain.grad.abs().max() > 0 for level in map(backbone.subnet2.get_submodule, ['level0', 'level3'])
    )
    with pytest.raises(ValueError, match=r'multiples of 32, got \(65, 64\)'):
        backbone(torch.rand(1, 3, 65, 64))


def test_load_from_takes_a_whole_model_with_a_single_network(tmp_path):
    """Its columns compute what that model's network does, behind the same head."""

    class Model(BaseModel):
        def __init__(self, backbone):
            super().__init__()
            self.backbone, self.head = backbone, nn.Conv2d(64, 5, 1)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.head(self.backbone(inputs)[-1])

    trained = Model(build('ConvNeXt'))
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    grown = Model(ReversibleColumns(NETWORKS['ConvNeXt'], num_columns=3))

    def load(strict):
        name = f'strict={strict}'
        runner = Runner(grown, str(tmp_path), load_from=str(tmp_path / 'trained.pth'), experiment_name=name)
        runner.register_hook(LoadFromHook(strict))
        runner.load_or_resume()

    with pytest.raises(CheckpointError, match='cannot load .*trained.pth into Model'):  # for testing
        load(strict=True)
    load(strict=False)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(grown.eval()(images), trained(images)) < 1e-5


def train_step(model, images):
    """Gradients of a step."""
    model.zero_grad()
    sum(feature.float().square().mean() for feature in model(images)).backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize('name', ['ConvNeXt', 'Swin', 'ResNet'])
def test_autocast(name):
    """Reversible training gives the gradients that a chain which stores all gives under autocast."""
    backbone = ReversibleColumns(build(name), num_columns=3, save_memory=True).train()
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        grads = train_step(backbone, images)
        backbone.chain_type = lambda links: StoringChain()
        expected = train_step(backbone, images)
    errors = [relative_error(grads[key], grad) for key, grad in expected.items() if grad.norm() > 1e-3]
    assert len(errors) > 50 and sorted(errors)[len(errors) // 2] < 1e-3 and max(errors) < 0.05


def test_compiled_columns_give_the_same_gradients(monkeypatch):
    compiled = torch.compile(call._apply, backend='eager')
    monkeypatch.setattr(call, '_compiled', lambda: compiled)
    backbone = ReversibleColumns(build('ConvNeXt'), num_columns=2, save_memory=True).train()
    images = torch.rand(2, 3, 64, 64)
    expected = train_step(backbone, images)
    backbone.compile(backend='eager')
    assert worst_errors(train_step(backbone, images), expected)[0][0] < 2e-5


def test_supervised_columns_train_every_parameter():
    head = dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3)
    cfg = dict(
        type='SupervisedColumns',
        model_type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.0] * 3, std=[1.0] * 3, size=(64, 64)),
        backbone=dict(type='ReversibleColumns', net=NETWORKS['ConvNeXt'], num_columns=3, out_indices=(3,)),
        decode_head={**head, 'in_index': 0},
        supervision=dict(columns=[0, 1], reconstruction_weight=0.3, head={**head, 'in_index': 0}),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg).train()
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 64, 64))))
    losses = model(torch.rand(2, 3, 64, 64), [sample] * 2, mode='loss')
    assert {'supervision.0.loss_rec', 'supervision.1.loss_ce'} <= set(losses)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert [name for name, param in model.named_parameters() if param.grad is None] == []
