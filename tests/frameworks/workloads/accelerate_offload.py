"""A tiny random OPT whose weights accelerate keeps on disk: written once, then read at each forward pass.

accelerate_offload.py FOLDER HIDDEN LAYERS PASSES
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1")

import torch
from accelerate import disk_offload
from gate import gate
from transformers import OPTConfig, OPTForCausalLM

folder, hidden, layers, passes = Path(sys.argv[1]), *map(int, sys.argv[2:5])
config = OPTConfig(
    hidden_size=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers, num_attention_heads=8, vocab_size=4096,
    max_position_embeddings=64, word_embed_proj_dim=hidden, dropout=0.0,
)  # fmt: skip
model = OPTForCausalLM(config).eval()
gate()
disk_offload(model, folder, execution_device=torch.device("cpu"))
for _ in range(passes):
    gate(sizes={str(path): path.stat().st_size for path in folder.glob("*.dat")})
    with torch.no_grad():
        model(input_ids=torch.arange(5, 21).reshape(1, 16))
gate()
