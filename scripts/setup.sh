# What scripts/demo.sh and scripts/test.sh need before they can start. Sourced by both.
#
# Every function looks first and installs only what is missing, saying what it installs. System
# packages are installed on Debian and its relatives; elsewhere the message names what to install.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

is_linux() { [ "$(uname -s)" = Linux ]; }

# apt_install WHY PACKAGE...
apt_install() {
    local why=$1
    shift
    have apt-get || die "$why. This script installs packages with apt-get only: please install what \
your system calls $* and start again."
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || die "$why, and there is no sudo here. As root: apt-get install $*"
        as_root=(sudo)
    fi
    say "$why: installing $* with ${as_root[*]:+${as_root[*]} }apt-get."
    "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 update -qq >&2 ||
        say "apt-get update failed; trying with the package lists that are here."
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >&2 ||
        die "apt-get could not install $*: its own words are above."
}

# A driver for wgpu. macOS and Windows bring Metal and DX12; on Linux there must be a Vulkan driver,
# and where no GPU is to be seen, one that computes in software.
has_vulkan() {
    if have vulkaninfo; then
        [[ $(vulkaninfo --summary 2>/dev/null) == *deviceName* ]]
        return
    fi
    # The loader that finds the drivers.
    compgen -G '/usr/lib*/libvulkan.so.1' >/dev/null ||
        compgen -G '/usr/lib/*/libvulkan.so.1' >/dev/null || return 1
    # A driver named by hand is taken at its word.
    [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] || return 0
    local folders=(/usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d /etc/vulkan/icd.d)
    if compgen -G '/dev/dri/renderD*' >/dev/null || [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then
        [ -n "$(find "${folders[@]}" -name '*.json' 2>/dev/null)" ]
    else
        [ -n "$(find "${folders[@]}" -name 'lvp_icd*.json' 2>/dev/null)" ]
    fi
}

ensure_vulkan() {
    if is_linux && ! has_vulkan; then
        apt_install "No Vulkan adapter found, so Mesa's software Vulkan is needed" \
            mesa-vulkan-drivers libvulkan1
    fi
}

# Rust's linker driver, and the compiler of the one dependency that holds C (zstd).
ensure_c_compiler() {
    if have cc; then
        return
    elif is_linux; then
        apt_install "No C compiler found, which Rust needs to link" gcc libc6-dev
    else
        die "no C compiler found, which Rust needs to link. On a Mac: xcode-select --install"
    fi
}

# rust_is_new_enough: is there a cargo, and is it as new as Cargo.toml asks?
rust_is_new_enough() {
    have cargo && have rustc || return 1
    local need found
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2)
    [ -n "$found" ] || return 1
    [ "$(printf '%s\n%s\n' "$need" "$found" | sort -V | head -n 1)" = "$need" ]
}

ensure_rust() {
    # Installed, but in a shell that was opened before.
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    rust_is_new_enough && return
    if have rustup; then
        say "The default Rust toolchain is absent or too old: installing the stable one with rustup."
        rustup toolchain install stable --profile minimal --component clippy,rustfmt >&2 ||
            die "rustup could not install the stable toolchain: its own words are above."
        export RUSTUP_TOOLCHAIN=stable
    else
        have curl || apt_install "No curl found, which fetches Rust's installer" curl ca-certificates
        say "No Rust that is new enough found: running its official installer, https://sh.rustup.rs"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --no-modify-path --profile minimal --component clippy,rustfmt >&2 ||
            die "Rust's installer failed: its own words are above. See https://rustup.rs"
        export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    rust_is_new_enough || die "the Rust on the PATH is still too old: $(rustc --version 2>&1)"
}

# Python with pip, which fetches the demo's pretrained model.
ensure_pip() {
    python3 -m pip --version >/dev/null 2>&1 && return
    is_linux || die "no Python with pip found, which fetches the model. See https://pip.pypa.io"
    apt_install "No Python with pip found, which fetches the model" python3-pip
}

# ensure_component COMMAND COMPONENT: cargo's subcommand from the toolchain component.
ensure_component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    have rustup || die "cargo $1 is missing: install the $2 that belongs to your Rust."
    say "cargo $1 is missing: installing $2 with rustup."
    rustup component add "$2" >&2 || die "rustup could not install $2: its own words are above."
}

# True if tests can run under nextest, which is installed if need be.
ensure_nextest() {
    cargo nextest --version >/dev/null 2>&1 && return
    say "cargo nextest is missing: installing it with cargo (some minutes, once)."
    cargo install cargo-nextest --locked >&2 && cargo nextest --version >/dev/null 2>&1
}
