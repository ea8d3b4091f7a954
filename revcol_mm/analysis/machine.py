"""What timings are taken on."""

import platform
import re
from pathlib import Path

import torch


def machine(device: torch.device) -> str:
    """Name a device, of a CPU with the number of threads, and torch's version."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path('/proc/cpuinfo')  # Linux alone tells the model of a CPU
        model = re.search(r'model name\s*: (.*)', cpuinfo.read_text() if cpuinfo.is_file() else '')
        cpu = model[1] if model else platform.machine()
        threads = torch.get_num_threads()
        name = f'{threads} thread{"s"[: threads > 1]} of {cpu}, {torch.backends.cpu.get_cpu_capability()}'
    return f'{name}, torch {torch.__version__}'
