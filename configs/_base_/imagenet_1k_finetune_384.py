# Fine-tuning at 384x384. As in RevCol's official code, test images above 224x224 are resized to a square
# instead of cropped.
_base_ = ['imagenet_1k_finetune.py']

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=384)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), **_base_.bicubic),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
