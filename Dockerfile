# jotd with its native front door and its journal on NATS JetStream.
#
#   docker build -t jotd:local .
#   docker run --rm -p 127.0.0.1:2379:2379 -v jotd:/var/lib/jotd jotd:local

# The Python that the tests run on. Hot modules are compiled for this very one, so both stages have it.
ARG PYTHON=3.11
ARG RUST=1.95

FROM rust:${RUST}-slim-bookworm AS rust

# Not slim: compiling takes a C compiler.
FROM python:${PYTHON}-bookworm AS build
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
RUN python -m venv /opt/jotd
WORKDIR /src
COPY . .
# What Rust has built stays for the next build: most changes are Python's.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/native/target \
    /opt/jotd/bin/pip install --no-cache-dir --disable-pip-version-check '.[nats]'
# Installing goes on without the native parts where they cannot be built, and without what an extra
# is for where that has another name. An image without them is none.
RUN cd / && /opt/jotd/bin/python -c 'import nats, nkeys, xxhash, jotd_native; \
    from kvstore.runtime.sources import is_compiled; assert is_compiled()'

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title=jotd org.opencontainers.image.licenses=Apache-2.0
# A number, so that an orchestrator can see that it is not root.
RUN groupadd --gid 10001 jotd && \
    useradd --uid 10001 --gid jotd --no-create-home --home-dir /var/lib/jotd jotd && \
    install --directory --owner jotd --group jotd --mode 0700 /var/lib/jotd
COPY --from=build /opt/jotd /opt/jotd
# A container's loopback is its own, so the defaults would serve nobody. Flags win over these.
ENV PATH=/opt/jotd/bin:$PATH \
    JOTD_DATA_DIR=/var/lib/jotd \
    JOTD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379 \
    JOTD_LISTEN_METRICS_URLS=http://0.0.0.0:2381
USER 10001:10001
WORKDIR /var/lib/jotd
VOLUME /var/lib/jotd
EXPOSE 2379 2381
# Ready is one that answers linearizable reads. The first minute may be a long recovery.
HEALTHCHECK --interval=5s --timeout=5s --retries=3 --start-period=60s \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 2381, timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["jotd"]
CMD ["serve"]
