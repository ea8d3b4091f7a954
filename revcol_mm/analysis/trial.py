"""Checks whether a config's model can train for a step and predict, with random weights on random images."""

import copy
from typing import Any, Callable, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement

from .swap_in import config_nodes
from .synthetic_batch import synthetic_batch

MAX_LENGTH = 160  # characters of an error message
MAX_SAMPLES = 50  # queries, proposals, detections and training samples of RoI heads per image, for speed
SAMPLES = {'num_queries', 'num_proposals', 'nms_pre', 'nms_post', 'max_per_img'}


class Trial(NamedTuple):
    """Errors of training and of prediction, each in one line, or empty.

    Args:
        training: Error of the training step.
        prediction: Error of the prediction.
    """

    training: str
    prediction: str


def try_model(cfg: Config, side: int = 128) -> Trial:
    """Build a config's model without loading checkpoints, train it for a step and predict.

    Args:
        cfg: Config of MMDetection or MMSegmentation.
        side: Height and width of the images in pixels. Re-identification always uses 256 x 128.
    """
    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))  # some heads read the iteration
    size = (256, 128) if cfg.model.type == 'BaseReID' else (side, side)

    def batch(training: bool) -> dict[str, Any]:
        number = 2 if training else 1  # some models predict single images only
        return synthetic_batch(model, cfg.default_scope, number, *size, training)

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            model = _build(cfg, size)
        except Exception as error:
            return Trial(*[error_line(error)] * 2)
        return Trial(_attempt(_train, model, batch), _attempt(_predict, model, batch))


def _build(cfg: Config, size: tuple[int, int]) -> BaseModel:
    model = copy.deepcopy(cfg.model)
    for node in config_nodes(model):
        if 'checkpoint' in (node.get('init_cfg') or ()):
            node['init_cfg'] = None
        for key in {'pretrained', 'teacher_ckpt', 'batch_augments'} & set(node):  # the last one pads images
            node[key] = None
        if node.get('type') == 'MMSyncBN':  # cannot be built in a single process
            node['type'] = 'SyncBN'
        if {'mean', 'size'} <= set(node):  # a data preprocessor that pads images to a size
            node['size'] = size
        for key in (SAMPLES | {'num'} if 'pos_fraction' in node else SAMPLES) & set(node):
            node[key] = min(node[key], MAX_SAMPLES)
    model = revert_sync_batchnorm(MODELS.build(model))
    model.init_weights()
    return model


def _train(model: BaseModel, batch: Callable[[bool], dict[str, Any]]) -> None:
    """Train for a step and check that gradients reach every trainable backbone."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()  # returns None for some models
    data = model.data_preprocessor(batch(True), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    if not loss.isfinite():
        raise ValueError(f'the loss is {loss.item()}')
    loss.backward()
    optimizer.step()
    for name, module in model.named_modules():
        params = [param for param in module.parameters() if param.requires_grad]
        if name.split('.')[-1] == 'backbone' and params and all(param.grad is None for param in params):
            raise ValueError(f'no gradient reaches {name}')


def _predict(model: BaseModel, batch: Callable[[bool], dict[str, Any]]) -> None:
    model.eval()
    with torch.no_grad():
        samples = model.test_step(batch(False))
    if not samples or not all(isinstance(sample, BaseDataElement) for sample in samples):
        raise ValueError(f'predictions are {samples}')


def _attempt(function: Callable[..., None], *args: Any) -> str:
    """Call a function and return its error in one line, or an empty string."""
    try:
        function(*args)
    except Exception as error:
        return error_line(error)
    return ''


def error_line(error: BaseException) -> str:
    """Format an error in one line of at most 160 characters."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:MAX_LENGTH]
