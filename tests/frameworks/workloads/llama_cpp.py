"""llama.cpp itself, by the bindings of xllamacpp: loads a model and generates a few tokens.

llama_cpp.py FILE mmap|none|direct: how llama.cpp reads the file.
"""

from __future__ import annotations

import sys

import xllamacpp
from gate import gate

LOAD = xllamacpp.llama_load_mode
MODES = {"mmap": LOAD.LLAMA_LOAD_MODE_MMAP, "none": LOAD.LLAMA_LOAD_MODE_NONE, "direct": LOAD.LLAMA_LOAD_MODE_DIRECT_IO}

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.load_mode = MODES[sys.argv[2]]
parameters.n_ctx, parameters.n_parallel, parameters.n_predict = 128, 1, 4
parameters.cpuparams.n_threads = 2
parameters.warmup = False
gate()
server = xllamacpp.Server(parameters)
answer = server.handle_completions({"prompt": "NVMe", "max_tokens": 4})
gate(answer=str(answer)[:200])
