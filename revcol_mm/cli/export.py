"""Export a model, from image to answer, to ONNX, TorchScript or torch.export, and check the file.

    revcol export configs/upernet_revcol_t_ade20k.py WEIGHTS --format onnx --dynamic --shape 512 512

The exported graph is what testing runs:

- Its input is 'image', float32, (B, C, H, W), values as in files, of 8 bits from 0 to 255, C as the backbone
  takes. Of 3 channels the order is RGB, unless the config keeps OpenCV's BGR. The config's mean and standard
  deviation are in the graph; resizing, cropping and padding are not.
- A classifier returns 'scores', softmax, (B, K).
- A segmentor, Mask2Former too, returns 'labels', the likeliest class of every pixel, int64, and 'scores', its
  score, both (B, H, W). It takes the image as a whole, without sliding windows, and scales up to its size.
- A detector, DINO, RetinaNet or Cascade R-CNN, returns 'boxes', (B, N, 4), x1, y1, x2, y2 in pixels of the
  image, 'scores' and 'labels', (B, N), the best first, after NMS where there is any. N is what the config
  keeps of an image; scores of 0 fill up. 'masks', (B, N, 28, 28), are probabilities in 28 x 28 parts of a
  box.
- Mask2Former of a detector returns the same, but with 'mask_logits', (B, N, H / 4, W / 4), to be scaled to
  the image bilinearly, above 0 inside of an object; for panoptic segmentation first 'segments', (B, H, W):
  the class of every pixel's segment + 1000 x its number, which of stuff is 0; without a segment the number
  of classes.
- With --backbone-only it returns the features that the config's neck or head gets, 'feature_0' and so on.

Without --dynamic B is 1, H and W are those of --shape. With it they are free, from what is printed on.

The file is read back and run, on random images, by onnxruntime or torch beside the model. Differences are
relative to the largest value; of labels, it is how much lower the model scores a label than its own choice;
of boxes, what they lack of overlap; of segments, the share of pixels in others. A difference above
--tolerance is an error, and the file is deleted.

In the file are also the meaning of input and outputs, classes, mean, standard deviation, channel order and
where it comes from: in ONNX's metadata_props, or in metadata.json, an extra file of the other two. --half has
the weights of ONNX in 16 bits, but not of detectors, whose boxes that moves.
"""

import argparse
import json
import logging
import warnings
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor
from torch.utils._pytree import tree_leaves

import revcol_mm
from revcol_mm.analysis.complexity import default_shape
from revcol_mm.apis import init_model
from revcol_mm.apis.detection_graph import DetectionGraph
from revcol_mm.apis.exported_model import Run, open_onnx, open_torch_export
from revcol_mm.apis.image_graph import ImageGraph, image_graph
from revcol_mm.apis.mask2former_graph import Mask2FormerGraph
from revcol_mm.check_env import require_parts
from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options
from revcol_mm.errors import errors_in_one_line
from revcol_mm.models.image_channels import image_channels

MAX_ONE_FILE = 2**31 - 2**24  # bytes of weights in an .onnx; protobuf ends at 2 GiB


def free_sizes(graph: ImageGraph, min_batch: int) -> dict:
    """Batch size, height and width of the image as dimensions that stay free."""
    batch = torch.export.Dim('batch', min=min_batch)
    height, width = (torch.export.Dim(name, min=graph.min_side) for name in ('height', 'width'))
    return dict(image={0: batch, 2: height, 3: width})


def to_onnx(
    graph: ImageGraph, image: Tensor, dynamic: bool, metadata: dict, out: Path, half: bool = False
) -> Run:
    require_parts('export to ONNX', ('onnx', 'onnxscript', 'onnxruntime'))

    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it warns of operators of torchvision
    program = torch.onnx.export(
        graph,
        (image,),
        dynamo=True,
        input_names=['image'],
        output_names=graph.output_names,
        dynamic_shapes=free_sizes(graph, min_batch=2) if dynamic else None,  # the file takes 1 as well
        verbose=False,
    )
    program.model.metadata_props.update(metadata)
    size = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    if half:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(program.model_proto, keep_io_types=True)
        onnx.save_model(
            model, out, save_as_external_data=size // 2 > MAX_ONE_FILE, location=f'{out.name}.data'
        )
    else:
        program.save(out, external_data=size > MAX_ONE_FILE)
    return open_onnx(out, 'cpu')[0]


def to_torchscript(graph: ImageGraph, image: Tensor, dynamic: bool, metadata: dict, out: Path) -> Run:
    traced = torch.jit.trace(graph, image, check_trace=False)  # its sizes are free anyway
    traced.save(out, _extra_files={'metadata.json': json.dumps(metadata)})
    return torch.jit.load(out, map_location=image.device)


def to_torch_export(graph: ImageGraph, image: Tensor, dynamic: bool, metadata: dict, out: Path) -> Run:
    sizes = free_sizes(graph, min_batch=1) if dynamic else None
    program = torch.export.export(
        graph,
        (image,),
        dynamic_shapes=sizes,
        # torch 2.14 asks whether 1 is a multiple of a row's length, and does not see that it never is
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    torch.export.save(program, out, extra_files={'metadata.json': json.dumps(metadata)})
    return open_torch_export(out, str(image.device))[0]


FORMATS = {
    'onnx': ('.onnx', to_onnx),
    'torchscript': ('.pt', to_torchscript),
    'torch-export': ('.pt2', to_torch_export),
}


def class_names(model: BaseModel) -> list[str] | None:
    """As the checkpoint or, if it does not say, the config's data set has them."""
    dataset = model.cfg.get('test_dataloader', {}).get('dataset')
    with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        told = DATASETS.build(ConfigDict(dataset, lazy_init=True)).metainfo if dataset else {}
    classes = {**told, **model.dataset_meta}.get('classes')
    return list(classes) if classes else None


def describe(model: BaseModel, graph: ImageGraph, args: argparse.Namespace) -> dict[str, str]:
    """Metadata of the file; what is no text is JSON."""
    cfg = model.cfg
    preprocessor = {**(cfg.get('data_preprocessor') or {}), **(cfg.model.get('data_preprocessor') or {})}
    channels = image_channels(model)
    rgb = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    return dict(
        input=f'image: float32, (B, {channels}, H, W), 0 to 255',
        channel_order='as read' if channels != 3 else 'RGB' if rgb else 'BGR',
        mean=json.dumps(None if graph.pixel_mean is None else graph.pixel_mean.flatten().tolist()),
        std=json.dumps(None if graph.pixel_std is None else graph.pixel_std.flatten().tolist()),
        normalisation='in the graph',
        outputs=json.dumps(graph.outputs),
        classes=json.dumps(None if args.backbone_only else class_names(model)),
        config=cfg.filename,
        checkpoint=args.checkpoint,
        version=f'revcol_mm {revcol_mm.__version__}, torch {torch.__version__}',
    )


def sizes_to_check(graph: ImageGraph, height: int, width: int, dynamic: bool) -> list[tuple[int, int, int]]:
    """B, H and W of images: those that were traced, and with ``dynamic`` others, also odd ones."""
    others = [
        (2, max(graph.min_side, height * 3 // 4) | 1, width * 5 // 4 | 1),
        (3, height * 5 // 4 | 1, max(graph.min_side, width // 2) | 1),
    ]
    return [(1, height, width), *(others if dynamic else [])]


def check(graph: ImageGraph, run: Run, image: Tensor, tolerance: float) -> None:
    """Run an exported file beside the model, and print how far they are from one another.

    Raises:
        ValueError: If it is too far, or the file does not run.
    """
    size = ' x '.join(map(str, (len(image), *image.shape[2:])))
    try:
        outputs = [output.to(image.device) for output in tree_leaves(run(image))]
    except Exception as error:  # each runtime has its own
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
        CheckpointError: If the checkpoint does not fit.
        ValueError: If the model cannot be exported, or the file does something else than the model.
    """
    shape = args.shape or default_shape(cfg)
    suffix, write = FORMATS[args.format]
    tolerance = (1e-2 if args.half else 1e-4) if args.tolerance is None else args.tolerance
    out = args.out or Path(Path(args.config).stem + suffix)
    if out.suffix != suffix:
        raise ValueError(f'--out: the name of a file in format {args.format} ends in {suffix}, got {out}')
    if args.half:
        if args.format != 'onnx':
            raise ValueError(f'--half is for format onnx, got {args.format}')
        write = partial(write, half=True)
    check_writable(out.parent)
    model = init_model(cfg, args.checkpoint, args.device)
    graph = image_graph(model, args.backbone_only)
    if args.half and isinstance(graph, DetectionGraph | Mask2FormerGraph):
        raise ValueError('--half is not for detectors: 16 bits move boxes, and choose others among many')
    if min(shape) < graph.min_side:
        raise ValueError(
            f'--shape takes height and width from {graph.min_side} on, got {shape[0]} and {shape[1]}'
        )
    metadata = describe(model, graph, args)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)

    def images(batch: int, height: int, width: int) -> Tensor:
        return 255 * torch.rand(batch, image_channels(model), height, width, device=args.device)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # if they mean anything, the file is wrong, which is seen below
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument('--format', choices=FORMATS, required=True)
    parser.add_argument('--out', type=Path, metavar='FILE', help='[CONFIG.onnx, .pt or .pt2]')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='[as get_flops.py counts with]'
    )
    parser.add_argument('--dynamic', action='store_true', help='leave batch size, height and width free')
    parser.add_argument('--backbone-only', action='store_true', help='export features, of any model')
    parser.add_argument('--device', default='cpu', help='where graph and constants are [cpu]')
    parser.add_argument('--half', action='store_true', help='weights and most of the arithmetic in 16 bits')
    parser.add_argument('--tolerance', type=float, help='of the difference [0.0001, with --half 0.01]')
    args = parser.parse_args()
    with errors_in_one_line():
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        export(args, cfg)


if __name__ == '__main__':
    main()
