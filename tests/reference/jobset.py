"""Checks a manifest of `sae launch k8s`: jobset.py MANIFEST [DEFINITION].

What it must say is checked here; the schema of every field comes from the definition of JobSets, which is not part of this
repository. A schema lets unknown fields pass, so objects are closed first: a misspelt field must not go unseen.
"""

import sys
import tomllib

import jsonschema
import yaml


def closed(schema):
    """The schema without room for fields that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    return schema


def main():
    with open(sys.argv[1]) as file:
        config, jobset = yaml.safe_load_all(file)
    recipe = tomllib.loads(config["data"]["recipe.toml"])
    assert recipe["train"]["l1"] == 7.5, "the recipe travels with what was set over it"

    rules = jobset["spec"]["failurePolicy"]["rules"]
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in rules] == [("FailJobSet", ["PodFailurePolicy"])]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 4, 4, 0)
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["action"] == "FailJob" and policy["onExitCodes"]["values"] == [64, 65, 70, 73]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy asks for it"
    (container,) = pod["containers"]
    assert container["name"] == policy["onExitCodes"]["containerName"]
    assert container["command"][:4] == ["sae", "train", "/etc/sae/recipe.toml", "--resume-or-start"]
    names = [variable["name"] for variable in container["env"]]
    assert names.index("SAE_ATTEMPT") > max(names.index("JOBSET_UID"), names.index("JOBSET_RESTARTS")), "defined before use"
    assert {"name": "JOB_COMPLETIONS", "value": "4"} in container["env"]

    if len(sys.argv) > 2:
        with open(sys.argv[2]) as file:
            definition = yaml.safe_load(file)
        (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1alpha2"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        # Every object has these, and definitions leave their fields out.
        schema["properties"]["metadata"] = {"type": "object"}
        jsonschema.Draft202012Validator(schema).validate(jobset)


main()
