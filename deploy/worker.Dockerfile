# The workers that need torch, for machines with or without an NVIDIA device; not root.
# Built from the repository's root: docker build -f deploy/worker.Dockerfile .

# The CUDA libraries come with torch's own wheels; the base image brings what the container
# runtime of the host looks for.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3.12-venv
WORKDIR /build
COPY deploy/bootstrap.lock deploy/worker.lock deploy/
RUN python3.12 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r deploy/bootstrap.lock \
    && /opt/build/bin/uv venv --python /usr/bin/python3.12 /opt/darkroom \
    && /opt/build/bin/uv pip install --no-cache --python /opt/darkroom/bin/python \
        --require-hashes -r deploy/worker.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN /opt/build/bin/hatchling build -t wheel \
    && /opt/build/bin/uv pip install --no-cache --python /opt/darkroom/bin/python --no-deps dist/*.whl

FROM base
COPY --from=build /opt/darkroom /opt/darkroom
# The cache of weights: a volume mounted here takes over the owner. Files in the making lie there
# too: /tmp is in memory, where a checkpoint of gigabytes has no room.
RUN useradd --system --uid 10001 --no-create-home darkroom \
    && install -d -o 10001 /var/cache/darkroom
ENV PATH=/opt/darkroom/bin:$PATH PYTHONUNBUFFERED=1 DARKROOM_CACHE_DIR=/var/cache/darkroom \
    TMPDIR=/var/cache/darkroom
USER 10001
WORKDIR /tmp
CMD ["python", "-m", "worker.main", "--role", "inference"]
