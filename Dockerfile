# A small image of the CPU server. Mount a folder with one .gguf file at /models:
#   docker build -t clotho . && docker run -p 8080:8080 -v "$PWD/models:/models:ro" clotho
FROM debian:bookworm-slim AS build
WORKDIR /src
COPY deploy/install-deps.sh deploy/
RUN deploy/install-deps.sh
COPY . .
RUN cmake -S . -B /build -G Ninja -DCLOTHO_TESTS=OFF && cmake --build /build && cmake --install /build --prefix /opt/clotho

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        curl libgomp1 libmicrohttpd12 libjansson4 libpcre2-8-0 libyaml-0-2 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home clotho
COPY --from=build /opt/clotho /usr/local
USER clotho
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD curl -fsS http://127.0.0.1:8080/readyz
# Docker's SIGTERM drains: running requests may finish.
ENTRYPOINT ["clotho"]
CMD ["serve", "--host", "0.0.0.0", "--model", "/models"]
