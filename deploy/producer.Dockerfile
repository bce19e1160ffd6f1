# syntax=docker/dockerfile:1
# The light side: command line, keeper, migrations. No torch. Build from the root of the repository:
#   docker build --file deploy/producer.Dockerfile --tag aigc-producer .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
# For the few packages that have no wheel for this platform.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/aigc
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY aigc aigc
COPY migrations migrations
COPY producer producer
COPY shared shared
COPY workers workers
COPY models/ads-gpt2 models/ads-gpt2
COPY models/shapes models/shapes
RUN /opt/aigc/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:${PYTHON_VERSION}-slim
RUN useradd --create-home --uid 10001 aigc \
    && install --directory --owner aigc --group aigc /data
COPY --from=build /opt/aigc /opt/aigc
COPY deploy/make_bucket.py /opt/aigc/make_bucket.py
ENV PATH=/opt/aigc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIGC_DATA_DIR=/data
WORKDIR /data
USER aigc
# Says whether the database can be reached; a keeper that ends is started again by its restart policy.
HEALTHCHECK --interval=60s --timeout=20s --start-period=20s --retries=3 \
    CMD ["aigc", "list", "--limit", "1", "--json"]
ENTRYPOINT ["aigc"]
CMD ["keeper"]
