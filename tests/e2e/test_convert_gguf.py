"""The conversion with the engine's own Python. That the weights come out right, the answers of the demo model show."""

import json
import subprocess
from pathlib import Path

import pytest

from sluice.engines.demo_model import CONVERTER

MAKE_GGUF = """
import sys
import numpy
from gguf import GGUFWriter
writer = GGUFWriter(sys.argv[1], sys.argv[2])
writer.add_tensor(sys.argv[3], numpy.zeros((2, 2), dtype=numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.mark.parametrize(
    ("architecture", "tensor", "said"),
    [
        ("gemma3", "token_embd.weight", "tiny.gguf holds the architecture 'gemma3': only llama and qwen2 convert"),
        ("llama", "blk.0.ffn_exps.weight", "the file holds a tensor that is not known here: blk.0.ffn_exps.weight"),
    ],
)
def test_a_file_that_cannot_be_converted_is_named(
    engine_python: Path, tmp_path: Path, architecture: str, tensor: str, said: str
) -> None:
    source = tmp_path / "tiny.gguf"
    subprocess.run([engine_python, "-I", "-c", MAKE_GGUF, source, architecture, tensor], check=True)
    command = [engine_python, "-I", CONVERTER, source, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == said


def test_the_demo_model_is_whole(chat_model: Path) -> None:
    config = json.loads((chat_model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 8192
    assert config["tie_word_embeddings"] is True
    assert (chat_model / "model.safetensors").stat().st_size > 269_000_000
    assert "<|im_start|>" in (chat_model / "chat_template.jinja").read_text()
