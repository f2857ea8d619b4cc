#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the Dockerfile for real, with no container engine and no registry: hadolint, then buildah on a Debian base
# that debootstrap makes, then a look inside. Needs root and Debian's buildah, podman and debootstrap.
#
#     tests/build_image.sh [COMMAND…]        the command runs in the image; by default it imports the engine
#
# STORE: folder of the images (default /var/tmp/llemma-image; about 20 GB). BUILD_ARGS: more options for buildah,
# such as --volume /etc/pip.conf:/etc/pip.conf:ro where pip needs another index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

store=${STORE:-/var/tmp/llemma-image}
storage=(--root "$store/images" --runroot "$store/run" --storage-driver vfs)
base=localhost/debian:12
read -r -a build_args <<<"${BUILD_ARGS:-}"
command=("$@")
if [ ${#command[@]} -eq 0 ]; then
    command=(python -c 'import os, torch, megatron.backend, megatron.core; print("torch", torch.__version__, "megatron-core", megatron.core.__version__, "user", os.getuid())')
fi

hadolint Dockerfile
if ! buildah "${storage[@]}" inspect --type image "$base" >/dev/null 2>&1; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase bookworm "$root/debian" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
    tar -C "$root/debian" -c . | podman "${storage[@]}" import -q - "$base"
fi
buildah "${storage[@]}" bud --isolation chroot --network host --pull-never --build-arg "BASE=$base" \
    "${build_args[@]}" --tag localhost/llemma:check .
container=$(buildah "${storage[@]}" from --pull-never localhost/llemma:check)
trap 'buildah "${storage[@]}" rm "$container" >/dev/null; rm -rf "${root:-}"' EXIT
buildah "${storage[@]}" run --isolation chroot --network host "${build_args[@]}" "$container" -- "${command[@]}"
