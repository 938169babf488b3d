# The image of the controller. Untried: nothing here could build or run images when this was written.
FROM rust:1.95-slim-bookworm AS build
# ring compiles C and assembler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY guest guest
COPY crds crds
COPY deploy deploy
COPY examples examples
RUN cargo build --locked --release --bin lamina

# What config disks carry into packaging machines. guest/build.sh installs its compilers.
FROM rust:1.95-slim-bookworm AS guest
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY guest guest
RUN cp "$(guest/build.sh)" /lamina-guest.exe

# glibc, certificate authorities, no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/lamina /usr/local/bin/lamina
COPY --from=guest /lamina-guest.exe /usr/local/share/lamina/lamina-guest.exe
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/lamina"]
CMD ["run"]
