# The server of a fedopt federation. Built from a checkout, or from the folder `image/` that `fedopt deploy init` writes:
#
#     docker build -f docker/server.Dockerfile -t fedopt-server .
#
# TORCH_INDEX: where torch comes from, by default builds for the CPU; https://download.pytorch.org/whl/cu130 for CUDA.
# EXTRAS: of fedopt; `node,ecg` where clients read ECG records.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=node
WORKDIR /source
COPY constraints.txt .
# by themselves, so that another version of fedopt is built in seconds
RUN python -m venv /opt/fedopt \
    && /opt/fedopt/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt \
        torch flwr scikit-learn plotly
COPY . .
RUN from="$(ls wheels/fedopt-*.whl 2>/dev/null || echo .)" \
    && /opt/fedopt/bin/pip install --no-cache-dir -c constraints.txt "./${from}[${EXTRAS}]"

FROM ${BASE}
RUN useradd --create-home --uid 10001 fedopt
COPY --from=build /opt/fedopt /opt/fedopt
COPY docker/health.py /usr/local/bin/fedopt-health
RUN chmod 755 /usr/local/bin/fedopt-health
ENV PATH=/opt/fedopt/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER fedopt
ENTRYPOINT ["fedopt", "deploy"]
