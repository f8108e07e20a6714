# The command `buildings` in an image. The locked torch runs on a CPU and, with `docker run --gpus all`, on CUDA: its
# wheels bring CUDA's libraries along, so both need no other base than Python.
#
#   docker build -t buildings .
#   docker run --rm --gpus all -v "$PWD:/work" buildings predict models/all scenes --out maps
#
# A smaller image for CPUs alone, where an index of CPU wheels is at hand:
#   docker build -t buildings:cpu --build-arg TORCH_INDEX=URL .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=""
WORKDIR /source
RUN python -m venv /opt/buildings
ENV PATH=/opt/buildings/bin:$PATH
COPY requirements/run.txt requirements/run.txt
RUN if [ -z "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --require-hashes --requirement requirements/run.txt; \
    else \
        pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision; \
    fi
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE dvc.yaml .dvcignore .gitignore ./
COPY presets presets
COPY data/sources data/sources
COPY data/watched data/watched
COPY pipeline pipeline
RUN pip install --no-cache-dir . && buildings --help > /dev/null

FROM python:${PYTHON}-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git libexpat1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/buildings /opt/buildings
ENV PATH=/opt/buildings/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["buildings"]
CMD ["--help"]
