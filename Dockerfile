# An image with the GPU install, for one machine or a cluster (configs/cluster/rayjob.yaml expects /opt/arm_rl).
# It was written without a Docker engine and HAS NOT BEEN BUILT. Its install command ran without a GPU, on Python 3.11.
#
#   docker build --tag arm_rl .
#   docker run --rm --gpus all --ipc host \
#       --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
#       --volume "$PWD/runs:/opt/arm_rl/runs" arm_rl arm-rl train configs/arm_thinker_stage2.yaml
#
# --ipc host: weights travel through /dev/shm, of which a container has 64 MB otherwise.
# --security-opt: bubblewrap, the Python executor's sandbox, creates user namespaces; Docker's profiles refuse them.
# The folder for runs must be writable by user 1000.

# The devel image, because DeepSpeed, FlashInfer and Triton compile kernels at run time; of the CUDA of torch's wheels.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        bubblewrap build-essential ca-certificates git libnuma1 ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user 1000 already.
RUN userdel --remove ubuntu && useradd --create-home --uid 1000 arm_rl && install --directory --owner arm_rl /opt/arm_rl
USER arm_rl
WORKDIR /opt/arm_rl

COPY --chown=arm_rl . .
RUN --mount=type=cache,target=/home/arm_rl/.cache/pip,uid=1000 python3 install/install.py .venv --device gpu

ENV PATH=/opt/arm_rl/.venv/bin:$PATH
CMD ["arm-rl", "--help"]
