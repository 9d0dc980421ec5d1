#!/usr/bin/env bash
# Install what headless rendering needs on Debian or Ubuntu: EGL with Mesa's software renderer.
# Does nothing where it is there already; says exactly what to run where it may not install.
set -euo pipefail
packages="libegl1 libopengl0 libgl1-mesa-dri"

have() { ldconfig -p | grep -q "$1"; }
if have libEGL.so.1 && have libOpenGL.so.0 && { have libGLX_mesa || have libEGL_mesa || have libEGL_nvidia; }; then
    echo "OpenGL for headless rendering: already installed"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "No apt-get here. Install EGL and OpenGL with your system's packages (on Debian: $packages)." >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo"
    else
        echo "Headless rendering needs system packages. Please have an administrator run:" >&2
        echo "    apt-get update && apt-get install -y --no-install-recommends $packages" >&2
        exit 1
    fi
fi
$as_root apt-get update -q
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
