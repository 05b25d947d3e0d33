#!/bin/sh
# Finds what the build lacks and installs it with apt-get. Silent when nothing is missing.
#
#   runtime/setup.sh              install what is missing (root or passwordless sudo), else print the command; exit 1
#   runtime/setup.sh --check      only say what is missing; exit 1 if anything is
#   runtime/setup.sh --versions   say what was found
#
# Package names are those of Debian 12 and of Ubuntu 22.04 and 24.04 (universe). Environment: CC. It probes with the
# compiler and pkg-config, not with dpkg, so libraries from elsewhere (CPATH, LIBRARY_PATH, PKG_CONFIG_PATH) count.
# Left out: make itself, CUDA, and readline (the REPL uses it when it is there).
set -u
CC=${CC:-cc}
have() { command -v "$1" >/dev/null 2>&1; }

# headers FILE...: can the compiler see them all?
headers() {
    for h in "$@"; do printf '#include <%s>\n' "$h"; done | $CC -E -x c - >/dev/null 2>&1
}

lua_has() { luajit -e "require '$1'" >/dev/null 2>&1; }

missing=
need() { missing="$missing $1"; }

probe() {
    if ! have "${CC%% *}"; then
        [ "$CC" = cc ] || { echo "there is no compiler '$CC' (CC)" >&2; exit 1; }
        need gcc                # the package brings cc
    fi
    have pkg-config || need pkg-config
    if ! have luajit; then need luajit; need lua-cjson; elif ! lua_has cjson; then need lua-cjson; fi
    pkg-config --exists luajit 2>/dev/null || need libluajit-5.1-dev
    lua_has lyaml || need lua-yaml
    lua_has posix.unistd || need lua-posix
    lua_has argparse || need lua-argparse
    # One run for the usual case, in which everything is there. stdio.h first: stb needs it.
    headers stdio.h stdlib.h stdint.h oneapi/dnnl/dnnl.h stb/stb_image.h stb/stb_image_write.h utf8proc.h webp/decode.h && \
        headers_pcre2 && return
    headers stdio.h || need libc6-dev
    headers stdio.h oneapi/dnnl/dnnl.h || need libdnnl-dev
    headers stdio.h stb/stb_image.h stb/stb_image_write.h || need libstb-dev
    headers_pcre2 || need libpcre2-dev
    headers stdio.h utf8proc.h || need libutf8proc-dev
    headers stdio.h webp/decode.h || need libwebp-dev
}

# pcre2.h refuses to be read without a code unit width.
headers_pcre2() { printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n' | $CC -E -x c - >/dev/null 2>&1; }

versions() {
    mod() { pkg-config --modversion "$1" 2>/dev/null || echo "found"; }
    dnnl=$(printf '#include <oneapi/dnnl/dnnl_version.h>\nv DNNL_VERSION_MAJOR DNNL_VERSION_MINOR DNNL_VERSION_PATCH\n' |
           $CC -E -P -x c - 2>/dev/null | sed -n 's/^v \([0-9]*\) \([0-9]*\) \([0-9]*\)$/\1.\2.\3/p')
    cjson=$(luajit -e "print(require('cjson')._VERSION)" 2>/dev/null)
    echo "found: $($CC --version 2>/dev/null | sed -n 1p)"
    echo "found: LuaJIT $(mod luajit), oneDNN ${dnnl:-?}, PCRE2 $(mod libpcre2-8), utf8proc $(mod libutf8proc)," \
         "libwebp $(mod libwebp), lua-cjson ${cjson:-?}"
    nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
    if [ -n "$nvcc" ]; then
        echo "found: nvcc $("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p'), so the CUDA backend is built too (CUDA=0 leaves it out)"
    else
        echo "not found: nvcc, so there will be no CUDA backend"
    fi
}

[ "${1-}" = --versions ] && { versions; exit 0; }

probe
[ -z "$missing" ] && exit 0
command="apt-get install -y --no-install-recommends$missing"

if [ "${1-}" = --check ]; then
    echo "segzero needs packages that are not installed:$missing" >&2
    echo "'make setup' installs them." >&2
    exit 1
fi

if ! have apt-get; then
    echo "segzero needs packages that are not installed; in Debian's names:$missing" >&2
    echo "Install them with this system's package manager, then run make again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then sudo=
elif have sudo && sudo -n true 2>/dev/null; then sudo="sudo -n"
else
    echo "segzero needs packages that are not installed. Type this, then run make again:" >&2
    echo "    sudo apt-get update && sudo $command" >&2
    exit 1
fi

echo "installing:$missing"
log=$(mktemp) || exit 1
# An index that cannot be refreshed may still be good enough, so only the install decides.
$sudo env DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 </dev/null || echo "apt-get update failed; going on with the index there is" >&2
if ! $sudo env DEBIAN_FRONTEND=noninteractive $command >>"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "the set-up failed at: $command" >&2
    exit 1
fi
rm -f "$log"
missing=
probe
[ -z "$missing" ] && exit 0
echo "installed, but still not found:$missing" >&2
exit 1
