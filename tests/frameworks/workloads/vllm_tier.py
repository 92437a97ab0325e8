"""vLLM's file tier of KV cache: its own store and load of blocks, with O_DIRECT, under the names that it gives.

vllm_tier.py FOLDER BLOCKS BYTES. The names are put together here as v1/kv_offload/file_mapper.py does, which imports
much else. The process has the title that vLLM gives its engine.
"""

from __future__ import annotations

import hashlib
import mmap
import sys

import setproctitle
from gate import gate
from vllm.v1.kv_offload.tiering.fs.io import batch_load_block, batch_store_block, probe_o_direct

folder, blocks, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
setproctitle.setproctitle("VLLM::EngineCore")
names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(blocks)]
paths = [f"{folder}/org_model_0123456789ab_r0/{name[:3]}/{name[3:5]}_g0/{name}.bin" for name in names]
memory = mmap.mmap(-1, blocks * size)
for number in range(blocks):
    memory[number * size : (number + 1) * size] = bytes([number % 251]) * size
view, offsets, direct = memoryview(memory), [number * size for number in range(blocks)], probe_o_direct(folder)
gate(direct=direct)
batch_store_block(paths, view, offsets, size, direct)
gate()
memory[:] = bytes(len(memory))
batch_load_block(paths, view, offsets, size, direct)
assert all(memory[number * size] == number % 251 for number in range(blocks))
gate(paths=paths)
