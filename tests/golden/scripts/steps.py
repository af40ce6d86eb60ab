"""Two steps of AdamW on the batch of golden folders, by transformers and PyTorch in float64.

    python scripts/steps.py NAME...    # in tests/golden: writes NAME/adamw.safetensors and adamw.json

For every parameter by its Hugging Face name how far the steps moved it, in learning rates, as float16 (which
rounds a parameter by less than 1e-7 here), and the settings. Gradients are clipped
by their global norm, weight decay takes matrices only. Prints what PyTorch in float32 differs by, too. AdamW divides a gradient by its
own size, so with PyTorch's epsilon of 1e-8 gradients that are rounding alone (OPT's key biases) would decide:
float32 is off by up to 2e-5 then, PyTorch's as ours. With 1e-6 it is what the steps do that is compared.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from families import orpo, stay_double

SETTINGS = {"steps": 2, "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6,
            "weight_decay": 0.1, "max_grad_norm": 1.0}


def moved(name, dtype):
    """Parameters after the steps minus those before, in float64."""
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager", dtype=torch.float32).to(dtype)
    rows = json.load(open(f"{name}/batch.json"))["tokenized"]
    params = dict(model.named_parameters())
    before = {k: p.detach().double().clone() for k, p in params.items()}
    groups = [{"params": [p for p in params.values() if p.ndim > 1], "weight_decay": SETTINGS["weight_decay"]},
              {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0}]
    betas = (SETTINGS["beta1"], SETTINGS["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=betas, eps=SETTINGS["eps"])
    for _ in range(SETTINGS["steps"]):
        optimizer.zero_grad()
        orpo(model, rows)[0].backward()
        torch.nn.utils.clip_grad_norm_(params.values(), SETTINGS["max_grad_norm"])
        optimizer.step()
    return {k: p.detach().double() - before[k] for k, p in params.items()}


stay_double()
for name in sys.argv[1:]:
    truth, single = moved(name, torch.float64), moved(name, torch.float32)
    rate = SETTINGS["learning_rate"]
    stored = {k: (d / rate).half().contiguous() for k, d in truth.items()}
    save_file(stored, f"{name}/adamw.safetensors")
    os.chmod(f"{name}/adamw.safetensors", 0o644)
    json.dump(SETTINGS, open(f"{name}/adamw.json", "w"))
    rounding = max((stored[k].double() * rate - d).abs().max().item() for k, d in truth.items())
    off = max((single[k] - d).abs().max().item() for k, d in truth.items())
    far = max(d.abs().max().item() for d in truth.values())
    print(f"{name}: moved by up to {far:.1e}, stored within {rounding:.1e}, PyTorch in float32 within {off:.1e}", flush=True)
