#!/usr/bin/env bash
# The faults of tests/suite/faults.rs in full numbers: 200 kills, 100 stops, 1,000 flipped bits, 100 full
# disks and 50 lost devices; and 500 decisions in a browser whose server is killed 20 times (where there is
# a chromedriver). Prints how many of each a run outlived with the same bits; takes minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

ensure_vulkan
ensure_c_compiler
ensure_rust

ODDGRAD_FAULTS=full cargo test --locked --test suite faults:: -- --nocapture --test-threads 1 "$@"
ODDGRAD_FAULTS=full cargo test --locked --test suite collect::a_browser -- --nocapture
