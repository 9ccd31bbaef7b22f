"""What is shipped for clusters: the KubeRay manifest against the fields that its CRD knows, the Slurm script, what an upload leaves out."""

import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

from actors.cluster.placement import Node, plan
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig

ROOT = Path(__file__).parents[2]


def fields(required: tuple[str, ...] = (), **properties: object) -> dict:
    """An object that knows these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, NUMBER, FLAG, TEXTS = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "boolean"},
    {"type": "object", "additionalProperties": {"type": "string"}},
)
AMOUNT = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}]}
AMOUNTS = {"type": "object", "additionalProperties": AMOUNT}


def listed(item: dict) -> dict:
    return {"type": "array", "items": item, "minItems": 1}


# The fields of ray.io/v1 (KubeRay 1.3) and of Kubernetes' pods that the manifest uses, by their names and types there.
CONTAINER = fields(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    ports=listed(fields(("containerPort",), name={"type": "string", "maxLength": 15}, containerPort=NUMBER)),
    resources=fields(requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=listed(fields(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
VOLUME = fields(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=fields(("claimName",), claimName=TEXT),
    emptyDir=fields(medium={"enum": ["", "Memory"]}),
)
POD = fields(
    ("spec",),
    spec=fields(
        ("containers",), terminationGracePeriodSeconds=NUMBER, containers=listed(CONTAINER), volumes=listed(VOLUME)
    ),
)
GROUP = {"rayStartParams": TEXTS, "template": POD}
WORKERS = fields(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    **GROUP,
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
)
CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    headGroupSpec=fields(("rayStartParams", "template"), **GROUP),
    workerGroupSpecs=listed(WORKERS),
)
RAY_JOB = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields(("name",), name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
    spec=fields(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture
def manifest() -> dict:
    return yaml.safe_load((ROOT / "configs/cluster/rayjob.yaml").read_text())


def test_the_manifest_has_the_fields_that_the_crd_knows(manifest):
    jsonschema.validate(manifest, RAY_JOB)
    assert set(yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])) == {"working_dir", "env_vars"}


def test_a_wrong_field_would_be_found(manifest):
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["count"] = 2
    with pytest.raises(jsonschema.ValidationError, match="'count' was unexpected"):
        jsonschema.validate(manifest, RAY_JOB)


def test_the_manifests_job_is_a_shipped_configuration_and_fits_on_its_cluster(manifest):
    python, flag, module, config, *overrides = manifest["spec"]["entrypoint"].split()
    assert (python, flag, module) == ("python", "-m", "jobs.train")
    loaded = load(TrainConfig, ROOT / config, [*overrides, "placement.may_grow=false"])
    nodes = []
    for group in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        resources = {"CPU": requests["cpu"], "GPU": requests.get("nvidia.com/gpu", 0)}
        nodes += [Node(id=f"{group['groupName']}-{number}", resources=resources) for number in range(group["replicas"])]
    planned = plan(loaded.placement, loaded.learner.num_ranks, loaded.rollout, nodes)
    assert planned.cpu_nodes == ("tools-0",)
    assert loaded.run.folder.is_absolute()


def test_volumes_that_are_mounted_are_there(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }


def test_an_upload_leaves_out_what_is_large():
    leaves_out = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    for path in ("runs", "runs/demo/data", ".venv", "data", "shared", ".git"):
        assert any(excludes(ROOT / path) for excludes in leaves_out), path
    for path in (
        "jobs/train.py",
        "configs/demo.yaml",
        "arm_rl/report/page.html",
        "arm_rl/data/samples.py",
        "arm_rl/demo/chat_template.jinja",
    ):
        assert not any(excludes(ROOT / path) for excludes in leaves_out), path


def test_the_slurm_script_brings_the_job_to_all_nodes_and_stops_it_on_sigterm(tmp_path):
    """With Slurm's and Ray's commands replaced by some that note how they are called."""
    log = tmp_path / "calls"
    stubs = {
        "scontrol": "printf 'n1\\nn2\\n'",
        "srun": 'case "$*" in *hostname*) echo 10.0.0.1;; *) for rank in 0 1; do SLURM_PROCID=$rank "${@:4}" & done; wait;; esac',
        "ray": f"""echo "$*" >> {log}
            case "$1 $2" in
                "start "*) exec sleep 60 ;;
                "job submit") until [ -e {tmp_path}/stopped ]; do sleep 0.1; done; exit 1 ;;
                "job stop") touch {tmp_path}/stopped ;;
            esac""",
        "python": "exit 0",
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PYTHON": str(tmp_path / "python"),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
    }
    script = subprocess.Popen([ROOT / "jobs/submit.sh", "train", "a b.yaml", "run.root=/x"], cwd=ROOT, env=environment)
    try:
        while (
            "job submit" not in (log.read_text() if log.exists() else "") or log.read_text().count("start --block") < 2
        ):
            assert script.poll() is None
        script.terminate()
        assert script.wait(timeout=60) == 1
    finally:
        script.kill()
    calls = log.read_text().splitlines()
    assert any(call.startswith("start --block --head --node-ip-address 10.0.0.1 --port 22345") for call in calls)
    assert "start --block --address 10.0.0.1:22345 --num-cpus 64" in calls
    (submitted,) = (call for call in calls if call.startswith("job submit"))
    assert submitted.startswith("job submit --address http://10.0.0.1:22346 --submission-id slurm-12345-")
    assert submitted.endswith("--working-dir . -- python -m jobs.train a b.yaml run.root=/x")
    assert f"job stop --address http://10.0.0.1:22346 --no-wait {submitted.split()[5]}" in calls


def test_the_slurm_script_says_how_it_is_used():
    told = subprocess.run([ROOT / "jobs/submit.sh"], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "sbatch --nodes 2" in told.stderr
