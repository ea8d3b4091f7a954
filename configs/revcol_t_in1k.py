# RevCol-T on ImageNet-1K from scratch. Published result: 82.2 top-1.
_base_ = ['_base_/imagenet_1k.py']

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.1))
