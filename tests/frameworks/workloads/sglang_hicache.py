"""SGLang's file backend of HiCache: stores pages of KV cache, and reads them again.

sglang_hicache.py FOLDER PAGES BYTES. The backend is SGLang's; of its other modules only a function that formats a
number is replaced, since they import a GPU's libraries. The process has the title that SGLang gives its scheduler.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types

import setproctitle
import torch
from gate import gate

common = types.ModuleType("sglang.srt.utils.common")
common.human_readable_int = int  # type: ignore[attr-defined]
sys.modules["sglang.srt.utils.common"] = common

from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig  # noqa: E402

folder, pages, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder, exist_ok=True)  # which rank 0 would do
setproctitle.setproctitle("sglang::scheduler_TP1")
backend = HiCacheFile(
    HiCacheStorageConfig(
        tp_rank=1, tp_size=2, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
        enable_storage_metrics=False, is_page_first_layout=False, model_name="org/model",
    ),
    folder,
)  # fmt: skip
keys = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(pages)]
gate()
for number, key in enumerate(keys):
    assert backend.set(key, torch.full((size,), number % 251, dtype=torch.uint8))
gate()
for number, key in enumerate(keys):
    assert bool((backend.get(key, torch.empty(size, dtype=torch.uint8)) == number % 251).all())
gate()
