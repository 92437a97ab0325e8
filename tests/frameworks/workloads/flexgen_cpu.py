"""FlexGen's own main on a host without a GPU: its disk, its copy threads and its loop are the real ones.

Takes FlexGen's own arguments; FLEXGEN_LAYERS and FLEXGEN_VOCABULARY make the model smaller, FLEXGEN_PAUSE is seconds to
wait after making a layer's KV cache, as a slow host takes. What is replaced is only CUDA (streams, pinning, the device:
a CPU that calls itself one) and the tokenizer, which would come from the hub.
It stops at gates: before the weights are made, before each generate(), and before each token of the second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import flexgen.flex_opt as flex_opt
import flexgen.pytorch_backend as backend
import torch
import transformers
from gate import gate


class Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...


class Tokenizer:
    def __call__(self, prompts: list[str], max_length: int, **_: Any) -> Any:
        return argparse.Namespace(input_ids=[[1] * (max_length - 6) + [2, 20, 30, 40, 50, 60] for _ in prompts])


class GpuOnCpu(backend.TorchDevice):
    """Computes on the CPU, yet is of type CUDA, so that FlexGen takes its usual ways."""

    def __init__(self, name: str, *arguments: Any, **more: Any) -> None:
        super().__init__("cpu", *arguments, **more)
        if name != "cpu":
            self.name, self.device_type = name, backend.DeviceType.CUDA
            backend.global_cpu_device = None


def without_pinning(*arguments: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
    return empty(*arguments, **more)


empty = torch.empty
torch.empty = without_pinning
torch.cuda.Stream = Stream
torch.cuda.stream = lambda _: contextlib.nullcontext()
for name in ("synchronize", "set_device", "reset_peak_memory_stats", "empty_cache"):
    setattr(torch.cuda, name, lambda *_: None)
torch.cuda.memory_allocated = torch.cuda.max_memory_allocated = lambda *_: 0
torch.Tensor.pin_memory = torch.Tensor.cuda = lambda self, *_: self
torch.Tensor.is_pinned = lambda self, *_: True
transformers.AutoTokenizer.from_pretrained = lambda *_, **__: Tokenizer()
flex_opt.TorchDevice = GpuOnCpu


# --- A smaller model, and gates

configuration, make_cache = flex_opt.get_opt_config, flex_opt.OptLM.init_cache
generate, mask = flex_opt.OptLM.generate, flex_opt.OptLM.update_attention_mask
generated = 0


def small(name: str) -> Any:
    layers, vocabulary = int(os.environ["FLEXGEN_LAYERS"]), int(os.environ["FLEXGEN_VOCABULARY"])
    return dataclasses.replace(configuration(name), num_hidden_layers=layers, vocab_size=vocabulary)


def slow_cache(self: Any, layer: int, batch: int) -> None:
    make_cache(self, layer, batch)
    time.sleep(float(os.environ.get("FLEXGEN_PAUSE", "0")))


def gated_generate(self: Any, *arguments: Any, **more: Any) -> Any:
    global generated
    generated += 1
    gate(at="generate", files=sizes())
    return generate(self, *arguments, **more)


def gated_mask(self: Any, token: int, batch: int) -> None:
    if generated == 2 and token > 0 and batch == 0:
        self.sync()  # all copies of the token before are done
        gate(at="token", files=sizes())
    mask(self, token, batch)


def sizes() -> dict[str, int]:
    return {str(path): path.stat().st_size for path in Path(args.offload_dir).iterdir()}


flex_opt.get_opt_config = small
flex_opt.OptLM.init_cache = slow_cache
flex_opt.OptLM.generate = gated_generate
flex_opt.OptLM.update_attention_mask = gated_mask

parser = argparse.ArgumentParser()
flex_opt.add_parser_arguments(parser)
args = parser.parse_args()
gate(at="start")
flex_opt.run_flexgen(args)
gate(at="end")
os._exit(0)  # destructors would wait for copy threads that have ended
