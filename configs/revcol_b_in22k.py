# RevCol-B pre-trained on ImageNet-22K.
_base_ = ['_base_/imagenet_22k.py']

model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
