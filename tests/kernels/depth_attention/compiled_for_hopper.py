"""Compiles the Triton kernels for an H100 or H200, which needs none, and prints a line for each: its name, how many
16-byte asynchronous copies its machine code has, and the bytes of registers spilled to memory.

Sizes are those of the paper's CIFAR-10 model: 276 value and 20 key channels, maps of 16x16. With channels last a pixel
of 276 channels does not end at a multiple of 16 bytes; there it is 272.
"""

import re
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attvae.kernels.depth_attention import triton as depth_attention
from attvae.kernels.depth_attention import triton_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {"table": "*i64", "log_sum": "*fp32", "waiting": "*fp32", "slots": "i32", "scale": "fp32"}


def compiled(function: triton.JITFunction, channels_last: bool) -> bytes:
    widths = (20, 272 if channels_last else 276)
    query, value = (torch.empty(1, width, 16, 16, dtype=torch.bfloat16) for width in widths)
    if channels_last:
        query, value = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (query, value))
    cut = depth_attention._Slots(query, [query], [value]).cut
    constants = {parameter.name: cut.pop(parameter.name) for parameter in function.params if parameter.is_constexpr}
    signature, divisible = {}, {}
    for i, parameter in enumerate(function.params):
        maps = "i32" if parameter.name.endswith(("_step", "_apart")) else "*bf16"
        signature[parameter.name] = "constexpr" if parameter.is_constexpr else TYPES.get(parameter.name, maps)
        if signature[parameter.name] in ("*i64", "*fp32", "*bf16", "i32") and parameter.name != "slots":
            divisible[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=cut).asm["cubin"]


for function in (triton_kernels.forward, triton_kernels.backward):
    for channels_last in (False, True):
        with NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled(function, channels_last))
            file.flush()
            code, usage = (
                subprocess.run([CUOBJDUMP, ask, file.name], capture_output=True, text=True, check=True).stdout
                for ask in ("-sass", "-res-usage")
            )
        (spilled,) = re.findall(r"STACK:(\d+)", usage)
        print(f"{function.__name__}{'_channels_last' * channels_last}", code.count("LDGSTS.E.BYPASS.128"), spilled)
