"""Exported files: writing and opening them in each format."""

import json
import logging
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from revcol_mm.check_env import require_parts

from .image_graph import ImageGraph

MAX_ONE_FILE = 2**31 - 2**24  # bytes of weights in an .onnx file; protobuf ends at 2 GiB
CUDA_PROVIDER = 'CUDAExecutionProvider'
METADATA = 'metadata.json'  # extra file of TorchScript and torch.export
Run = Callable[[Tensor], Sequence[Tensor]]


class ExportedFile(NamedTuple):
    """An exported file that was opened.

    Args:
        run: Runs it on images, (B, C, H, W).
        shape: Shape of its input. Dynamic sizes are not integers.
        metadata: What ``revcol export`` wrote about it.
    """

    run: Run
    shape: list[Any]
    metadata: dict[str, str]


def is_exported(path: str | Path | None) -> bool:
    """Return whether a checkpoint's name is that of an exported file that can be opened here."""
    return Path(str(path)).suffix in ('.onnx', '.pt2')


def open_onnx(path: Path, device: str | None) -> ExportedFile:
    """Open an ONNX file.

    Args:
        path: The file.
        device: 'cpu', 'cuda' or 'cuda:1'. None: a GPU if onnxruntime can use one, otherwise the CPU.

    Raises:
        ValueError: If onnxruntime cannot use the device.
    """
    require_parts('running ONNX', ('onnxruntime',))
    import onnxruntime

    has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers()
    wanted = torch.device(device or ('cuda' if has_cuda else 'cpu'))
    unusable = f'onnxruntime cannot use {device!r}: install onnxruntime-gpu and give cuda, or give cpu'
    if wanted.type not in ('cpu', 'cuda') or (wanted.type == 'cuda' and not has_cuda):
        raise ValueError(unusable)
    on_gpu = [(CUDA_PROVIDER, dict(device_id=wanted.index or 0))] if wanted.type == 'cuda' else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides warnings about 16-bit constants that are not folded
    session = onnxruntime.InferenceSession(path, options, providers=[*on_gpu, 'CPUExecutionProvider'])
    # onnxruntime continues on the CPU if its CUDA libraries cannot be loaded.
    if device and on_gpu and CUDA_PROVIDER not in session.get_providers():
        raise ValueError(unusable)

    def run(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {'image': image.cpu().numpy()})]

    return ExportedFile(run, session.get_inputs()[0].shape, session.get_modelmeta().custom_metadata_map)


def open_torch_export(path: Path, device: torch.device) -> ExportedFile:
    """Open a torch.export file.

    Args:
        path: The file. Reading it may run code that it contains.
        device: Where to run it; it need not be where it was exported.
    """
    extra = {METADATA: ''}
    program = torch.export.load(path, extra_files=extra)
    (image,) = (node for node in program.graph.nodes if node.op == 'placeholder' and node.name == 'image')
    shape = list(image.meta['val'].shape)
    module = move_to_device_pass(program, str(device)).module()  # also moves tensors that the graph makes
    return ExportedFile(lambda image: module(image.to(device)), shape, json.loads(extra[METADATA]))


def write_onnx(
    graph: ImageGraph, image: Tensor, dynamic: bool, metadata: dict[str, str], out: Path, half: bool = False
) -> Run:
    """Write an ONNX file, and its weights beside it if they are too large for one file.

    Args:
        graph: What to export.
        image: Example input, (B, C, H, W).
        dynamic: Whether batch size, height and width stay free.
        metadata: Written into the file.
        out: The file.
        half: Whether weights and most of the arithmetic become float16.

    Returns:
        A function that runs the file, on the CPU.
    """
    require_parts('export to ONNX', ('onnx', 'onnxscript', 'onnxruntime'))

    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # hides warnings about torchvision's operators
    program = torch.onnx.export(
        graph,
        (image,),
        dynamo=True,
        input_names=['image'],
        output_names=graph.output_names,
        dynamic_shapes=_dynamic_shapes(graph, min_batch=2) if dynamic else None,  # the file accepts 1, too
        verbose=False,
    )
    program.model.metadata_props.update(metadata)
    size = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    if half:
        import onnx
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        # onnxruntime 1.23, the last for Python 3.10, converts the output of ConstantOfShape, not its value.
        keep = [*DEFAULT_OP_BLOCK_LIST, 'ConstantOfShape']
        model = convert_float_to_float16(program.model_proto, keep_io_types=True, op_block_list=keep)
        beside = size // 2 > MAX_ONE_FILE
        onnx.save_model(model, out, save_as_external_data=beside, location=f'{out.name}.data')
    else:
        program.save(out, external_data=size > MAX_ONE_FILE)
    return open_onnx(out, 'cpu').run


def write_torchscript(
    graph: ImageGraph, image: Tensor, dynamic: bool, metadata: dict[str, str], out: Path
) -> Run:
    """Write a TorchScript file, whose sizes are always free; see :func:`write_onnx`."""
    traced = torch.jit.trace(graph, image, check_trace=False)
    traced.save(out, _extra_files={METADATA: json.dumps(metadata)})
    return torch.jit.load(out, map_location=image.device)


def write_torch_export(
    graph: ImageGraph, image: Tensor, dynamic: bool, metadata: dict[str, str], out: Path
) -> Run:
    """Write a torch.export file; see :func:`write_onnx`."""
    program = torch.export.export(
        graph,
        (image,),
        dynamic_shapes=_dynamic_shapes(graph, min_batch=1) if dynamic else None,
        # Otherwise torch 2.14 fails: it cannot prove that a row's length never divides 1.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    torch.export.save(program, out, extra_files={METADATA: json.dumps(metadata)})
    return open_torch_export(out, image.device).run


def _dynamic_shapes(graph: ImageGraph, min_batch: int) -> dict[str, dict[int, Any]]:
    batch = torch.export.Dim('batch', min=min_batch)
    height, width = (torch.export.Dim(name, min=graph.min_side) for name in ('height', 'width'))
    return dict(image={0: batch, 2: height, 3: width})
