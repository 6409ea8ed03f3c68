# A server of one model: docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/species:/model:ro" omma-serve
FROM python:3.11-slim

# PyTorch for CPUs, an eighth of the size; for a GPU leave this line out, and run with --gpus all
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu

# omma compiles some of its kernels for the machine's processor
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir "/source[serve]" && rm -r /source

RUN useradd --create-home omma
USER omma
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# exec form: SIGTERM of `docker stop` reaches the server, which answers what it has accepted
ENTRYPOINT ["omma", "serve"]
CMD ["/model", "--host", "0.0.0.0"]
