# The server with its shipped base. See docs/operations.md, "Containers".
FROM python:3.11-slim

# Empty: the standard wheel of PyTorch, which on Linux runs on CPUs and on NVIDIA GPUs.
# The address of PyTorch's own index of CPU builds gives a much smaller image.
ARG TORCH_INDEX=""

# The compiler of the CPU's native code, which is built for the processor that the container runs on.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY training training
COPY server server
RUN pip install --no-cache-dir -c constraints.txt . \
    && useradd --create-home --uid 10001 multilora \
    && install -d -o multilora -g multilora /data

USER multilora
WORKDIR /data
VOLUME /data
ENV MULTILORA_HOST=0.0.0.0 \
    MULTILORA_PORT=8000 \
    MULTILORA_DATA_DIR=/data/multilora \
    HF_HOME=/data/huggingface
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['MULTILORA_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["multilora"]
CMD ["serve"]
