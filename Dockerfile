# docker build --target gpu --tag attvae:gpu .
# docker build --target cpu --tag attvae:cpu --build-arg PIP_EXTRA_INDEX_URL=... .      # see install_cpu.sh
# How to run them: launch/README.md. Neither runs as root; data and runs are mounted under /attvae.

FROM python:3.11-slim AS cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_CACHE_DIR=1
WORKDIR /attvae
COPY . .
RUN launch/container/install_cpu.sh /opt/attvae \
    && useradd --uid 10001 attvae \
    && install --directory --owner attvae data runs
# A home and a name also for another user (docker run --user, a cluster's own policy).
ENV PATH=/opt/attvae/bin:$PATH HOME=/tmp USER=attvae PYTHONUNBUFFERED=1
USER 10001
CMD ["attvae", "--help"]

# The toolkit's version is that which torch of constraints.txt is built for; install_gpu.sh checks it.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS gpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_CACHE_DIR=1
ARG TORCH_CUDA_ARCH_LIST
ARG MAX_JOBS
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /attvae
COPY . .
RUN launch/container/install_gpu.sh /opt/attvae \
    && useradd --uid 10001 attvae \
    && install --directory --owner attvae data runs
ENV PATH=/opt/attvae/bin:$PATH HOME=/tmp USER=attvae PYTHONUNBUFFERED=1
USER 10001
CMD ["attvae", "--help"]
