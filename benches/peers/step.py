#!/usr/bin/env python3
"""Training steps of oddgrad beside PyTorch's and TRL's on the processor of this machine.

    python3 -m venv target/peers
    target/peers/bin/pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 datasets
    target/peers/bin/python benches/peers/step.py [--turns N] [--only NAME] [target/release/oddgrad]

NAME    what a step is
smollm2 the shape of SmolLM2-135M, 128 tokens: forward, backward, AdamW
nano    models/nano, a stream of 1,024 tokens: the same
orpo    ORPO on models/nano, 32 of the demo's pairs, as `oddgrad train` and TRL's ORPOTrainer take it

All in f32. They take turns, each turn in a process of its own, and every turn is printed: the machine's
speed may change from minute to minute. oddgrad runs on the adapter that it chooses, PyTorch on as many
threads as there are processors here.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NANO = ROOT / "models/nano"
ROWS = ROOT / ".cache/train.jsonl"
PAIRS = 32
# The shape of HuggingFaceTB/SmolLM2-135M.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENS = {"smollm2": 128, "nano": 1024}
# Steps that are timed in a turn, after one that is not.
STEPS = {"smollm2": 2, "nano": 8, "orpo": 6}


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def ours(name, program, folder):
    if name != "orpo":
        model = NANO
        if name == "smollm2":
            model = folder / "smollm2"
            model.mkdir(exist_ok=True)
            (model / "config.json").write_text(json.dumps(SMOLLM2))
        command = [program, "bench", "step", "--model", model, "--tokens", TOKENS[name], "--steps", STEPS[name]]
        found = re.search(r"^step +([0-9.]+) ms", output_of(list(map(str, command))), re.MULTILINE)
        return float(found.group(1)) / 1e3
    recipe, out = folder / "recipe.toml", folder / "run"
    recipe.write_text(f"""
model = "{NANO}"
output = "{out}"
[data]
train = ["{ROWS}"]
max_length = 128
over_length = "drop"
[optim]
learning_rate = 1e-3
schedule = "constant"
[batch]
size = {PAIRS}
stream_tokens = 512
[train]
max_steps = {STEPS[name] + 1}
eval_every = 0
save_every = 0
""")
    output_of([str(program), "train", str(recipe)])
    records = [json.loads(line) for line in open(out / "metrics.jsonl", encoding="utf-8")]
    records = [record for record in records if "tokens_per_second" in record]
    tokens = [0.0] + [record["num_tokens"] for record in records]
    seconds = [(b - a) / r["tokens_per_second"] for a, b, r in zip(tokens, tokens[1:], records)]
    subprocess.run(["rm", "-r", str(out)], check=True)
    return median(seconds[1:])


def theirs(name):
    """In a process of its own: seconds of a step on standard output."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    seconds = []
    if name == "orpo":
        from datasets import Dataset
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        class Clock(transformers.TrainerCallback):
            def on_step_begin(self, *_, **__):
                self.start = time.monotonic()

            def on_step_end(self, *_, **__):
                seconds.append(time.monotonic() - self.start)

        steps = STEPS[name] + 1
        with open(ROWS, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][: PAIRS * steps]
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
        with tempfile.TemporaryDirectory() as folder:
            settings = ORPOConfig(
                output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=steps, learning_rate=1e-3,
                lr_scheduler_type="constant", max_length=128, logging_steps=steps, save_strategy="no",
                report_to=[], bf16=False, fp16=False, gradient_checkpointing=False, use_cpu=True,
                disable_tqdm=True, remove_unused_columns=False,
            )
            model = transformers.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
            trainer = ORPOTrainer(
                model=model, args=settings, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
                processing_class=transformers.AutoTokenizer.from_pretrained(NANO),
            )
            trainer.train()
    else:
        config = SMOLLM2 if name == "smollm2" else json.loads((NANO / "config.json").read_text())
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ids = torch.randint(0, config["vocab_size"], (1, TOKENS[name]))
        for _ in range(STEPS[name] + 1):
            start = time.monotonic()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.monotonic() - start)
    print(median(seconds[1:]))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("program", nargs="?", type=pathlib.Path, default=ROOT / "target/release/oddgrad")
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--only", choices=STEPS)
    arguments.add_argument("--theirs", choices=STEPS, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.theirs:
        return theirs(given.theirs)
    names = [given.only] if given.only else list(STEPS)
    if "orpo" in names and not ROWS.is_file():
        sys.exit(f"error: {ROWS} is not there: `oddgrad demo --rows-only`, in {ROOT}, makes it")
    os.chdir(ROOT)
    print(f"{'step':<10}{'turn':>5}{'oddgrad':>12}{'PyTorch, TRL':>15}{'times as long':>15}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            pairs = []
            for turn in range(1, given.turns + 1):
                mine = ours(name, given.program.resolve(), pathlib.Path(folder))
                other = float(output_of([sys.executable, __file__, "--theirs", name]).split()[-1])
                pairs.append((mine, other))
                print(f"{name:<10}{turn:>5}{mine:>10.3f} s{other:>13.3f} s{mine / other:>15.2f}", flush=True)
            mine, other = (median(side) for side in zip(*pairs))
            print(f"{name:<10}{'all':>5}{mine:>10.3f} s{other:>13.3f} s{mine / other:>15.2f}", flush=True)


if __name__ == "__main__":
    main()
