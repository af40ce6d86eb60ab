#!/usr/bin/env bash
# Every kernel through every compiler and adapter that needs no hardware of its own: naga (SPIR-V,
# MSL, HLSL), spirv-val, Tint, Dawn, SwiftShader, and the adapter that is here. Installs what is
# missing, saying so; what is not a system package lies in .cache/portability.
#
#   scripts/portability.sh              all beds
#   scripts/portability.sh tint dawn    only these: naga spirv-val tint dawn adapter swiftshader
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

WEBGPU_VERSION=0.6.2 # of the npm package, which brings Tint and Dawn
CACHE=$PWD/.cache/portability
EXPORT=$CACHE/export
LOGS=$CACHE/logs
ALL=(naga spirv-val tint dawn adapter swiftshader)

beds=("$@")
[ $# -gt 0 ] || beds=("${ALL[@]}")
for bed in "${beds[@]}"; do
    [[ " ${ALL[*]} " == *" $bed "* ]] || die "no bed is called $bed; there are: ${ALL[*]}"
done
wanted() {
    local bed
    for bed in "$@"; do [[ " ${beds[*]} " == *" $bed "* ]] && return; done
    return 1
}

# ---- what the beds need

ensure_node() {
    if ! have node || ! have npm; then
        is_linux || die "node and npm are needed for Tint and Dawn: https://nodejs.org"
        apt_install "No Node found, which runs Tint and Dawn" nodejs npm
    fi
    export WEBGPU_PACKAGE=$CACHE/node_modules/webgpu
    local version
    version=$(sed -n 's/.*"version": "\(.*\)".*/\1/p' "$WEBGPU_PACKAGE/package.json" 2>/dev/null) || true
    [ "$version" = "$WEBGPU_VERSION" ] && return
    say "Installing the npm package webgpu $WEBGPU_VERSION (Tint and Dawn) into .cache/portability."
    npm install --prefix "$CACHE" --no-save --no-package-lock --no-audit --no-fund --ignore-scripts \
        --loglevel=error "webgpu@$WEBGPU_VERSION" >&2 || die "npm could not install webgpu."
}

ensure_spirv_val() {
    have spirv-val || apt_install "No spirv-val found" spirv-tools
}

# Sets SWIFTSHADER to the file by which Vulkan's loader finds Chromium's software adapter.
ensure_swiftshader() {
    local folder
    SWIFTSHADER=${SWIFTSHADER:-}
    for folder in /usr/lib/chromium /usr/lib64/chromium-browser /opt/google/chrome \
        "$CACHE/chromium/usr/lib/chromium"; do
        [ -z "$SWIFTSHADER" ] && [ -f "$folder/libvk_swiftshader.so" ] &&
            SWIFTSHADER=$folder/vk_swiftshader_icd.json
    done
    if [ -z "$SWIFTSHADER" ]; then
        { have apt-get && have dpkg-deb; } || die "no SwiftShader found: Chromium brings it. Set \
SWIFTSHADER to its vk_swiftshader_icd.json."
        say "No SwiftShader found: unpacking it from Debian's chromium-common into .cache/portability."
        mkdir -p "$CACHE/chromium"
        (cd "$CACHE/chromium" && apt-get download -qq chromium-common >&2 &&
            dpkg-deb --fsys-tarfile chromium-common_*.deb |
            tar -x --wildcards './usr/lib/chromium/*swiftshader*' && rm chromium-common_*.deb) ||
            die "chromium-common could not be fetched: its own words are above. As root, \
apt-get update may help."
        SWIFTSHADER=$CACHE/chromium/usr/lib/chromium/vk_swiftshader_icd.json
    fi
    # The loader itself, which Dawn and wgpu both open.
    ensure_vulkan
}

on_swiftshader() { VK_DRIVER_FILES=$SWIFTSHADER VK_ICD_FILENAMES=$SWIFTSHADER "$@"; }

# ---- the beds

rows=()
failed=no

# bed NAME WHAT COMMAND...: runs the command and reads its counts from the last line that has them.
bed() {
    local name=$1 what=$2 log=$LOGS/$1.log
    shift 2
    say "== $name: $what"
    local rc=0
    "$@" >"$log" 2>&1 || rc=$?
    local line passed wrong skipped=-
    line=$(grep -E '[0-9]+ passed' "$log" | tail -n 1 || true)
    passed=$(grep -oE '[0-9]+ passed' <<<"$line" | cut -d' ' -f1 || true)
    wrong=$(grep -oE '[0-9]+ failed' <<<"$line" | cut -d' ' -f1 || true)
    case $name in spirv-val | tint | dawn)
        skipped=$(grep -oE '[0-9]+ skipped' <<<"$line" | cut -d' ' -f1 || true) ;;
    esac
    passed=${passed:-0} wrong=${wrong:-0}
    # A command that fails without saying where has failed all the same, and so has an empty one.
    [ "$wrong" -gt 0 ] || [ "$rc" -eq 0 ] || wrong=1
    [ "$passed" -gt 0 ] || [ "$wrong" -gt 0 ] || wrong=1
    if [ "$wrong" -gt 0 ]; then
        failed=yes
        tail -n 40 "$log" >&2
        say "The whole of it: $log"
    fi
    rows+=("$name|$what|$passed|$wrong|${skipped:--}")
}

# The SPIR-V that naga makes. Later versions of spirv-val than Debian 12's reject the explicit
# layout of naga's workgroup arrays, which is known (wgpu #7696) and not ours to mend. Cooperative
# matrices are beyond Vulkan 1.1.
validate_spirv() {
    local file said passed=0 wrong=0 skipped=0
    for file in "$EXPORT"/modules/*.spv; do
        if grep -q '^enable wgpu_cooperative_matrix;' "${file%.spv}.wgsl"; then
            skipped=$((skipped + 1))
        elif said=$(spirv-val --target-env vulkan1.1 "$file" 2>&1); then
            passed=$((passed + 1))
        elif [[ $said == *"explicit layout decorations"* ]]; then
            skipped=$((skipped + 1))
        else
            wrong=$((wrong + 1))
            printf '%s: %s\n' "$file" "$said"
        fi
    done
    printf '%s passed, %s failed, %s skipped\n' "$passed" "$wrong" "$skipped"
    [ "$wrong" -eq 0 ]
}

op_cases() {
    if [ "$nextest" = yes ]; then
        cargo nextest run --locked --lib --no-fail-fast ops::
    else
        cargo test --locked --lib --no-fail-fast ops::
    fi
}

# The adapter that the engine takes, as `oddgrad doctor` names it.
chosen() { cargo run --locked --quiet -- doctor 2>/dev/null | sed -n 's/^chosen: //p'; }

ensure_c_compiler
ensure_rust
mkdir -p "$LOGS"

if wanted naga spirv-val tint dawn; then
    rm -rf "$EXPORT"
    export ODDGRAD_EXPORT=$EXPORT
    bed naga "naga $(sed -n '/^name = "naga"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock) to SPIR-V, MSL, HLSL" \
        cargo test --locked --test suite -- shaders:: portability::
    unset ODDGRAD_EXPORT
    [ -f "$EXPORT/manifest.json" ] || die "the cases were not exported: see $LOGS/naga.log"
fi
if wanted spirv-val; then
    ensure_spirv_val
    bed spirv-val "$(spirv-val --version | sed -n "1{s/ unknown.*//;p}"), naga's SPIR-V" validate_spirv
fi
if wanted tint; then
    ensure_node
    bed tint "Tint of npm webgpu $WEBGPU_VERSION, as written and specialised" \
        node scripts/portability/tint.mjs "$EXPORT"
fi
if wanted dawn; then
    ensure_node
    ensure_swiftshader
    bed dawn "Dawn of npm webgpu $WEBGPU_VERSION on SwiftShader, the cases" \
        on_swiftshader node scripts/portability/cases.mjs "$EXPORT"
fi
if wanted adapter swiftshader; then
    nextest=yes
    ensure_nextest || nextest=no
fi
if wanted adapter; then
    ensure_vulkan
    bed adapter "$(chosen), cargo test ops::" op_cases
fi
if wanted swiftshader; then
    ensure_swiftshader
    name=$(on_swiftshader chosen)
    [[ $name == *SwiftShader* ]] || die "Vulkan's loader did not take SwiftShader but: $name"
    bed swiftshader "$name, cargo test ops::" on_swiftshader op_cases
fi

printf '\n%-12s %8s %8s %8s   %s\n' bed passed failed skipped what
for row in "${rows[@]}"; do
    IFS='|' read -r name what passed wrong skipped <<<"$row"
    printf '%-12s %8s %8s %8s   %s\n' "$name" "$passed" "$wrong" "$skipped" "$what"
done
[ "$failed" = no ]
