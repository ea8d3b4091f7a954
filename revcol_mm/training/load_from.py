"""``load_from`` of MMEngine's runner, for published checkpoints as they are."""

import os
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner

from revcol_mm.checkpoints.fitting import fit_weights
from revcol_mm.checkpoints.layouts import BACKBONE, model_weights
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.checkpoints.sources import is_remote, local_checkpoint
from revcol_mm.errors import CheckpointError
from revcol_mm.models import ReversibleColumns
from revcol_mm.models.network_weights import is_of_columns

# All that MMEngine registers; a test holds them against its table.
_SCHEMES = (
    '',
    'http://',
    'https://',
    'pavi://',
    r'(\S+\:)?s3://',
    r'(\S+\:)?petrel://',
    'modelzoo://',
    'torchvision://',
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
)


def restrict_loading() -> None:
    """Have MMEngine read every checkpoint by :func:`read_checkpoint`, onto the CPU, until the process ends.

    MMEngine 0.10.7 unpickles what it fetches from a URL, and the onedl fork what weights_only refuses.
    """
    CheckpointLoader.register_scheme(_SCHEMES, _read, force=True)


def _read(filename: str, map_location: Any = None) -> dict[str, Any]:
    checkpoint = read_checkpoint(os.path.expanduser(filename), setting=None)
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        meta.pop('config', None)  # of MMEngine before 0.3; its Runner.resume would run it as Python
    if filename.startswith('mmcls://'):  # whole classifiers, of which MMEngine gives the backbone
        weights = model_weights(checkpoint).items()
        return {'state_dict': {n.removeprefix(BACKBONE): w for n, w in weights if n.startswith(BACKBONE)}}
    return checkpoint


@HOOKS.register_module()
class LoadFromHook(Hook):
    """Let ``load_from`` take published checkpoints, and say what became of their keys.

    Weights get their names in the model; where it will train, those of a model with a single network become
    those of every column of :class:`revcol_mm.models.ReversibleColumns`. Resuming is left to MMEngine. When a
    run begins, whoever's runner it is, :func:`restrict_loading` is called.

    Args:
        strict: All of the model's weights must be in the checkpoint, as for testing; else the backbone's.

    Raises:
        CheckpointError: If there is no such checkpoint, a weight that must be there is missing or has another
            shape, or the checkpoint's backbone has weights that the model's lacks.
    """

    priority = 'VERY_HIGH'  # EMAHook copies the weights of a checkpoint and needs them under their new names

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    def before_run(self, runner: Runner) -> None:
        """Fetch a URL, or miss a file, before the run begins; other stores are left to MMEngine."""
        restrict_loading()
        source = runner._load_from
        if source is None or runner._resume or is_remote(source):
            return
        try:
            local_checkpoint(source, 'load_from')
        except FileNotFoundError as error:
            raise CheckpointError(error) from error

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Rename the weights and check them against the model's."""
        if runner._resume:
            return
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        weights = model_weights(checkpoint)
        source = str(runner._load_from or 'a checkpoint')
        backbone = getattr(model, 'backbone', None)
        grows = isinstance(backbone, ReversibleColumns) and not is_of_columns(weights)
        if grows and not self.strict:  # what is new in columns would be tested untrained
            backbone.load_network(weights, source)
            others = {name: weight for name, weight in weights.items() if not name.startswith(BACKBONE)}
            own = {f'{BACKBONE}{name}': weight for name, weight in backbone.state_dict().items()}
            weights = {**others, **own}
        required = '' if self.strict else BACKBONE
        fit_weights(weights, model, source, required, adapt=not self.strict)
        checkpoint['state_dict'] = weights
