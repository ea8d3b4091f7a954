"""Building a model for inference from a config and a checkpoint."""

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope

from revcol_mm.checkpoints.fitting import fit_weights
from revcol_mm.checkpoints.layouts import model_weights
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.config.command_line import read_config
from revcol_mm.config.unsafe_files import find_unsafe_files
from revcol_mm.errors import PreflightError, building
from revcol_mm.preflight import check_normalisation, check_sliding_windows
from revcol_mm.training.load_from import restrict_loading


def pick_device(device: str | None = None) -> torch.device:
    """Return a device by its name, such as 'cpu', 'cuda' or 'cuda:1'. None: a GPU if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(1, device=device).item()  # fails if the driver has no such device, and on 'meta'
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
        here = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
        raise ValueError(f'there is no device {device!r}; available are {", ".join(here)}') from error
    return torch.device(device)


def init_model(
    config: str | Path | Config, checkpoint: str | Path | None = None, device: str | None = None
) -> BaseModel:
    """Build a config's model in evaluation mode.

    Args:
        config: A config, or its path.
        checkpoint: File or URL, in the published layout or ours, read without running code in it. None:
            random weights; an ``init_cfg`` of the model or backbone is ignored and nothing is downloaded.
        device: See :func:`pick_device`.

    Returns:
        The model, with attributes ``cfg``, the config, and ``dataset_meta``, which has the names
        ('classes') and perhaps colours ('palette') of the classes if the checkpoint has them.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If the config's ``default_scope`` is wrong, there is no such device, the model cannot be
            built, its parts do not fit together, or it needs a file that may run code when it is read.
        CheckpointError: If the checkpoint cannot be read, or lacks one of the model's weights.
        SystemExit: If a package that the config's task needs is not installed.
    """
    picked = pick_device(device)
    cfg = read_config(config)
    for place, problem in find_unsafe_files(cfg.model, 'model'):
        raise PreflightError(f'{problem} ({place})')
    model_cfg = copy.deepcopy(cfg.model)
    # MMPretrain's configs have it at the top level, from where MMEngine's runner takes it.
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    if checkpoint is None:
        content = {}
        for part in (model_cfg, model_cfg.get('backbone', {})):
            part.pop('init_cfg', None)
    else:
        content = read_checkpoint(str(checkpoint), setting=None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), building('the model'):
        model = MODELS.build(model_cfg)
    check_normalisation(model)
    check_sliding_windows(model)
    if checkpoint is None:
        _init_weights(model)  # until then some of DINO's parameters are uninitialised memory
    else:
        weights = model_weights(content)
        fit_weights(weights, model, str(checkpoint), adapt=False)
        model.load_state_dict(weights, strict=False)  # fit_weights has checked the keys
    model.cfg = cfg
    model.dataset_meta = _dataset_meta(content.get('meta') or {})
    return model.to(picked).eval()


def _init_weights(model: BaseModel) -> None:
    restrict_loading()  # an init_cfg of a part other than the backbone may name a checkpoint
    logger = MMLogger.get_current_instance()
    disabled, logger.disabled = logger.disabled, True  # MMEngine logs several lines for every parameter
    try:
        model.init_weights()
    finally:
        logger.disabled = disabled


def _dataset_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the classes and palette of a checkpoint's meta, which older checkpoints have in upper case."""
    found = meta.get('dataset_meta') or {key: meta[key] for key in ('CLASSES', 'PALETTE') if meta.get(key)}
    return {key.lower(): value for key, value in found.items()}
