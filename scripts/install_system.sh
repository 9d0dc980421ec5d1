#!/usr/bin/env bash
# Install what Toto-Robot needs from Debian or Ubuntu: EGL with Mesa's software renderer, libusb for
# RealSense cameras, and Python's venv module. Installs only what is missing; says exactly what to run where it may not install.
set -euo pipefail
packages=""

have() { ldconfig -p | grep -q "$1"; }
if ! have libEGL.so.1 || ! have libOpenGL.so.0 || ! { have libEGL_mesa || have libEGL_nvidia; }; then
    packages="libegl1 libopengl0 libgl1-mesa-dri"
fi
have libusb-1.0.so.0 || packages="$packages libusb-1.0-0"
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || packages="$packages python3-venv"
if [ -z "$packages" ]; then
    echo "System packages: all there"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "No apt-get here. Install what these Debian packages hold: $packages" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo"
    else
        echo "System packages are missing. Please have an administrator run:" >&2
        echo "    apt-get update && apt-get install -y --no-install-recommends $packages" >&2
        exit 1
    fi
fi
$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
