# The server with its shipped base. See docs/operations.md, "Containers".
FROM python:3.11-slim-bookworm

# cpu: PyTorch's own build for CPUs, a much smaller image. cuda: the standard wheel, which on Linux runs on
# CPUs and on NVIDIA GPUs; deploy/gpu.yml gives the container one.
ARG DEVICE=cpu
# Where the build for CPUs is found: a mirror of PyTorch's index, if that is out of reach.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The compiler of the CPU's native code, which is built for the processor that the container runs on.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" torch ;; \
      cuda) pip install --no-cache-dir -c constraints.txt torch ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY training training
COPY server server
# train brings PEFT, which publications are compared with.
RUN pip install --no-cache-dir -c constraints.txt ".[train,postgres,s3]" \
    && useradd --create-home --uid 10001 multilora \
    && install -d -o multilora -g multilora /data

USER multilora
WORKDIR /data
VOLUME /data
ENV MULTILORA_HOST=0.0.0.0 \
    MULTILORA_PORT=8000 \
    MULTILORA_DATA_DIR=/data/multilora \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/huggingface
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['MULTILORA_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["multilora"]
CMD ["serve"]
