"""Checks a manifest of `sae launch k8s`: jobset.py MANIFEST.

What it must say is checked here; the names and types of all fields, those of the pods included, by the models that
Kubeflow publishes of JobSets.
"""

import sys
import tomllib

import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet


def main():
    with open(sys.argv[1]) as file:
        config, jobset = yaml.safe_load_all(file)
    recipe = tomllib.loads(config["data"]["recipe.toml"])
    assert recipe["train"]["l1"] == 7.5, "the recipe travels with what was set over it"

    rules = jobset["spec"]["failurePolicy"]["rules"]
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in rules] == [("FailJobSet", ["PodFailurePolicy"])]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pods = job["completions"]
    assert (job["completionMode"], job["parallelism"], job["backoffLimit"]) == ("Indexed", pods, 0)
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["action"] == "FailJob" and policy["onExitCodes"]["values"] == [64, 65, 70, 73, 101]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy asks for it"
    (container,) = pod["containers"]
    assert container["name"] == policy["onExitCodes"]["containerName"]
    names = [variable["name"] for variable in container["env"]]
    assert names.index("SAE_ATTEMPT") > max(names.index("JOBSET_UID"), names.index("JOBSET_RESTARTS")), "defined before use"
    assert {"name": "JOB_COMPLETIONS", "value": str(pods)} in container["env"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]} and mounts["recipe"] == "/etc/sae"
    resume = ["/etc/sae/recipe.toml", "--resume-or-start", "--device"]
    match pods:
        case 4:
            assert container["command"] == ["sae", "train", *resume, "cpu"]
            assert "namespace" not in jobset["metadata"] and list(mounts) == ["recipe"]
        case 2:
            of_a_pod = ["sae", "launch", "local", "--as-node", "--ranks", "8"]
            assert container["command"] == [*of_a_pod, *resume, "cuda", "--mesh", "2x8"]
            assert config["metadata"] == jobset["metadata"] == {"name": "sae", "namespace": "interp"}
            (shm,) = (volume for volume in pod["volumes"] if mounts[volume["name"]] == "/dev/shm")
            assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
            limits = {"memory": "800Gi", "nvidia.com/gpu": 8}
            assert container["resources"] == {"requests": {"cpu": "96", "memory": "800Gi"}, "limits": limits}
            assert (pod["serviceAccountName"], pod["nodeSelector"]) == ("reader", {"gpu": "h200"})
            exists = {"key": "nvidia.com/gpu", "operator": "Exists"}
            equal = {"key": "pool", "operator": "Equal", "value": "sae", "effect": "NoSchedule"}
            assert pod["tolerations"] == [exists, equal]

    # A misspelt field is left out, one of another type is refused.
    understood = JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
    assert understood == jobset, f"fields that a JobSet has not: {understood} of {jobset}"


main()
