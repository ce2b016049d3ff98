"""Dequantise a llama or qwen2 GGUF file to a Hugging Face folder: `python -I convert_gguf.py SRC.gguf OUT_DIR`.

A script for the engine's Python, which has torch, gguf and transformers; the gateway never imports it. It needs no other
module of ours, since the engine's environment has none. vLLM reads safetensors, and transformers can read a GGUF but not
save it again: so the tensors are dequantised here, and transformers converts the tokenizer alone.

A file of another architecture, or a tensor this does not know, ends it with exit code 1 and a line that names it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers import AutoTokenizer

MODEL_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class Source:
    """A GGUF file: its metadata by name, its tensors as floats under their Hugging Face names."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.architecture: str = self.field("general.architecture")
        if self.architecture not in MODEL_CLASSES:
            raise SystemExit(f"{path.name} holds the architecture {self.architecture!r}: only llama and qwen2 convert")

    def field(self, name: str) -> Any:
        found = self._reader.fields.get(name)
        return None if found is None else found.contents()

    def of_model(self, name: str) -> Any:
        return self.field(f"{self.architecture}.{name}")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for tensor in self._reader.tensors:
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            yield self._hugging_face_name(tensor.name), self._unpermuted(tensor.name, values).to(torch.bfloat16)

    @staticmethod
    def _hugging_face_name(name: str) -> str:
        if name in TOP_NAMES:
            return TOP_NAMES[name]
        match name.split("."):
            case ["blk", layer, block, kind] if block in LAYER_NAMES:
                return f"model.layers.{layer}.{LAYER_NAMES[block]}.{kind}"
        raise SystemExit(f"the file holds a tensor that is not known here: {name}")

    def _unpermuted(self, name: str, values: torch.Tensor) -> torch.Tensor:
        # llama.cpp stores the rows of q and k of the llama architecture in the order of its own rotary embedding.
        if self.architecture != "llama" or ".attn_q." not in name and ".attn_k." not in name:
            return values
        num_heads = self.of_model("attention.head_count" if ".attn_q." in name else "attention.head_count_kv")
        rows = values.shape[0]
        halves = values.reshape(num_heads, rows // num_heads // 2, 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)


def config(source: Source, vocab_size: int, ties_embeddings: bool) -> dict[str, Any]:
    return {
        "architectures": [MODEL_CLASSES[source.architecture]],
        "model_type": source.architecture,
        "hidden_act": "silu",
        "hidden_size": source.of_model("embedding_length"),
        "intermediate_size": source.of_model("feed_forward_length"),
        "num_hidden_layers": source.of_model("block_count"),
        "num_attention_heads": source.of_model("attention.head_count"),
        "num_key_value_heads": source.of_model("attention.head_count_kv"),
        "max_position_embeddings": source.of_model("context_length"),
        "rms_norm_eps": float(source.of_model("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(source.of_model("rope.freq_base")),
        "vocab_size": vocab_size,
        "tie_word_embeddings": ties_embeddings,
        "torch_dtype": "bfloat16",
        **token_ids(source),
    }


def token_ids(source: Source) -> dict[str, int]:
    named = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {key: source.field(f"tokenizer.ggml.{name}_token_id") for key, name in named.items()}
    return {key: value for key, value in found.items() if value is not None}


def convert(path: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    source = Source(path)
    print("converting the weights", flush=True)
    weights = {name: values.contiguous() for name, values in source.tensors()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    vocab_size = weights["model.embed_tokens.weight"].shape[0]
    settings = config(source, vocab_size, ties_embeddings="lm_head.weight" not in weights)
    (out / "config.json").write_text(json.dumps(settings, indent=1))
    (out / "generation_config.json").write_text(json.dumps(token_ids(source)))
    print("converting the tokenizer", flush=True)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
