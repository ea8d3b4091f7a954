"""Published checkpoints of single networks, loaded into the columns made from them."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from revcol_mm import LoadFromHook
from revcol_mm.errors import CheckpointError
from revcol_mm.models import ReversibleColumns

from .test_reversible_columns import NETWORKS, build, build_config, relative_error


def save(weights, path):
    torch.save(weights, path)
    return dict(type='Pretrained', checkpoint=str(path))


def classifier(name):
    """A network and its checkpoint from MMPretrain's classification, where only the last level has a norm."""
    network = build_config({**NETWORKS[name], 'out_indices': -1 if 'ConvNeXt' in name else (3,)})
    weights = {f'backbone.{name}': weight for name, weight in network.state_dict().items()}
    return network, dict(state_dict={**weights, 'head.fc.weight': torch.rand(10, 64)}, meta={})


def load(net, weights, path, **arguments):
    backbone = ReversibleColumns(net, init_cfg=save(weights, path), **arguments)
    backbone.init_weights()
    return backbone.eval()


@torch.no_grad()
@pytest.mark.parametrize('name', ['ConvNeXt', 'ResNet', 'Swin'])
def test_every_column_gets_the_weights_of_a_classifier(name, tmp_path):
    network, checkpoint = classifier(name)
    backbone = load(NETWORKS[name], checkpoint, tmp_path / 'network.pth', num_columns=3)
    images = torch.rand(2, 3, 64, 96)
    assert relative_error(backbone(images)[-1], network(images)[-1]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('name', NETWORKS)
def test_every_column_gets_the_weights_of_a_detector(name, tmp_path):
    network = build(name)
    weights = {f'backbone.{name}': weight for name, weight in network.state_dict().items()}
    backbone = load(
        NETWORKS[name], dict(state_dict={**weights, 'neck.weight': torch.rand(8)}), tmp_path / 'a.pth'
    )
    images = torch.rand(2, 3, 64, 96)
    assert relative_error(backbone(images)[2], network(images)[2]) < 1e-5  # a ViT's others are resized


@torch.no_grad()
def test_keys_of_older_versions_are_converted_by_the_network(tmp_path):
    """The published files of Swin call the last norm 'norm' and have buffers that the class no longer has."""
    network, checkpoint = classifier('Swin')
    weights = checkpoint['state_dict']
    older = {name.replace('backbone.norm3.', 'backbone.norm.'): weight for name, weight in weights.items()}
    assert 'backbone.norm.weight' in older
    older['backbone.stages.0.blocks.1.attn_mask'] = torch.zeros(4, 49, 49)
    backbone = load(NETWORKS['Swin'], dict(state_dict=older), tmp_path / 'a.pth')
    images = torch.rand(2, 3, 64, 96)
    assert relative_error(backbone(images)[-1], network(images)[-1]) < 1e-5
    del older['backbone.norm.weight']
    with pytest.raises(CheckpointError, match="missing .'norm3.weight'"):
        load(NETWORKS['Swin'], dict(state_dict=older), tmp_path / 'a.pth')


@torch.no_grad()
@pytest.mark.parametrize('name', ['ConvNeXt', 'ResNet', 'Swin'])
def test_checkpoint_of_columns_is_loaded_as_it_is(name, tmp_path):
    backbone = ReversibleColumns(NETWORKS[name], num_columns=3)
    for param in backbone.parameters():
        param.add_(0.01 * torch.randn_like(param))
    again = load(NETWORKS[name], backbone.state_dict(), tmp_path / 'columns.pth', num_columns=3)
    for key, weight in again.state_dict().items():
        assert torch.equal(weight, backbone.state_dict()[key]), key


@torch.no_grad()
def test_checkpoint_of_torchvision_is_loaded(tmp_path):
    torchvision = pytest.importorskip('torchvision')
    published = torchvision.models.resnet18().eval()
    net = dict(type='mmpretrain.ResNet', depth=18, out_indices=(3,))
    backbone = load(net, published.state_dict(), tmp_path / 'resnet18.pth')
    images = torch.rand(1, 3, 64, 64)
    expected = nn.Sequential(*list(published.children())[:-2])(images)
    assert relative_error(backbone(images)[-1], expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('name', ['ConvNeXt', 'ConvNeXt V2'])
def test_checkpoint_of_the_convnext_authors_is_loaded(name, tmp_path):
    network = build(name)
    published = {}
    for key, weight in network.state_dict().items():
        if key.startswith('norm') and not key.startswith('norm3.'):
            continue
        key = key.replace('depthwise_conv', 'dwconv').replace('pointwise_conv', 'pwconv')
        published[key.replace('norm3.', 'norm.')] = weight[None, None, None] if '.grn.' in key else weight
    backbone = load(NETWORKS[name], dict(model=published), tmp_path / 'a.pth')
    images = torch.rand(2, 3, 64, 96)
    assert relative_error(backbone(images)[-1], network(images)[-1]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    'model_name',
    [
        'convnext_atto',
        'swin_tiny_patch4_window7_224',
        'resnet10t',
        'efficientnet_lite0',
        'mobilenetv3_small_050',
        'fastvit_t8',
        'caformer_s18',
    ],
)
def test_checkpoint_of_timm_is_loaded(model_name, tmp_path):
    timm = pytest.importorskip('timm')
    options = dict(strict_img_size=False) if 'swin' in model_name else {}
    published = timm.create_model(model_name, **options).eval()
    options.update(model_name=model_name, features_only=True, out_indices=(-4, -3, -2, -1))
    net = dict(type='mmpretrain.TIMMBackbone', **options)
    backbone = load(net, published.state_dict(), tmp_path / 'timm.pth', num_columns=2)
    images = torch.rand(1, 3, 192, 256)
    expected = published.forward_intermediates(images, intermediates_only=True)[-4:]
    for feature, each in zip(backbone(images), expected, strict=True):
        assert relative_error(feature, each) < 1e-5


def test_network_of_timm_for_one_image_size_is_an_error():
    pytest.importorskip('timm')
    options = dict(model_name='swin_tiny_patch4_window7_224', features_only=True)
    message = r"FeatureListNet cannot be split .*Input height \(256\) doesn't match .* images of any size"
    with pytest.raises(ValueError, match=message):
        ReversibleColumns(dict(type='mmpretrain.TIMMBackbone', **options))


@pytest.mark.parametrize(
    'trained, loaded, problem',
    [
        ({}, dict(NETWORKS['ResNet'], depth=34), "missing .'layer1.2.conv1.weight'"),
        ({}, dict(NETWORKS['ResNet'], base_channels=8), 'size mismatch'),
        ({}, NETWORKS['Swin'], "missing .'patch_embed"),
        (dict(depth=34), NETWORKS['ResNet'], "unexpected .'layer1.2.conv1.weight'"),
    ],
)
def test_checkpoint_of_another_network_is_an_error(trained, loaded, problem, tmp_path):
    weights = build_config({**NETWORKS['ResNet'], **trained}).state_dict()
    checkpoint = dict(state_dict={f'backbone.{key}': value for key, value in weights.items()})
    with pytest.raises(CheckpointError, match=problem):
        load(loaded, checkpoint, tmp_path / 'network.pth')


class Model(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(64, 5, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(inputs)[-1])


def test_single_network_is_refused_as_load_from_of_sharded_columns(process_group, tmp_path):
    trained, columns = Model(build('ConvNeXt')), ReversibleColumns(NETWORKS['ConvNeXt'], num_columns=3)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    runner = Runner(Model(columns), str(tmp_path), load_from=str(tmp_path / 'trained.pth'))
    runner.register_hook(LoadFromHook())
    fully_shard(runner.model, mesh=init_device_mesh('cpu', (1,)))
    with pytest.raises(CheckpointError, match='trained.pth is of a single network.*model.backbone.init_cfg'):
        runner.load_or_resume()


def test_load_from_takes_a_model_with_the_single_network_to_train_but_not_to_test(tmp_path):
    trained, columns = Model(build('ConvNeXt')), ReversibleColumns(NETWORKS['ConvNeXt'], num_columns=3)
    path, grown = tmp_path / 'trained.pth', Model(columns)
    torch.save(dict(state_dict=trained.state_dict()), path)

    def load_from(strict):
        runner = Runner(grown, str(tmp_path), load_from=str(path), experiment_name=f'strict={strict}')
        runner.register_hook(LoadFromHook(strict))
        runner.load_or_resume()

    with pytest.raises(CheckpointError, match='cannot load .*trained.pth into Model'):
        load_from(strict=True)
    load_from(strict=False)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(grown.eval()(images), trained(images)) < 1e-5
