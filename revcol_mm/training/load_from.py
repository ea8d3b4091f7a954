"""Load published checkpoints with ``load_from`` of MMEngine's runner, and read all checkpoints safely."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch.distributed.tensor import DTensor

from revcol_mm.checkpoints.fitting import fit_weights
from revcol_mm.checkpoints.layouts import BACKBONE, model_weights
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.checkpoints.sources import is_remote, local_checkpoint
from revcol_mm.errors import CheckpointError
from revcol_mm.models import ReversibleColumns
from revcol_mm.models.network_weights import is_of_columns
from revcol_mm.unwrapped import unwrapped


def restrict_loading() -> None:
    """Let MMEngine read every checkpoint with :func:`read_checkpoint`, to the CPU, until the process ends.

    MMEngine 0.10.7 unpickles downloaded files without ``weights_only``; the onedl fork does so whenever
    ``weights_only`` fails. Both would execute code in a checkpoint.
    """
    CheckpointLoader.register_scheme(tuple(CheckpointLoader._schemes), _read, force=True)


def _read(filename: str, map_location: Any = None) -> dict[str, Any]:
    checkpoint = read_checkpoint(filename, setting=None)
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        meta.pop('config', None)  # from MMEngine before 0.3; Runner.resume would execute it as Python
    if filename.startswith('mmcls://'):  # classifiers, of which MMEngine returns only the backbone
        weights = model_weights(checkpoint).items()
        return {'state_dict': {n.removeprefix(BACKBONE): w for n, w in weights if n.startswith(BACKBONE)}}
    return checkpoint


@HOOKS.register_module()
class LoadFromHook(Hook):
    """Convert published checkpoints for ``load_from``, and log which weights were loaded.

    Keys are renamed to those of the model. In training, a checkpoint of a single network initialises every
    column of :class:`revcol_mm.models.ReversibleColumns`. Resuming is left to MMEngine. The hook also calls
    :func:`restrict_loading`, so that checkpoints are read safely with any runner.

    Args:
        strict: Whether all weights of the model must be in the checkpoint, as for testing, or only those of
            the backbone.

    Raises:
        CheckpointError: If the checkpoint does not exist, a required weight is missing or has another shape,
            the checkpoint's backbone has weights that the model's lacks, or it is of a single network and the
            model is sharded.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which copies the weights under their renamed keys

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    def before_run(self, runner: Runner) -> None:
        """Download a URL, or report a missing file, before the run begins. MMEngine reads other stores."""
        restrict_loading()
        source = runner._load_from
        if source is None or runner._resume or is_remote(source):
            return
        try:
            local_checkpoint(source, setting=None if self.strict else 'load_from')
        except FileNotFoundError as error:
            raise CheckpointError(error) from error

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Rename the weights and compare them with the model's."""
        if runner._resume:
            return
        model = unwrapped(runner.model)
        weights = model_weights(checkpoint)
        source = str(runner._load_from or 'a checkpoint')
        backbone = getattr(model, 'backbone', None)
        is_single_network = isinstance(backbone, ReversibleColumns) and not is_of_columns(weights)
        if is_single_network and not self.strict:  # in testing, layers between columns would be untrained
            if any(isinstance(param, DTensor) for param in backbone.parameters()):
                raise CheckpointError(
                    f'{source} is of a single network, which FullyShardedRunner cannot load by load_from: '
                    "name it in model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
                )
            backbone.load_network(weights, source)
            others = {name: weight for name, weight in weights.items() if not name.startswith(BACKBONE)}
            own = {f'{BACKBONE}{name}': weight for name, weight in backbone.state_dict().items()}
            weights = {**others, **own}
        required = '' if self.strict else BACKBONE
        fit_weights(weights, model, source, required, adapt=not self.strict)
        checkpoint['state_dict'] = weights
