# `kudos serve` on CPUs. docker build -f docker/cpu.Dockerfile -t kudos .
# docker run -p 127.0.0.1:8000:8000 -v "$PWD/demo/model:/model:ro" kudos [OPTIONS OF kudos serve]
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /kudos
COPY . .
# The image's toolchain as it is, without the components that rust-toolchain.toml adds for development.
RUN RUSTUP_TOOLCHAIN=$RUST_VERSION \
    cargo build --profile dist --locked --package kudos-cli --no-default-features --features serve

FROM debian:bookworm-slim
COPY --from=build /kudos/target/dist/kudos /usr/local/bin/kudos
# No user of the image: nothing in it is written.
USER 65534:65534
EXPOSE 8000
ENTRYPOINT ["kudos", "serve", "--model", "/model", "--host", "0.0.0.0"]
