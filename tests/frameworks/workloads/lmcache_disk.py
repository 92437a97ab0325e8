"""LMCache's backend for a local disk: stores chunks of KV cache, and reads them again with its pool of threads.

lmcache_disk.py FOLDER CHUNKS TOKENS direct|buffered. The process has the title of the vLLM worker that would hold it.
Two of LMCache's packages are entered without their __init__.py, which import all other backends and network libraries.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import types
from pathlib import Path

import lmcache
import setproctitle
import torch
from gate import gate
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata

for name in ("storage_backend", "cache_controller"):
    package = types.ModuleType(f"lmcache.v1.{name}")
    package.__path__ = [str(Path(lmcache.__file__).parent / "v1" / name)]
    sys.modules[package.__name__] = package

from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend  # noqa: E402
from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend  # noqa: E402

folder, chunks, tokens, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
setproctitle.setproctitle("VLLM::Worker_TP1")
config = LMCacheEngineConfig.from_defaults(
    chunk_size=tokens, local_cpu=False, max_local_cpu_size=0.25, local_disk=folder, max_local_disk_size=1.0,
    extra_config={"use_odirect": mode == "direct"},
)  # fmt: skip
shape = (4, 2, tokens, 8, 64)
metadata = LMCacheMetadata("org/model", 2, 2, 1, 1, torch.bfloat16, shape)
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
memory = LocalCPUBackend(config, metadata=metadata, dst_device="cpu")
disk = LocalDiskBackend(config, loop, memory, dst_device="cpu", metadata=metadata)
keys = [CacheEngineKey("org/model", 2, 1, 0x7F3A00 + number, torch.bfloat16) for number in range(chunks)]
gate()
for number, key in enumerate(keys):
    chunk = memory.allocate(torch.Size((2, 4, tokens, 512)), torch.bfloat16, MemoryFormat.KV_2LTD)
    chunk.tensor.fill_(number)
    disk.submit_put_task(key, chunk)
    while disk.exists_in_put_tasks(key):
        time.sleep(0.002)
    chunk.ref_count_down()
size = chunk.get_size()
gate()
found = disk.batched_get_blocking(keys)
assert all(bool((chunk.tensor == number).all()) for number, chunk in enumerate(found))
gate(size=size)
os._exit(0)  # its event loop and pools have no orderly end
