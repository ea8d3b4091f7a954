# RevCol-S on ImageNet-1K from scratch. Published result: 83.5 top-1.
_base_ = ['_base_/imagenet_1k.py']

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
