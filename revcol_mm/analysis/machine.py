"""A description of the hardware and software that timings were measured on."""

import platform
import re
from pathlib import Path

import torch


def machine(device: torch.device) -> str:
    """Describe a device and torch's version; for a CPU, also its number of threads and instruction set."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path('/proc/cpuinfo')  # exists on Linux only
        model = re.search(r'model name\s*: (.*)', cpuinfo.read_text() if cpuinfo.is_file() else '')
        cpu = model[1] if model else platform.machine()
        threads = torch.get_num_threads()
        name = f'{threads} thread{"s"[: threads > 1]} of {cpu}, {torch.backends.cpu.get_cpu_capability()}'
    return f'{name}, torch {torch.__version__}'
