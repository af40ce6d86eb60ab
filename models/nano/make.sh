#!/usr/bin/env bash
# Makes models/nano from nothing. First step: the text it is pretrained on, in ./corpus (or $1).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
corpus=${1:-corpus}
export ODDGRAD_CACHE=${ODDGRAD_CACHE:-$root/.cache}

command -v python3 >/dev/null || { echo "error: python3 is needed to build the text" >&2; exit 1; }
python3 "$root/models/nano/corpus.py" --out "$corpus"
