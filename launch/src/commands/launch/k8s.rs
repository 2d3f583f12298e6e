//! `sae launch k8s`.

use loader::Store;
use serde_json::{Map, Value, json};

use crate::args::{K8s, Log, Toleration, handed_on};
use crate::device::DeviceChoice;
use crate::failure::Failure;
use crate::template::fill;
use crate::{job, recipes, table};

/// Size of /dev/shm where a pod has several GPUs.
const SHM: &str = "8Gi";

/// Prints the manifest. The recipe travels in it, so that an image serves all runs.
pub fn run(args: &K8s, log: Log) -> Result<(), Failure> {
    let recipe = recipes::read(&args.run.recipe, &args.run.set)?;
    let ranks_per_pod = args.gpus_per_pod.or(args.ranks_per_pod).unwrap_or(1);
    job::mesh_of(args.run.mesh, args.pods as usize * ranks_per_pod as usize, &recipe)?;
    if args.run.device != DeviceChoice::Auto {
        return Err(Failure::arguments(
            "pods compute on GPUs with --gpus-per-pod, else on processors: leave --device out",
        ));
    }
    if Store::open(&recipe.run.dir)?.local_path().is_some() {
        tracing::warn!(
            "run.dir = \"{}\" is a folder: unless a volume is mounted there, it ends with the pod",
            recipe.run.dir
        );
    }
    let secrets: Vec<Value> = args.secret.iter().map(|name| json!({ "secretRef": { "name": name } })).collect();
    let (mounts, volumes) = volumes(args);
    // JSON is YAML, and quotes whatever is in a value.
    let manifest = fill(
        include_str!("../../../templates/jobset.yaml"),
        &[
            ("metadata", metadata(args).to_string()),
            ("recipe", block(&recipe.to_toml())),
            ("pods", args.pods.to_string()),
            ("restarts", args.restarts.to_string()),
            ("save_s", job::save_time(args.save, &recipe)?.to_string()),
            ("nodes", nodes(args)),
            ("image", json!(args.image).to_string()),
            ("command", json!(command(args, log, ranks_per_pod)).to_string()),
            ("secrets", json!(secrets).to_string()),
            ("resources", resources(args).to_string()),
            ("mounts", mounts),
            ("volumes", volumes),
        ],
    );
    table::say(manifest.trim_end());
    Ok(())
}

fn metadata(args: &K8s) -> Value {
    match &args.namespace {
        Some(namespace) => json!({ "name": args.name, "namespace": namespace }),
        None => json!({ "name": args.name }),
    }
}

/// What a pod runs: one rank, or a launcher of its ranks.
fn command(args: &K8s, log: Log, ranks_per_pod: u32) -> Vec<String> {
    let ranks = ranks_per_pod.to_string();
    let launch = match ranks_per_pod {
        1 => vec!["sae", "train"],
        _ => vec!["sae", "launch", "local", "--as-node", "--ranks", &ranks],
    };
    let device = if args.gpus_per_pod.is_some() { "cuda" } else { "cpu" };
    let after = ["/etc/sae/recipe.toml", "--resume-or-start", "--device", device];
    let words = launch.iter().map(|&word| word.to_owned()).chain(handed_on(log));
    let words = words.chain(after.map(str::to_owned));
    words.chain(args.run.mesh.iter().flat_map(|mesh| ["--mesh".to_owned(), mesh.to_string()])).collect()
}

/// Which nodes pods may be on, and as whom they run: fields of the pod, each on a line of its own.
fn nodes(args: &K8s) -> String {
    let mut fields = Vec::new();
    if let Some(account) = &args.service_account {
        fields.push(format!("serviceAccountName: {}", json!(account)));
    }
    if !args.node_selector.is_empty() {
        let labels: Map<String, Value> =
            args.node_selector.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        fields.push(format!("nodeSelector: {}", Value::Object(labels)));
    }
    if !args.toleration.is_empty() {
        let tolerations: Vec<Value> = args.toleration.iter().map(tolerated).collect();
        fields.push(format!("tolerations: {}", Value::Array(tolerations)));
    }
    fields.iter().map(|field| format!("\n              {field}")).collect()
}

fn tolerated(Toleration { key, value, effect }: &Toleration) -> Value {
    let mut toleration = match value {
        Some(value) => json!({ "key": key, "operator": "Equal", "value": value }),
        None => json!({ "key": key, "operator": "Exists" }),
    };
    if let Some(effect) = effect {
        toleration["effect"] = json!(effect);
    }
    toleration
}

fn resources(args: &K8s) -> Value {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    if let Some(cores) = &args.cpu {
        // No limit: cores that nobody else uses make a rank faster.
        requests.insert("cpu".to_owned(), json!(cores));
    }
    if let Some(memory) = &args.memory {
        requests.insert("memory".to_owned(), json!(memory));
        limits.insert("memory".to_owned(), json!(memory));
    }
    if let Some(gpus) = args.gpus_per_pod {
        limits.insert("nvidia.com/gpu".to_owned(), json!(gpus));
    }
    json!({ "requests": requests, "limits": limits })
}

/// Where volumes are mounted, and what they are: the recipe, and shared memory.
fn volumes(args: &K8s) -> (String, String) {
    let mut mounts = vec![json!({ "name": "recipe", "mountPath": "/etc/sae", "readOnly": true })];
    let mut volumes = vec![json!({ "name": "recipe", "configMap": { "name": args.name } })];
    let several = args.gpus_per_pod.is_some_and(|gpus| gpus > 1);
    if let Some(size) = args.shm.as_deref().or(several.then_some(SHM)) {
        mounts.push(json!({ "name": "shm", "mountPath": "/dev/shm" }));
        volumes.push(json!({ "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": size } }));
    }
    let lines = |items: &[Value], indent: usize| -> String {
        items.iter().map(|item| format!("\n{:indent$}- {item}", "")).collect()
    };
    (lines(&mounts, 20), lines(&volumes, 16))
}

/// A text as a block of YAML, whose lines can be read; or, where YAML would not keep each of its characters, in quotes.
fn block(text: &str) -> String {
    let breaks = ['\u{85}', '\u{2028}', '\u{2029}', '\u{feff}'];
    let plain = |c: char| c == '\n' || !(c.is_control() || breaks.contains(&c));
    if !text.chars().all(plain) || text.ends_with("\n\n") || !text.ends_with('\n') {
        return json!(text).to_string();
    }
    // The number of spaces is said: the text may begin with some.
    let lines = text.lines().map(|line| format!("\n    {line}"));
    format!("|2{}", lines.collect::<String>())
}
