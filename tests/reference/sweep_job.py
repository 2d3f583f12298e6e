"""Checks a manifest of `sae launch k8s --sweep`: sweep_job.py MANIFEST.

What it must say is checked here; the names and types of all fields by the models that Kubeflow publishes of Jobs.
"""

import sys
import tomllib

import yaml
from kubeflow_trainer_api.models.io_k8s_api_batch_v1_job import IoK8sApiBatchV1Job


def main():
    with open(sys.argv[1]) as file:
        config, job = yaml.safe_load_all(file)
    sweep = tomllib.loads(config["data"]["sweep.toml"])
    assert sweep["axes"]["train"]["lr"] == [1e-3, 2e-3, 4e-3] and "lr" in sweep["base"]["train"], "the sweep travels whole"

    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimitPerIndex"] == 50, "one that fails is started again, and no other for it"
    (policy,) = spec["podFailurePolicy"]["rules"]
    assert policy["action"] == "FailIndex" and policy["onExitCodes"]["values"] == [64, 65, 70, 73, 101]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy asks for it"
    (container,) = pod["containers"]
    assert container["name"] == policy["onExitCodes"]["containerName"]
    worker = ["/etc/sae/sweep.toml", "--dir", "s3://bucket/sweep", "--worker", "--workers", "3", "--slots", "2", "--device", "cuda"]
    assert container["command"] == ["sae", "sweep", *worker]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]} and mounts["recipe"] == "/etc/sae"

    # A misspelt field is left out, one of another type is refused.
    understood = IoK8sApiBatchV1Job.from_dict(job).to_dict()
    assert understood == job, f"fields that a Job has not: {understood} of {job}"


main()
