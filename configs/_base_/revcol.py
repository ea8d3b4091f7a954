# Variables for RevCol backbones: the channels of each arch's levels, for in_channels of necks and heads, and
# where the published weights are.
_base_ = []  # marks a plain config: an import alone would make MMEngine read it as a lazy config
from revcol_mm.models.backbones.revcol import ARCHS  # noqa: E402

revcol_channels = {name: list(arch['channels']) for name, arch in ARCHS.items()}
del ARCHS
revcol_weights = 'https://github.com/megvii-research/RevCol/releases/download/checkpoint/'
revcol_hub = 'https://huggingface.co/LarryTsai/RevCol/resolve/main/revcol_models/'
