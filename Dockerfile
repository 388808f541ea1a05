# The demo, from nothing:   docker build -t siglip-tuner . && docker run --rm -v "$PWD/runs:/siglip-tuner/runs" siglip-tuner
# Your own data:            docker run --rm -v PATH/TO/DATA:/data -v "$PWD/runs:/siglip-tuner/runs" siglip-tuner /data/pairs.csv
# With GPUs: add --gpus all. For torch's small build for CPUs alone, name its index: --build-arg PIP_INDEX_URL=...
FROM python:3.11-slim-bookworm
ARG PIP_INDEX_URL
WORKDIR /siglip-tuner
COPY . .
RUN ./launch.sh environment
ENTRYPOINT ["./launch.sh"]
