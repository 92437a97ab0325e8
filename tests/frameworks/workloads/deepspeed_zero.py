"""ZeRO-3 with a tiny random OPT whose parameters, and optimizer state where it trains, lie on NVMe.

deepspeed_zero.py FOLDER infer|train HIDDEN LAYERS STEPS: a step is a forward pass, or a training step.
Without prefetch and with nothing kept (stage3_max_live_parameters 0) each pass reads all parameters again, as a model
does that is much larger than the GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import deepspeed
import torch
from gate import gate
from transformers import OPTConfig, OPTForCausalLM
from transformers.integrations import HfDeepSpeedConfig

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # for ranks beside this one; it would be compiled first

folder, mode, hidden, layers, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
train = mode == "train"
model_config = OPTConfig(
    hidden_size=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers, num_attention_heads=8, vocab_size=4096,
    max_position_embeddings=64, word_embed_proj_dim=hidden, dropout=0.0, pad_token_id=None,
)  # fmt: skip
config: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "train_batch_size": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "offload_param": {"device": "nvme", "nvme_path": folder, "buffer_count": 5, "buffer_size": 8 * hidden**2},
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
    },
    "aio": {"block_size": 1 << 20, "queue_depth": 8, "single_submit": False, "overlap_events": True},
}
if train:
    config["zero_optimization"]["offload_optimizer"] = {"device": "nvme", "nvme_path": folder, "buffer_count": 4}
    config["zero_force_ds_cpu_optimizer"] = False  # torch's own Adam: DeepSpeed's would be compiled first
    config["optimizer"] = {"type": "Adam", "params": {"lr": 1e-4, "torch_adam": True}}
keep = HfDeepSpeedConfig(config)  # transformers looks here whether to make the model in parts
with deepspeed.zero.Init(config_dict_or_path=config):
    model = OPTForCausalLM(model_config)
engine = deepspeed.initialize(model=model, config=config, model_parameters=model.parameters() if train else None)[0]
ids = torch.randint(5, 4000, (1, 16))


def step() -> None:
    if train:
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    else:
        with torch.no_grad():
            engine(input_ids=ids)


step()  # makes the files, the optimizer's too
parameters = {p.ds_id: p.ds_numel * p.element_size() for p in engine.module.parameters()}
gate()
for _ in range(steps):
    step()
gate(parameters=parameters, sizes={str(path): path.stat().st_size for path in Path(folder).rglob("*.swp")})
torch.distributed.destroy_process_group()
