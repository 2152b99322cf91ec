# unet_jax for a GPU cluster:
#
#     docker build --tag unet-jax .
#     docker run --gpus=all --volume="$PWD:/data" unet-jax train --config=em --workdir=runs/em
#
# Without a GPU: docker build --build-arg EXTRAS=cluster ...
FROM python:3.12-slim
ARG EXTRAS=cuda13,cluster
COPY setup.cfg pyproject.toml README.md LICENSE /unet_jax/
COPY unet_jax /unet_jax/unet_jax
COPY configs /unet_jax/configs
RUN pip install --no-cache-dir "/unet_jax[$EXTRAS]" && rm -r /unet_jax
WORKDIR /data
ENTRYPOINT ["unet-jax"]
