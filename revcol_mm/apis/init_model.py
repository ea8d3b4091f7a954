"""From a config and a checkpoint to a model that predicts."""

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
from revcol_mm.config.code import files_with_code
from revcol_mm.config.command_line import read_config
from revcol_mm.errors import PreflightError, building
from revcol_mm.preflight import check_normalisation, check_sliding_windows
from revcol_mm.training.load_from import restrict_loading


def pick_device(device: str | None = None) -> torch.device:
    """The device of a name such as 'cpu', 'cuda' or 'cuda:1'; None: a GPU where there is one, else the CPU.

    Raises:
        ValueError: If there is no such device here.
    """
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(1, device=device).item()  # asks the driver, too; meta tensors have no values
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
        here = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
        raise ValueError(f'device {device!r} is none of {", ".join(here)}') from error
    return torch.device(device)


def init_model(
    config: str | Path | Config, checkpoint: str | Path | None = None, device: str | None = None
) -> BaseModel:
    """Build a config's model in evaluation mode.

    Args:
        config: Path of a config, or one that was read.
        checkpoint: File or URL, published or ours, read without running anything in it. None: random weights
            as a training without ``init_cfg`` begins with, and nothing is fetched.
        device: See :func:`pick_device`.

    Returns:
        The model. Its attribute ``cfg`` is the config, ``dataset_meta`` the names ('classes') and perhaps the
        colours ('palette') of classes as the checkpoint tells them, {} if it does not.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If the config's ``default_scope`` is wrong, there is no such device, or the model cannot
            be built, its parts do not fit each other, or it is built only from a file that may run code as it
            is read.
        CheckpointError: If the checkpoint cannot be read, or one of the model's weights is not in it.
        SystemExit: If the environment lacks what the config's task needs.
    """
    device = pick_device(device)
    cfg = config if isinstance(config, Config) else read_config(config)
    for place, problem in files_with_code(cfg.model, 'model'):
        raise PreflightError(f'{problem} ({place})')
    model_cfg = copy.deepcopy(cfg.model)
    # MMPretrain's configs have it beside the model, as MMEngine's runner takes it.
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
        _init_weights(model)
    else:
        weights = model_weights(content)
        fit_weights(weights, model, str(checkpoint), adapt=False)
        model.load_state_dict(weights, strict=False)  # what may be missing or left over, fit_weights has said
    model.cfg = cfg
    model.dataset_meta = _dataset_meta(content.get('meta') or {})
    return model.to(device).eval()


def _init_weights(model: BaseModel) -> None:
    """Until then some of DINO's weights are what was in memory. MMEngine logs several lines of each."""
    restrict_loading()  # parts other than the backbone may name a checkpoint
    logger = MMLogger.get_current_instance()
    disabled, logger.disabled = logger.disabled, True
    try:
        model.init_weights()
    finally:
        logger.disabled = disabled


def _dataset_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's meta tells of the classes, under the names of MMEngine's data sets."""
    told = meta.get('dataset_meta') or {key: meta[key] for key in ('CLASSES', 'PALETTE') if meta.get(key)}
    return {key.lower(): value for key, value in told.items()}
