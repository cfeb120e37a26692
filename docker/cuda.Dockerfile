# `kudos serve` on NVIDIA GPUs, with cuBLAS and NCCL of CUDA 13. docker build -f docker/cuda.Dockerfile -t kudos:cuda .
# docker run --gpus all -p 127.0.0.1:8000:8000 -v MODEL:/model:ro kudos:cuda [OPTIONS OF kudos serve]
FROM rust:1.95.0-slim-bookworm AS build
# For the pinned nvcc: pip, which downloads it, and the C++ compiler that it preprocesses with.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /kudos
COPY . .
# The image's toolchain as it is, without the components that rust-toolchain.toml adds for development.
RUN tools/cuda-toolchain.sh \
    && RUSTUP_TOOLCHAIN=$RUST_VERSION \
    cargo build --profile dist --locked --package kudos-cli --no-default-features --features cuda,serve

# The runtime images of CUDA 13.1 and later have no NCCL.
FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04
COPY --from=build /kudos/target/dist/kudos /usr/local/bin/kudos
# No user of the image: nothing in it is written, and timings of matmuls are not kept.
USER 65534:65534
ENV KUDOS_CACHE_DIR=""
EXPOSE 8000
ENTRYPOINT ["kudos", "serve", "--model", "/model", "--host", "0.0.0.0"]
