# HTTP service of a student, run by an ordinary user.
#
#   docker build -t judge .
#   docker run -p 8000:8000 -e ARENA_DISTILL_API_KEY=secret -v "$PWD/runs/demo/distill/student:/student:ro" judge
#
# For NVIDIA GPUs: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t judge . and
# docker run --gpus all. A student of the Hugging Face hub: docker run -p 8000:8000 judge user/name.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY oof ./oof
COPY ensemble ./ensemble
COPY configs ./configs
RUN pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} -c constraints.txt .[serve]
RUN useradd --create-home --uid 10001 judge
USER judge
WORKDIR /home/judge
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/health')"]
ENTRYPOINT ["arena-distill", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/student"]
