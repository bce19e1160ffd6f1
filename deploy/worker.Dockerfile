# syntax=docker/dockerfile:1
# A worker. Build from the root of the repository:
#   docker build --file deploy/worker.Dockerfile --tag aigc-worker .
#
# On linux/amd64 the wheel of torch that pip takes by default is a CUDA build; it brings CUDA's libraries along, and the
# host needs the NVIDIA driver and container toolkit only. For a CPU build give pip what it needs to find one:
#   --build-arg PIP_ARGS="--index-url <an index of CPU wheels>"      or
#   --build-arg TORCH_SPEC="torch @ <address of a wheel>"
# PIP_ARGS is used for torch alone; everything else comes from pip's default index.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_SPEC="torch==2.13.0"
ARG PIP_ARGS=""
# For the few packages that have no wheel for this platform.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/aigc
# torch first, in a layer of its own: it is large, and changes least.
RUN /opt/aigc/bin/pip install --no-cache-dir ${PIP_ARGS} "${TORCH_SPEC}"
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY aigc aigc
COPY migrations migrations
COPY producer producer
COPY shared shared
COPY workers workers
COPY models/ads-gpt2 models/ads-gpt2
COPY models/shapes models/shapes
RUN /opt/aigc/bin/pip install --no-cache-dir --constraint constraints.txt '.[worker]'

FROM python:${PYTHON_VERSION}-slim
RUN useradd --create-home --uid 10001 aigc \
    && install --directory --owner aigc --group aigc /data /models
COPY --from=build /opt/aigc /opt/aigc
COPY deploy/worker_alive.py /opt/aigc/worker_alive.py
# HF_HOME is where huggingface_hub keeps what it has downloaded: a volume, so that it is fetched once.
ENV PATH=/opt/aigc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIGC_DATA_DIR=/data \
    HF_HOME=/models/huggingface
WORKDIR /data
USER aigc
# A worker is well if its session's lease is being renewed. The first start imports torch, which takes a while.
HEALTHCHECK --interval=60s --timeout=20s --start-period=180s --retries=3 \
    CMD ["python", "/opt/aigc/worker_alive.py"]
ENTRYPOINT ["aigc"]
CMD ["worker", "--devices", "all"]
