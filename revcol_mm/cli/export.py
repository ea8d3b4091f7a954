"""Export a model to ONNX, TorchScript or torch.export, and check that the file predicts as the model does.

    revcol export configs/upernet_revcol_t_ade20k.py WEIGHTS --format onnx --dynamic --shape 512 512

The input is 'image', float32, (B, C, H, W), with values from 0 to 255. Three channels are in RGB order,
unless the config keeps OpenCV's BGR. Normalisation with the config's mean and standard deviation is in the
exported graph; resizing, cropping and padding are not.

The outputs are:

- Classifier: 'scores', softmax, (B, K).
- Segmentor, including Mask2Former: 'labels', the likeliest class of every pixel, int64, and 'scores', its
  score, both (B, H, W). The image is predicted on as a whole, without sliding windows.
- DINO, RetinaNet and Cascade R-CNN: 'boxes', (B, N, 4), x1, y1, x2, y2 in pixels of the image, 'scores' and
  'labels', (B, N), the best first, after NMS if the model uses it. N is the config's maximum per image;
  unused places have score 0. 'masks', (B, N, 28, 28), are probabilities in 28 x 28 parts of a box.
- Mask2Former of MMDetection: the same, but 'mask_logits', (B, N, H / 4, W / 4), instead of 'masks'. Scale
  them bilinearly to the image; they are above 0 inside the object. Panoptic models first return 'segments',
  (B, H, W): class + 1000 x number of each thing, the class of stuff, and the number of classes where there
  is no segment.
- With --backbone-only: the features that the neck or head gets, 'feature_0' and so on.

Without --dynamic, B is 1, and H and W are those of --shape. With it they are free from a printed minimum on.

After writing, the file is run on random images by onnxruntime or torch and compared with the model.
Differences are relative to the largest value. For labels it is how much lower the model scores the file's
label than its own, for boxes the missing overlap, for segments the share of other pixels. If it exceeds
--tolerance, the command fails and deletes the file.

The file also holds the meaning of input and outputs, classes, mean, standard deviation, channel order, and
the config and checkpoint it was made of: in ONNX in metadata_props, otherwise in the extra file
metadata.json. --half stores ONNX weights in 16 bits. Detectors do not support it, because rounding moves
their boxes.
"""

import argparse
import json
import warnings
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor
from torch.utils._pytree import tree_leaves

import revcol_mm
from revcol_mm.analysis.complexity import default_shape
from revcol_mm.apis import init_model
from revcol_mm.apis.inferencer import data_set_for_testing
from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options
from revcol_mm.errors import errors_in_one_line
from revcol_mm.export.build_image_graph import build_image_graph
from revcol_mm.export.detection_graph import DetectionGraph
from revcol_mm.export.exported_file import Run, write_onnx, write_torch_export, write_torchscript
from revcol_mm.export.image_graph import ImageGraph
from revcol_mm.export.mask2former_graph import Mask2FormerGraph
from revcol_mm.models.image_channels import image_channels

FORMATS = {
    'onnx': ('.onnx', write_onnx),
    'torchscript': ('.pt', write_torchscript),
    'torch-export': ('.pt2', write_torch_export),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument('--format', choices=FORMATS, required=True)
    parser.add_argument('--out', type=Path, metavar='FILE', help='[CONFIG.onnx, .pt or .pt2]')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='[the size for which get_flops.py counts]'
    )
    parser.add_argument('--dynamic', action='store_true', help='leave batch size, height and width free')
    parser.add_argument('--backbone-only', action='store_true', help='export the features of any model')
    parser.add_argument(
        '--device', default='cpu', help='device of the exported graph and its constants [cpu]'
    )
    parser.add_argument('--half', action='store_true', help='weights and most of the arithmetic in 16 bits')
    parser.add_argument(
        '--tolerance',
        type=float,
        help='largest allowed difference [detectors and Mask2Former 0.001, others 0.0001, with --half 0.01]',
    )
    return parser.parse_args()


def describe(model: BaseModel, graph: ImageGraph, args: argparse.Namespace) -> dict[str, str]:
    """Return the metadata of the file, in which values that are not text are JSON."""
    cfg = model.cfg
    preprocessor = {**(cfg.get('data_preprocessor') or {}), **(cfg.model.get('data_preprocessor') or {})}
    channels = image_channels(model)
    classes = model.dataset_meta.get('classes')
    if not classes and (dataset := data_set_for_testing(cfg)) is not None:
        classes = dataset.metainfo.get('classes')
    rgb = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    return dict(
        input=f'image: float32, (B, {channels}, H, W), 0 to 255',
        channel_order='as read' if channels != 3 else 'RGB' if rgb else 'BGR',
        mean=json.dumps(None if graph.pixel_mean is None else graph.pixel_mean.flatten().tolist()),
        std=json.dumps(None if graph.pixel_std is None else graph.pixel_std.flatten().tolist()),
        normalisation='in the graph',
        outputs=json.dumps(graph.outputs),
        classes=json.dumps(None if args.backbone_only else classes or None),
        config=cfg.filename,
        checkpoint=args.checkpoint,
        version=f'revcol_mm {revcol_mm.__version__}, torch {torch.__version__}',
    )


def sizes_to_check(graph: ImageGraph, height: int, width: int, dynamic: bool) -> list[tuple[int, int, int]]:
    """Return B, H and W of the images to compare on: the traced size and, with ``dynamic``, two odd ones."""
    others = [
        (2, max(graph.min_side, height * 3 // 4) | 1, width * 5 // 4 | 1),
        (3, height * 5 // 4 | 1, max(graph.min_side, width // 2) | 1),
    ]
    return [(1, height, width), *(others if dynamic else [])]


def check(graph: ImageGraph, run: Run, image: Tensor, tolerance: float) -> None:
    """Compare an exported file with the model, and print the difference.

    Raises:
        ValueError: If the file does not run, or the difference is above the tolerance.
    """
    size = ' x '.join(map(str, (len(image), *image.shape[2:])))
    try:
        outputs = [output.to(image.device) for output in tree_leaves(run(image))]
    except Exception as error:  # every runtime has its own exceptions
        raise ValueError(f'the file does not run on {size} images: {error}') from error
    worst = graph.difference(outputs, image)
    print(f'{size:>16} images: largest difference {worst:.1e}')
    if not worst <= tolerance:
        raise ValueError(
            f'on {size} images the file differs from the model by {worst:.1e}, more than {tolerance}'
        )


@torch.no_grad()
def export(args: argparse.Namespace, cfg: Config) -> None:
    """Write the file and compare it with the model.

    Raises:
        CheckpointError: If the checkpoint does not fit the model.
        ValueError: If the model cannot be exported, or the file predicts something else than the model.
    """
    shape = args.shape or default_shape(cfg)
    suffix, write = FORMATS[args.format]
    out = args.out or Path(Path(args.config).stem + suffix)
    if out.suffix != suffix:
        raise ValueError(f'--out: the name of a file in format {args.format} must end in {suffix}, got {out}')
    if args.half:
        if args.format != 'onnx':
            raise ValueError(f'--half is only for --format onnx, got {args.format}')
        write = partial(write, half=True)
    check_writable(out.parent)
    model = init_model(cfg, args.checkpoint, args.device)
    graph = build_image_graph(model, args.backbone_only)
    if args.half and isinstance(graph, DetectionGraph | Mask2FormerGraph):
        raise ValueError('--half is not for detectors: rounding to 16 bits moves their boxes')
    has_least_size = args.dynamic or isinstance(graph, DetectionGraph)
    if has_least_size and min(shape) < graph.min_side:
        raise ValueError(f'--shape must be at least {graph.min_side}, got {shape[0]} and {shape[1]}')
    tolerance = (1e-2 if args.half else graph.tolerance) if args.tolerance is None else args.tolerance
    metadata = describe(model, graph, args)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)

    def images(batch: int, height: int, width: int) -> Tensor:
        return 255 * torch.rand(batch, image_channels(model), height, width, device=args.device)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the comparison below finds whatever they warn of
        run = write(graph, images(2 if args.dynamic else 1, *shape), args.dynamic, metadata, out)
    sizes = f'sizes from {graph.min_side} on' if args.dynamic else 'one size'
    print(f'wrote {out}: {", ".join(graph.output_names)}; {sizes}')
    try:
        for size in sizes_to_check(graph, *shape, args.dynamic):
            check(graph, run, images(*size), tolerance)
    except ValueError:
        for path in (out, Path(f'{out}.data')):
            path.unlink(missing_ok=True)
        raise


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        export(args, cfg)


if __name__ == '__main__':
    main()
