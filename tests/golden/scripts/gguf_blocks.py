"""Blocks of every GGUF type that is read, of random bytes, with the values that gguf-py gives them.

    python tests/golden/scripts/gguf_blocks.py tests/golden/gguf/blocks.safetensors

Needs numpy, safetensors and gguf 0.19.
"""
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

# Bytes at which a block has a scale in 16 bits.
SCALES = {
    "F32": [], "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
    "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
random = np.random.default_rng(7)
tensors = {}
for name, scales in SCALES.items():
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = max(3, 48 // elements)
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    if name == "F32":
        blocks = random.standard_normal(count).astype("<f4").view(np.uint8).reshape(count, size)
    if name == "BF16":
        blocks = random.standard_normal(count).astype("<f4").view(np.uint8).reshape(count, 4)[:, 2:]
    for at in scales:
        blocks[:, at:at + 2] = random.standard_normal(count).astype("<f2").view(np.uint8).reshape(count, 2)
    blocks = np.ascontiguousarray(blocks)
    tensors[f"{name}.bytes"] = blocks.reshape(-1)
    tensors[f"{name}.values"] = gguf.dequantize(blocks, kind).astype("<f4").reshape(-1)
save_file(tensors, sys.argv[1])
