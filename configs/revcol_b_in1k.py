# RevCol-B on ImageNet-1K from scratch. Published result: 84.1 top-1.
_base_ = ['_base_/imagenet_1k.py']

model = dict(backbone=dict(arch='base', drop_path_rate=0.4))
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(eta_min_ratio=1e-8 / _base_.lr)
