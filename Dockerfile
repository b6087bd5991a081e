# Two images from one file: `api` without torch, `worker` with it (CUDA build by default).
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /srv/spq
RUN useradd --create-home --uid 10001 spq && mkdir -p /data && chown spq /data
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app ./app
COPY worker ./worker
COPY spq_core ./spq_core
COPY spq_client ./spq_client
COPY migrations ./migrations

FROM base AS api
RUN pip install -c constraints.txt ".[s3]"
USER spq
EXPOSE 8000
CMD ["spq", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
# For a CPU image: --build-arg TORCH_INDEX=<index with CPU wheels>
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt ".[worker,s3,tasks]"
USER spq
CMD ["spq", "worker"]
