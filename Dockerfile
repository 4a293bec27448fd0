# Two images of the same program: runtime-cpu, the default, and runtime-cuda, which adds the plug-in for GPUs.
#
#   docker build -t clotho .
#   docker build -t clotho:cuda --target runtime-cuda .
#   docker run -p 8080:8080 -v ~/models/some-model:/models:ro clotho
#
# /models holds exactly one .gguf file, or CLOTHO_MODEL names one. Every flag is a variable, CLOTHO_<FLAG>.
ARG DEBIAN=docker.io/library/debian:bookworm-slim
ARG CUDA=docker.io/nvidia/cuda:13.0.2-devel-ubuntu22.04

FROM ${DEBIAN} AS tools
COPY deploy/install-deps.sh /src/deploy/
RUN /src/deploy/install-deps.sh && rm -rf /var/lib/apt/lists/*

FROM tools AS source
WORKDIR /src
COPY CMakeLists.txt LICENSE README.md CHANGELOG.md ./
COPY kernels kernels
COPY core core
COPY proto proto
COPY config config
COPY server server

FROM source AS build-cpu
RUN cmake -S . -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr \
        -DCLOTHO_TESTS=OFF -DCLOTHO_CUDA=OFF \
    && cmake --build /build && DESTDIR=/out cmake --install /build --strip

# Only the toolkit comes from NVIDIA's image; compiled is on the Debian that it will run on.
FROM ${CUDA} AS toolkit

FROM source AS build-cuda
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=toolkit /usr/local/cuda-13.0 /usr/local/cuda-13.0
ENV CUDA_HOME=/usr/local/cuda-13.0
RUN cmake -S . -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr -DCLOTHO_TESTS=OFF \
    && cmake --build /build && DESTDIR=/out cmake --install /build --strip \
    && test -e /build/libclotho-cuda.so \
    && cp -L "$CUDA_HOME/lib64/libcublasLt.so.13" "$(dirname "$(find /out -name libclotho-cuda.so)")"

FROM ${DEBIAN} AS runtime
RUN apt-get -qq update \
    && apt-get -qq install -y --no-install-recommends \
        libmicrohttpd12 libcurl4 libjansson4 libpcre2-8-0 libyaml-0-2 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home clotho \
    && install -d -o clotho -g clotho /twists
USER 10001:10001
ENV CLOTHO_HOST=0.0.0.0 CLOTHO_PORT=8080 CLOTHO_MODEL=/models
EXPOSE 8080
# Loading a large model takes its time, and counts as starting.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/$CLOTHO_PORT && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '^HTTP/1.[01] 200 ' <&3"]
ENTRYPOINT ["/usr/bin/clotho"]
CMD ["serve"]

FROM runtime AS runtime-cuda
COPY --from=build-cuda /out/usr/bin /usr/bin
COPY --from=build-cuda /out/usr/lib /usr/lib
# What NVIDIA's container toolkit goes by.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS runtime-cpu
COPY --from=build-cpu /out/usr/bin /usr/bin
