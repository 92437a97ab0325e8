"""Makes the model files that other workloads load, without anything from a hub.

make_models.py safetensors FILE MIB | gguf FILE LAYERS
"""

from __future__ import annotations

import sys

import numpy as np


def safetensors(path: str, size: int) -> None:
    from safetensors.numpy import save_file

    layer = np.arange(1 << 20, dtype=np.float32)
    save_file({f"model.layers.{n}.weight": layer + n for n in range(size // 4)}, path)


def gguf(path: str, layers: int) -> None:
    """A llama of random weights: 512 wide, 8 heads, 256 tokens that are the bytes."""
    from gguf import GGUFWriter, TokenType

    width, inner, heads, tokens = 512, 2048, 8, 259
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * tokens)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    writer.add_token_types([*kinds, *[TokenType.BYTE] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(7)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float32))

    add("token_embd.weight", tokens, width)
    add("output_norm.weight", width)
    add("output.weight", tokens, width)
    for n in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{n}.{name}.weight", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{n}.{name}.weight", width, width)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{n}.{name}.weight", inner, width)
        add(f"blk.{n}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


{"safetensors": safetensors, "gguf": gguf}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
