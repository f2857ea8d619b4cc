# The environment of a run on GPUs. The base brings CUDA's libraries and compiler (for flash-attn, if wanted);
# any Debian or Ubuntu image with Python 3.10 or newer serves, also one without CUDA:
#     docker build --build-arg BASE=debian:12 -t llemma .
#     docker run --rm -it --gpus all --ipc=host -v /path/to/data:/data llemma
ARG BASE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE}

# The packages' versions are the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates git make openssh-client python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Not user 1000: Ubuntu's images have one.
RUN useradd --uid 10001 --create-home --shell /bin/bash llemma \
    && mkdir -p /opt/venv /workspace && chown llemma:llemma /opt/venv /workspace
USER 10001
WORKDIR /workspace
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

# Requirements before the code, so that a change of code installs nothing again; torch before all others.
COPY --chown=10001:10001 requirements/ requirements/
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir -r requirements/torch.txt \
    && pip install --no-cache-dir -r requirements/requirements.txt

# `docker build --build-arg FLASH_ATTN=1` also compiles flash-attn against that torch (long).
# What it builds with is as new as its sources expect.
ARG FLASH_ATTN=0
# hadolint ignore=DL3013
RUN if [ "$FLASH_ATTN" = 1 ]; then \
        pip install --no-cache-dir ninja setuptools wheel \
        && pip install --no-cache-dir --no-build-isolation "$(grep '^flash-attn' requirements/requirements-optional.txt)"; \
    fi

COPY --chown=10001:10001 . .
CMD ["bash"]
