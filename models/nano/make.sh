#!/usr/bin/env bash
# Makes models/nano from nothing: the text, the tokenizer, the weights. Run where they are to be
# made anew: an existing tokenizer, run or model.safetensors is never overwritten, the commands say
# what to remove.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export ODDGRAD_CACHE=${ODDGRAD_CACHE:-.cache}

command -v python3 >/dev/null || { echo "error: python3 is needed to build the text" >&2; exit 1; }
command -v cargo >/dev/null || { echo "error: cargo is needed; see https://rustup.rs" >&2; exit 1; }
cargo build --release --locked
oddgrad=${CARGO_TARGET_DIR:-target}/release/oddgrad

python3 models/nano/corpus.py --out corpus
"$oddgrad" tokenizer corpus/train.jsonl --vocab 2048 --output models/nano
"$oddgrad" train models/nano/pretrain.toml "$@"
cp runs/nano/model/model.safetensors models/nano/model.safetensors
