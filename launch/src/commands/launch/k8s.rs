//! `sae launch k8s`.

use loader::Store;
use serde_json::{Map, Value, json};

use crate::args::{K8s, Log, Toleration, handed_on};
use crate::device::DeviceChoice;
use crate::failure::Failure;
use crate::sweep::named::is_folder;
use crate::sweep::spec::Spec;
use crate::template::fill;
use crate::{job, recipes, table};

/// Size of /dev/shm where a pod has several GPUs.
const SHM: &str = "8Gi";

/// Prints the manifest. The recipe, or the sweep, travels in it, so that an image serves all runs.
pub fn run(args: &K8s, log: Log) -> Result<(), Failure> {
    if args.run.device != DeviceChoice::Auto {
        return Err(Failure::arguments(
            "pods compute on GPUs with --gpus-per-pod, else on processors: leave --device out",
        ));
    }
    let ranks_per_pod = args.gpus_per_pod.or(args.ranks_per_pod).unwrap_or(1);
    let (template, file, command, save_s) = match args.sweep {
        true => {
            if is_folder(&args.run.recipe) {
                return Err(Failure::arguments(format!(
                    "{} is the folder of a sweep, and a manifest carries a file: name the sweep's own",
                    args.run.recipe
                )));
            }
            let spec = Spec::read(&args.run.recipe, None, &args.run.set)?;
            let more = "--gpus-per-pod or --ranks-per-pod";
            job::check_mesh_of_slots(args.taking, ranks_per_pod as usize, more)?;
            warn_of_folder("the sweep's dir", &spec.dir)?;
            let save_s = job::save_time_of_sweep(args.save, &spec.configurations, ranks_per_pod)?;
            let command = worker(args, log, &spec.dir, ranks_per_pod);
            (include_str!("../../../templates/sweep.yaml"), spec.to_toml(), command, save_s)
        }
        false => {
            let recipe = recipes::read(&args.run.recipe, &args.run.set)?;
            job::mesh_of(args.run.mesh, args.pods as usize * ranks_per_pod as usize, &recipe)?;
            warn_of_folder("run.dir", &recipe.run.dir)?;
            let (save_s, command) = (job::save_time(args.save, &recipe)?, command(args, log, ranks_per_pod));
            (include_str!("../../../templates/jobset.yaml"), recipe.to_toml(), command, save_s)
        }
    };
    let secrets: Vec<Value> = args.secret.iter().map(|name| json!({ "secretRef": { "name": name } })).collect();
    // A Job's pods stand less deep in its manifest than a JobSet's.
    let depth = if args.sweep { 6 } else { 14 };
    let (mounts, volumes) = volumes(args, depth);
    // JSON is YAML, and quotes whatever is in a value.
    let manifest = fill(
        template,
        &[
            ("metadata", metadata(args).to_string()),
            ("file", block(&file)),
            ("pods", args.pods.to_string()),
            ("restarts", args.restarts.to_string()),
            ("save_s", save_s.to_string()),
            ("nodes", nodes(args, depth)),
            ("image", json!(args.image).to_string()),
            ("command", json!(command).to_string()),
            ("secrets", json!(secrets).to_string()),
            ("resources", resources(args).to_string()),
            ("mounts", mounts),
            ("volumes", volumes),
        ],
    );
    table::say(manifest.trim_end());
    Ok(())
}

fn warn_of_folder(name: &str, dir: &str) -> Result<(), Failure> {
    if Store::open(dir)?.local_path().is_some() {
        tracing::warn!("{name} = \"{dir}\" is a folder: unless a volume is mounted there, it ends with the pod");
    }
    Ok(())
}

/// What a pod of a sweep runs.
fn worker(args: &K8s, log: Log, dir: &str, slots: u32) -> Vec<String> {
    let device = if args.gpus_per_pod.is_some() { "cuda" } else { "cpu" };
    let (slots, workers) = (slots.to_string(), args.pods.to_string());
    let words =
        ["/etc/sae/sweep.toml", "--dir", dir, "--worker", "--workers", &workers, "--slots", &slots, "--device", device];
    let launch = ["sae", "sweep"].map(str::to_owned).into_iter().chain(handed_on(log));
    launch.chain(words.map(str::to_owned)).chain(args.taking.words()).collect()
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
fn nodes(args: &K8s, depth: usize) -> String {
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
    fields.iter().map(|field| format!("\n{:depth$}{field}", "")).collect()
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

/// Where volumes are mounted, and what they are: the recipe, and shared memory. The fields of a pod stand at a `depth` of so many spaces.
fn volumes(args: &K8s, depth: usize) -> (String, String) {
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
    (lines(&mounts, depth + 6), lines(&volumes, depth + 2))
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
