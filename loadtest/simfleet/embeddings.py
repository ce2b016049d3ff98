"""`POST /v1/embeddings`: vectors that depend on the text alone, similar for texts that share words."""

import base64
from array import array
from collections.abc import Sequence
from math import sqrt

_SIGNS_PER_TOKEN = 4


def embed(ids: Sequence[int], num_dimensions: int) -> list[float]:
    """A vector of length 1: each token adds +-1 to a few dimensions of its own."""
    vector = [0.0] * num_dimensions
    for token in ids:
        state = token + 1
        for _ in range(_SIGNS_PER_TOKEN):
            state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
            vector[(state >> 33) % num_dimensions] += 1.0 if state >> 63 else -1.0
    norm = sqrt(sum(value * value for value in vector)) or 1.0
    return [value / norm for value in vector]


def as_base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's SDK asks for."""
    return base64.b64encode(array("f", vector).tobytes()).decode()
