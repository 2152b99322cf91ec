import contextlib
import gc
import http.server
import os
import threading
import uuid
from pathlib import Path

import jax
import pytest

from configs import demo


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Many tests train the same tiny network: it is compiled once, for the programs too."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all workers share
    folder = str(folder / "compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture
def strict():
    """No dtype and no rank is promoted in silence."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def real_data():
    """The folder of real data sets."""
    if "UNET_JAX_DATA" not in os.environ:
        pytest.skip("UNET_JAX_DATA is not set")
    return Path(os.environ["UNET_JAX_DATA"])


@pytest.fixture
def serve_file():
    """Serves files on the loopback interface, each at an address of its own."""
    with contextlib.ExitStack() as stack:

        def start(content, status=200, declared=None):
            requests = []

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    requests.append(self.path)
                    self.send_response(status)
                    self.send_header("Content-Length", str(declared or len(content)))
                    self.end_headers()
                    self.wfile.write(content)

                def log_message(self, *args):
                    pass

            server = stack.enter_context(http.server.HTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, args=[0.01])
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/file.zip", requests

        yield start
    gc.collect()  # pooch leaves the connection of a failed download to the garbage collector


@pytest.fixture
def tiny_config():
    """A run of seconds on made-up pictures."""
    config = demo.get_config()
    config.model.dtype = "float32"  # on a GPU too
    config.model.width = 2
    config.model.depth = 2
    config.data.height = config.data.width = 60
    config.data.train, config.data.validation, config.data.test = (0, 3), (3, 5), (5, 7)
    config.train.tile_side = 44
    config.train.steps = 12
    config.optimiser.warmup_steps = 3
    config.train.validate_every = 4
    return config


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a service on this machine."""
    why = "a service like S3 on the loopback interface"
    server = pytest.importorskip("moto.server", reason=f"{why}: moto, flask, flask-cors")
    boto3 = pytest.importorskip("boto3", reason=f"{why}: boto3")
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    host, port = service.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    name = f"volumes-{uuid.uuid4().hex}"  # all services of a process share their buckets
    region = {"LocationConstraint": "eu-central-1"}
    boto3.client("s3", region_name="eu-central-1").create_bucket(
        Bucket=name, CreateBucketConfiguration=region
    )
    yield f"s3://{name}"
    service.stop()
