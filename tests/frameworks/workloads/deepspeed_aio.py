"""DeepSpeed's async_io, as its swappers use it: writes a tensor to a file and reads it back, in several ways.

deepspeed_aio.py FOLDER WAYS: WAYS is JSON, a list of [block size, queue depth, single submit, overlap, threads, bytes].
Each is a child of its own, so that each has its own pid and only one has to import.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from gate import gate


def swap(path: Path, block: int, depth: int, single: bool, overlap: bool, threads: int, size: int) -> None:
    handle = op.aio_handle(block, depth, single, overlap, threads)
    tensor = handle.new_cpu_locked_tensor(size, torch.empty(0, dtype=torch.uint8))
    tensor.copy_(torch.arange(size, dtype=torch.int64) % 251)
    expected = tensor.clone()
    handle.sync_pwrite(tensor, str(path), 0)
    tensor.zero_()
    handle.async_pread(tensor, str(path), 0)
    handle.wait()
    gate(path=str(path), same=bool((tensor == expected).all()))
    handle.free_cpu_locked_tensor(tensor)


folder, ways = Path(sys.argv[1]), json.loads(sys.argv[2])
op = AsyncIOBuilder().load(verbose=False)
gate()
for number, way in enumerate(ways):
    child = os.fork()
    if child == 0:
        try:
            swap(folder / f"{number}_param.tensor.swp", *way)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
gate()
