"""Loads models that oddgrad saved in transformers, and compares their logits with those of golden folders.

    python scripts/check_saved.py SAVED NAME...    # in tests/golden; folders SAVED/NAME hold the weights of NAME

`ODDGRAD_SAVE=SAVED cargo nextest run a_saved_model` writes SAVED. Prints the largest difference on the tokens
of the batch; 1e-4 is allowed. Needs torch, transformers and safetensors.
"""
import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
saved, names = sys.argv[1], sys.argv[2:]
for name in names:
    model = AutoModelForCausalLM.from_pretrained(f"{saved}/{name}", attn_implementation="eager", dtype=torch.float32)
    rows = json.load(open(f"{name}/batch.json"))["tokenized"]
    want = load_file(f"{name}/golden.safetensors")["logits"]
    sequences = [row[f"{side}_input_ids"] for side in ("chosen", "rejected") for row in rows]
    worst = 0.0
    for r, ids in enumerate(sequences):
        with torch.no_grad():
            got = model(input_ids=torch.tensor([ids])).logits[0]
        worst = max(worst, (got - want[r, : len(ids)]).abs().max().item())
    print(f"{name}: logits differ by {worst:.1e}", flush=True)
    assert worst < 1e-4, name
