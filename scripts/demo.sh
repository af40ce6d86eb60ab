#!/usr/bin/env bash
# The demo: installs what is missing, builds, trains with ORPO and leaves a report.
# Arguments go to the demo: scripts/demo.sh --quick
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

ensure_vulkan
ensure_c_compiler
ensure_rust

say "== building (the first time takes some minutes)"
cargo build --release --locked
exec "${CARGO_TARGET_DIR:-target}/release/oddgrad" demo "$@"
