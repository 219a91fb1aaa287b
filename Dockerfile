# Recorder, loader, and analysis in one image, for linux/amd64 and linux/arm64; docker-compose.yml says what each runs.
#
#     docker build -t ticktape .
#     docker run --rm -v "$PWD/data:/data" ticktape recorder record --for 60
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md ./
COPY deploy/install-venv deploy/lock_subset.py deploy/
COPY recorder recorder
COPY loader loader
COPY analysis analysis
# Versions and hashes are those of requirements.lock, without what is for developers.
RUN deploy/install-venv /opt/ticktape

FROM python:3.11.14-slim-bookworm
# The user that owns most single-user machines' files; docker-compose.yml can say another (CONTAINER_USER).
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /data ticktape \
    && install -d -o ticktape -g ticktape /data
COPY --from=build /opt/ticktape /opt/ticktape
ENV PATH=/opt/ticktape/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/data \
    METRICS_HOST=0.0.0.0 \
    METRICS_PORT=9101 \
    LOADER_METRICS_PORT=9102
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 9101 9102
STOPSIGNAL SIGTERM
# Alive, whether the exchange is there or not. That of the loader is at port 9102 (docker-compose.yml).
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9101/healthz', timeout=5)"]
ENTRYPOINT ["python", "-m"]
CMD ["recorder", "record"]
