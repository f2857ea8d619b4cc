# The environment of a run on GPUs: every package at the version the tests pass with, and a user who is not root.
#     docker build -t llemma .
#     docker run --rm -it --gpus all --ipc=host -v /path/to/data:/data llemma
#     docker run --rm llemma make test
#
# BASE brings CUDA's compiler, NCCL, UCX and the drivers of InfiniBand. Any Debian or Ubuntu image with Python 3.10
# or newer serves; without CUDA the image trains on CPU:
#     docker build --build-arg BASE=debian:12 -t llemma-cpu .
ARG BASE=nvcr.io/nvidia/pytorch:25.09-py3

# hadolint ignore=DL3006
FROM ${BASE} AS packages

# NVIDIA's images pin Python packages of their own for pip; those of requirements/ are to win.
ENV PIP_CONSTRAINT= PYTHONUNBUFFERED=1

# The packages' versions are the base image's. openssh-client and pdsh are for the launcher of that name.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates git make openssh-client pdsh python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Not user 1000: Ubuntu's images have one.
RUN useradd --uid 10001 --create-home --shell /bin/bash llemma \
    && mkdir -p /opt/venv /workspace /wheels && chown llemma:llemma /opt/venv /workspace /wheels
USER 10001
WORKDIR /workspace
# The Makefile's own way to an environment, in a place that mounting a working tree does not hide.
ENV VENV=/opt/venv VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH

# Requirements before the code, so that a change of code installs nothing again.
COPY --chown=10001:10001 Makefile ./
COPY --chown=10001:10001 requirements/ requirements/
RUN make PIP_INSTALL_FLAGS=--no-cache-dir /opt/venv/.stamp-requirements

# --- Optional: FlashAttention-2 against that torch, for --build-arg FLASH_ATTN=1 (an hour; needs CUDA's compiler) ---
FROM packages AS flash-attn
ARG FLASH_ATTN=0
# hadolint ignore=DL3013,DL3042
RUN if [ "$FLASH_ATTN" = 1 ]; then \
        pip install --no-cache-dir ninja packaging setuptools wheel \
        && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels \
            "$(grep '^flash-attn==' requirements/requirements-optional.txt)"; \
    fi

# --- Optional: Apex's fused Adam and norms from NVIDIA's sources, for --build-arg APEX=1 ---
FROM packages AS apex
ARG APEX=0
ARG APEX_REVISION=25.09
# hadolint ignore=DL3013,DL3042
RUN if [ "$APEX" = 1 ]; then \
        pip install --no-cache-dir ninja packaging setuptools wheel \
        && git clone --depth 1 --branch "$APEX_REVISION" https://github.com/NVIDIA/apex /tmp/apex \
        && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 \
            pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /tmp/apex; \
    fi

# --- The image ---
FROM packages AS llemma
COPY --from=flash-attn --chown=10001:10001 /wheels/ /wheels/
COPY --from=apex --chown=10001:10001 /wheels/ /wheels/
# hadolint ignore=DL3013
RUN find /wheels -name '*.whl' -exec pip install --no-cache-dir --no-deps {} +

COPY --chown=10001:10001 . .
CMD ["bash"]
