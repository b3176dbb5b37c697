# docker build -t localhost/lp-exporter:0.1.0 .          (podman and buildah take the same arguments)
# docker buildx build --platform linux/amd64,linux/arm64 -t registry.example/lp-exporter:0.1.0 --push .
# The second builds each platform on itself: on a node of that platform if buildx has one, else emulated, much slower.

FROM docker.io/library/rust:1.95.0-bookworm AS build
# The compiler is the image's: what rust-toolchain.toml adds for development is not needed here.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /source
COPY . .
# The target is named so that the flags do not reach build scripts and macros, which cannot be static.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target,sharing=locked \
    target="$(uname -m)-unknown-linux-gnu" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo rustc --locked --profile dist --target "$target" --bin lp-exporter \
       -- -C link-arg=-Wl,-z,pack-relative-relocs \
    && cp "target/$target/dist/lp-exporter" /lp-exporter

FROM scratch
LABEL org.opencontainers.image.title="lp-exporter" \
      org.opencontainers.image.description="Usage metrics for node-local Kubernetes volumes, pushed to a Prometheus Pushgateway" \
      org.opencontainers.image.licenses="Apache-2.0"
# For a Pushgateway behind https whose certificate a public authority signed.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /lp-exporter /lp-exporter
# The controller's user. Workers run as uid 0 with one capability, which their Jobs say.
USER 65532:65532
ENTRYPOINT ["/lp-exporter"]
