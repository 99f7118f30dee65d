# shellcheck shell=bash
# What a machine must have, as functions shared by `scripts/setup` and `scripts/doctor`.
# Each prints nothing and returns 0, or prints one line that names what is missing and the command that
# installs it, and returns 1.

RUST_NEEDED=1.95
TORCH_VERSION=2.11.0

check_platform() {
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        echo "this machine is $(uname -sm); temper runs on Linux x86_64 (the libtorch $TORCH_VERSION wheels it uses are for that)"
        return 1
    fi
}

check_rust() {
    local tool version install='curl --proto "=https" --tlsv1.2 -sSf https://sh.rustup.rs | sh'
    for tool in cargo rustc; do
        if ! command -v "$tool" >/dev/null 2>&1; then
            if [ -x "${HOME:-}/.cargo/bin/$tool" ]; then
                echo "$tool is installed but not on PATH; add it with: . \"\$HOME/.cargo/env\""
            else
                echo "$tool is missing; install Rust with: $install"
            fi
            return 1
        fi
    done
    ! command -v rustup >/dev/null 2>&1 || install='rustup toolchain install'
    if ! version=$(rustc --version 2>/dev/null); then
        echo "rustc does not run (the pinned toolchain is not installed); install it with: $install"
        return 1
    fi
    version=${version#rustc }
    version=${version%% *}
    if [ "$(printf '%s\n' "$RUST_NEEDED" "$version" | sort -V | head -n 1)" != "$RUST_NEEDED" ]; then
        echo "rustc is $version and temper needs $RUST_NEEDED or later; install it with: $install"
        return 1
    fi
}

check_cxx() {
    local cxx=${CXX:-c++} cc=${CC:-cc}
    # CC and CXX may hold arguments as well: split them into words.
    # shellcheck disable=SC2086
    if ! command -v ${cxx%% *} >/dev/null 2>&1; then
        echo "the C++ compiler ${cxx%% *} is missing; install it with: sudo apt-get install build-essential"
        return 1
    fi
    # shellcheck disable=SC2086
    if ! command -v ${cc%% *} >/dev/null 2>&1; then
        echo "the C compiler ${cc%% *} is missing; install it with: sudo apt-get install build-essential"
        return 1
    fi
    # shellcheck disable=SC2086
    if ! echo '#include <concepts>' | $cxx -std=c++20 -x c++ -fsyntax-only - >/dev/null 2>&1; then
        echo "$cxx does not compile C++20; install GCC 10 or later with: sudo apt-get install build-essential"
        return 1
    fi
}

check_python() {
    if ! command -v python3 >/dev/null 2>&1; then
        echo "python3 is missing; install it with: sudo apt-get install python3 python3-pip"
        return 1
    fi
}

check_pip() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "python3 has no pip; install it with: sudo apt-get install python3-pip"
        return 1
    fi
}

# check_disk DIR GIB: at least GIB gibibytes are free where DIR lies.
check_disk() {
    local free
    free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free" -lt "$2" ]; then
        echo "$1 has $free GiB free and this step needs $2 GiB; free some space or put the checkout on a larger disk"
        return 1
    fi
}

# torch_version DIR: the version of the libtorch in DIR, from the zip's build-version or the wheel's version.py.
torch_version() {
    if [ -f "$1/build-version" ]; then
        head -n 1 "$1/build-version"
    elif [ -f "$1/version.py" ]; then
        sed -n "s/^__version__ = '\(.*\)'\$/\1/p" "$1/version.py"
    fi
}

# check_libtorch DIR: DIR holds a usable libtorch of the right version. (The caller knows the remedy.)
check_libtorch() {
    local dir=$1 version missing file
    if [ ! -d "$dir" ]; then
        echo "$dir does not exist"
        return 1
    fi
    for file in lib/libtorch_cpu.so lib/libc10.so include/torch/csrc/api/include/torch/torch.h; do
        if [ ! -f "$dir/$file" ]; then
            echo "$dir has no $file, so it is no libtorch"
            return 1
        fi
    done
    version=$(torch_version "$dir")
    if [ "${version%%+*}" != "$TORCH_VERSION" ]; then
        echo "$dir is libtorch ${version:-of an unknown version} and temper needs $TORCH_VERSION"
        return 1
    fi
    missing=$(ldd "$dir/lib/libtorch_cpu.so" 2>&1 | awk '/not found/ { print $1 }' | paste -sd ' ')
    if [ -n "$missing" ]; then
        echo "$dir/lib/libtorch_cpu.so needs $missing, not found"
        return 1
    fi
}
