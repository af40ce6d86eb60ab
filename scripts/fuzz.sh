#!/usr/bin/env bash
# Damages every kind of file that oddgrad reads, at random, for SECONDS each (default 600), and prints
# how many inputs each format took: tests/suite/malformed.rs for longer. A case that panics, hangs or
# takes the process down stays in target/tmp/malformed.
#
#   scripts/fuzz.sh [SECONDS [FORMAT…]]     formats: safetensors weights config adapters tokenizers
#                                           templates recipes rows parquet states tuner kernels
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

ensure_vulkan
ensure_c_compiler
ensure_rust

export ODDGRAD_FUZZ_SECONDS=${1:-600}
shift || true
[ $# -gt 0 ] || set -- ""
for format in "$@"; do
    cargo test --locked --test suite "malformed::malformed_$format" -- --nocapture --test-threads 1
done
