#!/bin/sh
# Finds the packages that segzero needs and installs the missing ones with apt-get. Silent if none
# is missing.
#
#   runtime/setup.sh              install what is missing (root or passwordless sudo); else print the
#                                 command and exit with 1
#   runtime/setup.sh --check      only say what is missing; exit with 1 if the build needs it
#   runtime/setup.sh --versions   say what was found
#
# Package names are those of Debian 12 and of Ubuntu 22.04 and 24.04 (universe). Environment: CC. It
# probes with the compiler and pkg-config, not with dpkg, so libraries from other places (CPATH,
# LIBRARY_PATH, PKG_CONFIG_PATH) count. There are two lists: without `missing`, nothing builds or
# runs; `optional` makes it nicer to use.
# Leaves out: make itself and CUDA.
set -u
CC=${CC:-cc}
have() { command -v "$1" >/dev/null 2>&1; }

# headers FILE...: whether the compiler finds them all.
headers() {
    for h in "$@"; do printf '#include <%s>\n' "$h"; done | $CC -E -x c - >/dev/null 2>&1
}

# pcre2.h must be told the code unit width.
headers_pcre2() {
    printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n' | $CC -E -x c - >/dev/null 2>&1
}

lua_has() { luajit -e "require '$1'" >/dev/null 2>&1; }

# A font that lua/segzero/tools/drawing/lettering.lua opens.
has_font() {
    for f in dejavu/DejaVuSans.ttf liberation/LiberationSans-Regular.ttf \
             liberation2/LiberationSans-Regular.ttf; do
        [ -e "/usr/share/fonts/truetype/$f" ] && return
    done
    return 1
}

# Without them no download over https can be checked.
has_certificates() {
    for f in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt \
             /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
        [ -e "$f" ] && return
    done
    return 1
}

# What several ranks need: mpirun, and headers for libsegzero_mpi.so.
has_mpi() { have mpirun && pkg-config --exists ompi-c 2>/dev/null; }

missing=
optional=
need() { missing="$missing $1"; }

probe() {
    missing=
    optional=
    if ! have "${CC%% *}"; then
        [ "$CC" = cc ] || { echo "the compiler '$CC' (from CC) does not exist" >&2; exit 1; }
        need gcc                # the package brings cc
    fi
    have pkg-config || need pkg-config
    have luajit || need luajit
    lua_has cjson || need lua-cjson
    pkg-config --exists luajit 2>/dev/null || need libluajit-5.1-dev
    lua_has lyaml || need lua-yaml
    lua_has posix.unistd || need lua-posix
    has_certificates || optional="$optional ca-certificates"
    has_font || optional="$optional fonts-dejavu-core"
    has_mpi || optional="$optional openmpi-bin libopenmpi-dev"

    # One compiler run for the usual case: every header is found. jpeglib.h needs stdio.h before it.
    headers stdio.h stdlib.h stdint.h oneapi/dnnl/dnnl.h jpeglib.h png.h zlib.h utf8proc.h \
            webp/decode.h webp/demux.h xxhash.h snappy-c.h lz4.h zstd.h brotli/decode.h \
            stb/stb_image.h stb/stb_truetype.h curl/curl.h && \
            headers_pcre2 && return
    headers stdio.h || need libc6-dev
    headers stdio.h oneapi/dnnl/dnnl.h || need libdnnl-dev
    headers stdio.h jpeglib.h || need libjpeg-dev
    headers stdio.h png.h || need libpng-dev
    headers stdio.h zlib.h || need zlib1g-dev
    headers_pcre2 || need libpcre2-dev
    headers stdio.h utf8proc.h || need libutf8proc-dev
    headers stdio.h webp/decode.h webp/demux.h || need libwebp-dev
    headers stdio.h stb/stb_image.h stb/stb_truetype.h || need libstb-dev
    headers stdio.h snappy-c.h || need libsnappy-dev
    headers stdio.h lz4.h || need liblz4-dev
    headers stdio.h zstd.h || need libzstd-dev
    headers stdio.h brotli/decode.h || need libbrotli-dev
    headers xxhash.h || need libxxhash-dev
    headers curl/curl.h || need libcurl4-openssl-dev
}

versions() {
    mod() { pkg-config --modversion "$1" 2>/dev/null || echo "found"; }
    dnnl=$(printf '#include <oneapi/dnnl/dnnl_version.h>\nv %s %s %s\n' \
                  DNNL_VERSION_MAJOR DNNL_VERSION_MINOR DNNL_VERSION_PATCH |
           $CC -E -P -x c - 2>/dev/null | sed -n 's/^v \([0-9]*\) \([0-9]*\) \([0-9]*\)$/\1.\2.\3/p')
    cjson=$(luajit -e "print(require('cjson')._VERSION)" 2>/dev/null)
    echo "found: $($CC --version 2>/dev/null | sed -n 1p)"
    echo "found: LuaJIT $(mod luajit), oneDNN ${dnnl:-?}, PCRE2 $(mod libpcre2-8)," \
         "utf8proc $(mod libutf8proc), libjpeg $(mod libjpeg), libpng $(mod libpng)," \
         "libwebp $(mod libwebp), lua-cjson ${cjson:-?}"
    nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
    if [ -n "$nvcc" ]; then
        release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
        echo "found: nvcc $release;" \
             "plain 'make' builds the CUDA backend with it (not with CUDA=0), 'make run' does not"
    else
        echo "not found: nvcc, so there will be no CUDA backend"
    fi
}

# Ends the program: 0 if all that the build needs is there.
finish() {
    [ -z "$optional" ] ||
        echo "packages that are not installed, for downloads (ca-certificates)," \
             "for words on images (fonts-dejavu-core) and" \
             "for several ranks (openmpi-bin, libopenmpi-dev):$optional" >&2
    [ -z "$missing" ]
    exit
}

[ "${1-}" = --versions ] && { versions; exit 0; }

probe
if [ "${1-}" = --check ]; then
    [ -z "$missing" ] && exit 0
    echo "segzero needs packages that are not installed:$missing" >&2
    echo "'make setup' installs them." >&2
    exit 1
fi
[ -z "$missing$optional" ] && exit 0
command="apt-get install -y --no-install-recommends$missing$optional"

# Without apt-get or the rights to use it, say what to do.
if ! have apt-get; then
    [ -z "$missing" ] && finish
    echo "segzero needs packages that are not installed. Debian's names:$missing$optional" >&2
    echo "Install them with this system's package manager, then run make again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then sudo=
elif have sudo && sudo -n true 2>/dev/null; then sudo="sudo -n"
else
    [ -z "$missing" ] && finish
    echo "segzero needs packages that are not installed. Type this, then run make again:" >&2
    echo "    sudo apt-get update && sudo $command" >&2
    exit 1
fi

echo "installing:$missing$optional"
log=$(mktemp) || exit 1
# An index that cannot be refreshed may still be good enough, so only the installation decides.
$sudo env DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 </dev/null ||
    echo "apt-get update failed; trying with the existing package index" >&2
if ! $sudo env DEBIAN_FRONTEND=noninteractive $command >>"$log" 2>&1 </dev/null; then
    [ -z "$missing" ] && { rm -f "$log"; finish; }
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "the set-up failed at: $command" >&2
    exit 1
fi
rm -f "$log"

probe
[ -z "$missing" ] && finish
echo "installed, but still not found:$missing" >&2
exit 1
