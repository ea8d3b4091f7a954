# DINO on large images. Values are those of InternImage-H (Objects365, then COCO: 63.4 AP).
_base_ = ['dino_5scale.py']

model = dict(dn_cfg=dict(group_cfg=dict(num_dn_queries=1000)))
train_pipeline = _base_.train_pipeline
train_pipeline[3] = dict(type='RandomResize', scale=[(2000, 600), (2000, 1800)], keep_ratio=True)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(2000, 1000))
tta_pipeline = _base_.tta_pipeline
for resize, side in zip(tta_pipeline[1].transforms[0], (800, 1000, 1200)):
    resize.update(scale=(2000, side))
train_dataloader = dict(
    batch_size=1,
    dataset=dict(filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
