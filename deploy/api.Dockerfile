# The API, the dispatcher, the migrations and the io worker: no torch, not root.
# Built from the repository's root: docker build -f deploy/api.Dockerfile .

FROM python:3.12.12-slim-bookworm AS build
WORKDIR /build
COPY deploy/bootstrap.lock deploy/api.lock deploy/
RUN pip install --no-cache-dir --require-hashes -r deploy/bootstrap.lock \
    && uv venv /opt/darkroom \
    && uv pip install --no-cache --python /opt/darkroom/bin/python --require-hashes -r deploy/api.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN hatchling build -t wheel \
    && uv pip install --no-cache --python /opt/darkroom/bin/python --no-deps dist/*.whl

FROM python:3.12.12-slim-bookworm
COPY --from=build /opt/darkroom /opt/darkroom
RUN useradd --system --uid 10001 --no-create-home darkroom
ENV PATH=/opt/darkroom/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /tmp
EXPOSE 8080
CMD ["gunicorn", "--worker-class", "app.api.server.ApiWorker", "--threads", "16", "--bind", "0.0.0.0:8080", "app.api.app:create_app()"]
