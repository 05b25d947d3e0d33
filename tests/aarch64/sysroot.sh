#!/bin/sh
# Makes a folder with the arm64 libraries of Debian that segzero needs, to build and run it for
# aarch64 on an x86-64 machine. `make aarch64` calls it.
#
#   tests/aarch64/sysroot.sh DIR      makes DIR; does nothing if it is complete
#
# It unpacks packages and installs nothing: neither root nor `dpkg --add-architecture` is needed.
# apt has lists and a cache of its own in DIR.apt, and keeps them: an attempt that failed goes on.
# Environment: MIRROR, SUITE, the archive and the release to take (Debian 12's).
# Leaves out: the compiler and the emulator (gcc-aarch64-linux-gnu, qemu-user-static), which are
# packages of this machine.
set -eu
DIR=$1
MIRROR=${MIRROR:-http://deb.debian.org/debian}
SUITE=${SUITE:-bookworm}

# The packages of runtime/setup.sh, less what only the build machine needs.
PACKAGES="libc6-dev libgomp1 libluajit-5.1-dev lua-cjson lua-yaml lua-posix libdnnl-dev libjpeg-dev
          libpng-dev zlib1g-dev libpcre2-dev libutf8proc-dev libwebp-dev libstb-dev libsnappy-dev
          liblz4-dev libzstd-dev libbrotli-dev libxxhash-dev libcurl4-openssl-dev"

wanted="$MIRROR $SUITE "$(echo $PACKAGES)
[ "$(cat "$DIR/complete" 2>/dev/null)" = "$wanted" ] && exit 0
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null && continue
    echo "$0: needs $tool, which Debian and Ubuntu have" >&2
    exit 1
done

# An apt that knows arm64 only, and has no package installed.
rm -rf "$DIR"
mkdir -p "$DIR" "$DIR.apt/lists/partial" "$DIR.apt/archives/partial"
APT=$(cd "$DIR.apt" && pwd)
: >"$APT/status"
echo "deb [arch=arm64] $MIRROR $SUITE main" >"$APT/sources.list"
cat >"$APT/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "";
Dir::State "$APT";
Dir::State::status "$APT/status";
Dir::Cache "$APT";
Dir::Etc::sourcelist "$APT/sources.list";
Dir::Etc::sourceparts "$APT/none";
END
export APT_CONFIG="$APT/apt.conf"

echo "unpacking arm64 packages of $SUITE into $DIR"
apt-get -qq update
apt-get -qq -y --no-install-recommends --download-only install $PACKAGES
apt-get -qq autoclean
for package in "$APT"/archives/*.deb; do dpkg-deb -x "$package" "$DIR"; done

# Links such as libz.so -> /lib/aarch64-linux-gnu/libz.so.1 must stay inside.
find "$DIR" -type l -lname '/*' | while read -r link; do
    ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$DIR$(readlink "$link")")" "$link"
done
echo "$wanted" >"$DIR/complete"
