"""Records 12 steps of TRL's KTOTrainer on llama_untied: train/llama_untied_kto.

    python3.11 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 accelerate==1.15.0
    venv/bin/python train_kto.py

Writes log.json (arguments, the objective as a recipe spells it, TRL's log by step) and batches.json (every batch: ids,
masks, labels of the completions and which of them are desirable). TRL rotates the answers of a batch for its KL term;
so does the reader wherever neighbours have different prompts and answers, which is checked here."""
import json, os, tempfile

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MODEL, ROWS, OUT = "llama_untied", "prefs_plain", "train/llama_untied_kto"
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)


class Recorder(KTOTrainer):
    batches = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        ids, mask, answer = (inputs[key] for key in ("input_ids", "attention_mask", "completion_mask"))
        self.batches.append({
            "input_ids": ids.tolist(), "attention_mask": mask.tolist(),
            "labels": torch.where(answer.bool(), ids, -100).tolist(), "desirable": inputs["label"].tolist()})
        rows = [(row[(m - a).bool()].tolist(), row[a.bool()].tolist()) for row, m, a in zip(ids, mask, answer)]
        for k, (prompt, completion) in enumerate(rows):
            assert prompt != rows[k - 1][0] and completion != rows[k - 1][1], "neighbours are alike"
        return super().compute_loss(model, inputs, *args, **kwargs)


with open(f"{GOLDEN}/data/{ROWS}.jsonl", encoding="utf-8") as lines:
    pairs = [json.loads(line) for line in lines]
# Good and bad answers side by side, of different prompts.
rows = []
for k, pair in enumerate(pairs):
    side = "chosen" if k % 2 == 0 else "rejected"
    rows.append({"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"})
settings = dict(
    per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=12, learning_rate=1e-3,
    lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999,
    adam_epsilon=1e-8, max_grad_norm=1.0, beta=0.1, max_length=128, seed=42)
loss = dict(type="kto", beta=0.1, desirable_weight=1.25, undesirable_weight=1.0)
trainer = Recorder(
    model=AutoModelForCausalLM.from_pretrained(f"{GOLDEN}/{MODEL}", attn_implementation="eager", dtype=torch.float32),
    # The two models share a tokenizer, which is stored once.
    processing_class=AutoTokenizer.from_pretrained(f"{GOLDEN}/llama_tied"),
    train_dataset=Dataset.from_list(rows),
    args=KTOConfig(
        output_dir=tempfile.mkdtemp(), optim="adamw_torch", loss_type="kto", desirable_weight=1.25, logging_steps=1,
        save_strategy="no", report_to=[], bf16=False, fp16=False, gradient_checkpointing=False, use_cpu=True,
        disable_tqdm=True, train_sampling_strategy="sequential", dataloader_num_workers=0, **settings))
trainer.train()
log = [entry for entry in trainer.state.log_history if "loss" in entry]
os.makedirs(f"{GOLDEN}/{OUT}", exist_ok=True)
with open(f"{GOLDEN}/{OUT}/log.json", "w") as file:
    json.dump({"model": MODEL, "dataset": ROWS, "objective": "kto", "loss": loss, "args": settings,
               "batches_per_epoch": -(-len(rows) // 4), "log": log}, file, indent=1)
with open(f"{GOLDEN}/{OUT}/batches.json", "w") as file:
    json.dump(trainer.batches, file)
for entry in log:
    print({key: entry.get(key) for key in ("loss", "grad_norm", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen")})
