//! What other programs say about ours: PyTorch about the losses, SAELens about exports, TensorBoard about events, an S3
//! server about requests. They come from the Python environment that tests/reference/venv.sh makes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kernels::cpu::Cpu;
use kernels::{Dictionary, Tensor};
use loader::Dtype;
use serde_json::Value;
use tests::fixture::{Fixture, json, json_lines, plain_rows, text, write_shards};
use tests::gate::Gate;
use tests::golden::Weights;
use tests::s3::{S3, spool};
use tests::{checkpoints, kills, need, root, sae};
use trainer::recipe::{BiasInit, Every, InitSpace, Order, Recipe, Run, Scale};
use trainer::{checkpoint, evaluate};

fn python(program: &Path, arguments: &[String]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().expect("Python runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// The same weights on the same batches lose the same in PyTorch, step by step.
#[test]
fn losses_are_those_of_pytorch() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::new();
    write_shards(&fixture.path("plain"), 64, &plain_rows(50 * 128, 64, 4), Dtype::F32, 3000);
    let mut cases = vec![(fixture.path("plain"), 64, 512, 128, 0.5, 2.0)];
    let minilm = root().join("../shared/data/minilm/train");
    if minilm.exists() {
        cases.push((minilm, 384, 1024, 512, 1.578_103, 5.0));
    } else {
        need::optional("MiniLM activations beside the checkout");
    }
    for (data, width, features, batch, scale, l1) in cases {
        let start = fixture.text("start.safetensors");
        Weights::start(width, features, 0.0).write(Path::new(&start));
        let log = fixture.text("torch.jsonl");
        let arguments = [
            ("--train", text(&data)),
            ("--scale", format!("{scale}")),
            ("--batch", format!("{batch}")),
            ("--steps", "50".into()),
            ("--lr", "3e-4".into()),
            ("--l1", format!("{l1}")),
            ("--init", start.clone()),
            ("--json", log.clone()),
            ("--matmul", "highest".into()),
            ("--threads", "2".into()),
        ];
        let mut call = vec!["tests/reference/recipe.py".to_owned()];
        call.extend(arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        python(&interpreter, &call);

        let mut recipe = fixture.recipe(&format!("run-{width}"));
        recipe.data.train = vec![text(&data)];
        recipe.data.order = Order::Sequential;
        recipe.data.scale = Scale::Fixed(scale);
        recipe.sae.features = features;
        recipe.train.batch = batch;
        recipe.train.tokens = Some(50 * batch as u64);
        recipe.train.lr = 3e-4;
        recipe.train.l1 = l1;
        recipe.train.init_from = Some(start);
        recipe.train.init_space = Some(InitSpace::Normalized);
        recipe.checkpoint.every = Every::Minutes(60.0);
        recipe.log.every = 1;
        sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
        let ours = json_lines(&Path::new(&recipe.run.dir).join("metrics.jsonl"));
        let theirs = json_lines(Path::new(&log));
        assert_eq!((ours.len(), theirs.len()), (50, 51), "a line a step, and the summary of PyTorch");
        for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            for (key, their_key, tolerance) in
                [("loss", "loss", 1e-5), ("mse", "mse", 5e-5), ("l0", "l0", 1e-3), ("gradient_norm", "grad_norm", 1e-4)]
            {
                let (a, b) = (ours[key].as_f64().expect("ours"), theirs[their_key].as_f64().expect("theirs"));
                assert!((a - b).abs() <= tolerance * b.abs(), "D = {width}, step {step}, {key}: ours {a}, PyTorch {b}");
            }
        }
    }
}

/// SAELens loads an export and computes the same activations and reconstructions of raw rows.
#[test]
fn saelens_agrees_with_our_export() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::with_data();
    let raw = plain_rows(400, 32, 6);
    write_shards(&fixture.path("raw"), 32, &raw, Dtype::F32, 1000);
    let mut recipe = fixture.recipe("run");
    recipe.sae.bias_init = BiasInit::Calibrated;
    recipe.sae.bias_init_l0 = 8.0;
    // So short that features count as dead when they were silent in the last batch.
    recipe.train.dead_window = 1;
    recipe.train.l1 = 5.0;
    sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
    let part = "parts/part-00002-of-00003";
    // Of numbers in bf16 SAELens makes sums in bf16.
    for (out, options, checked, tolerance) in [
        ("all", &[][..], "all", "1e-5"),
        ("alive", &["--alive-only"], "alive", "1e-5"),
        ("unit", &["--unit-norm", "--model", "gpt2", "--prepend-bos", "false"], "unit", "1e-5"),
        ("narrow", &["--dtype", "bf16"], "narrow", "0.06"),
        ("parts", &["--max-shard-size", "26000"], part, "1e-5"),
    ] {
        let folder = fixture.text(out);
        sae::run(&[&["export", &recipe.run.dir, "--format", "saelens", "--out", &folder], options].concat()).exits(0);
        let config = json(&fixture.path(checked).join("cfg.json"));
        let features: Option<Vec<usize>> =
            serde_json::from_value(config["metadata"]["features"].clone()).expect("a list");
        assert_eq!(features.is_some(), out == "alive");
        let first = config["metadata"]["first_feature"].as_u64().unwrap_or(0) as usize;
        let count = config["d_sae"].as_u64().expect("a number") as usize;
        let features = features.unwrap_or_else(|| (first..first + count).collect());
        assert!((out == "alive" || checked == part) == (features.len() < 256) && !features.is_empty(), "{features:?}");
        let meant = Meant { features: &features, unit_norm: out == "unit", with_bias: checked != part };
        let ours = fixture.path("ours.safetensors");
        write_ours(&recipe.run.dir, &meant, &raw, &ours);
        let (checked, shard) = (fixture.text(checked), fixture.text("raw/shard-00000.parquet"));
        let mut check = vec!["tests/reference/saelens_check.py", "--export", &checked, "--rows", &shard];
        let written = text(&ours);
        check.extend(["--ours", &written, "--tolerance", tolerance]);
        python(&interpreter, &check.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        if out == "all" {
            // Slightly other numbers are seen.
            let wrong: Vec<f32> = raw.iter().map(|x| x * 1.001).collect();
            write_ours(&recipe.run.dir, &meant, &wrong, &ours);
            let output = Command::new(&interpreter).args(check).current_dir(root()).output().expect("Python runs");
            assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

/// What an export holds of a dictionary.
struct Meant<'a> {
    features: &'a [usize],
    unit_norm: bool,
    with_bias: bool,
}

/// Activations and reconstructions of raw rows from the weights in the checkpoint, in double precision.
fn write_ours(run: &str, meant: &Meant<'_>, raw: &[f32], path: &Path) {
    use safetensors::tensor::{Dtype, TensorView};
    let (store, found) = checkpoint::open(run).expect("a checkpoint");
    let device = Cpu::new(Some(1)).expect("threads");
    let sae = evaluate::load(&device, &store, &found, 1).expect("weights");
    let (width, all) = (found.manifest.width, found.manifest.features);
    let read = |tensor, rows: std::ops::Range<usize>, columns: usize| {
        let mut values = vec![0.0f32; rows.len() * columns];
        sae.read(tensor, rows, &mut values).expect("a processor");
        values.into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let (w_enc, w_dec) = (read(Tensor::EncoderWeight, 0..all, width), read(Tensor::DecoderWeight, 0..all, width));
    let (b_enc, b_dec) = (read(Tensor::EncoderBias, 0..all, 1), read(Tensor::DecoderBias, 0..1, width));
    let scale = f64::from(found.manifest.scale);
    let (mut activations, mut reconstruction) = (Vec::new(), Vec::new());
    for row in raw.chunks_exact(width) {
        let mut out_d = if meant.with_bias { b_dec.clone() } else { vec![0.0; width] };
        for &f in meant.features {
            let of = |w: &[f64]| w[f * width..(f + 1) * width].to_vec();
            let pre: f64 = of(&w_enc).iter().zip(row).map(|(w, x)| w * scale * f64::from(*x)).sum();
            let a = (pre + b_enc[f]).max(0.0);
            let norm = of(&w_dec).iter().map(|w| w * w).sum::<f64>().sqrt() / scale;
            out_d.iter_mut().zip(of(&w_dec)).for_each(|(out, w)| *out += a * w);
            activations.extend(((if meant.unit_norm { a * norm } else { a }) as f32).to_le_bytes());
        }
        reconstruction.extend(out_d.iter().flat_map(|out| ((out / scale) as f32).to_le_bytes()));
    }
    let n = raw.len() / width;
    let view = |columns, bytes| TensorView::new(Dtype::F32, vec![n, columns], bytes).expect("bytes fit the shape");
    let tensors =
        [("activations", view(meant.features.len(), &activations)), ("reconstruction", view(width, &reconstruction))];
    std::fs::write(path, safetensors::serialize(tensors, None).expect("serialised")).expect("written");
}

const SAELENS_START: &str = "
import sys, torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
torch.manual_seed(1)
made, taken_up = sys.argv[1:]
if taken_up == 'make':
    for dtype in ['float32', 'float16']:
        sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=256, dtype=dtype, apply_b_dec_to_input=True))
        with torch.no_grad():
            for tensor in sae.parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.3)
        sae.save_model(made + dtype)
else:
    theirs, ours = (SAE.load_from_disk(folder, dtype='float32') for folder in (made, taken_up))
    x = 3 * torch.randn(500, 32)
    with torch.no_grad():
        for a, b in ((theirs.encode(x), ours.encode(x)), (theirs(x), ours(x))):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max(), (a - b).abs().max()
        assert (theirs.encode(x) > 0).float().mean() > 0.2
";

/// A run that starts from what SAELens has saved and learns nothing means the same, b_dec taken from its input.
#[test]
fn a_run_starts_from_what_saelens_saved() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::with_data();
    let made = fixture.text("saelens-");
    python(&interpreter, &["-c".into(), SAELENS_START.into(), made.clone(), "make".into()]);
    let mut recipe = fixture.recipe("run");
    (recipe.train.lr, recipe.train.tokens) = (1e-30, Some(256));
    for dtype in ["float32", "float16"] {
        let folder = format!("{made}{dtype}");
        assert_eq!(json(&Path::new(&folder).join("cfg.json"))["apply_b_dec_to_input"], true);
        recipe.run.dir = fixture.text(&format!("run-{dtype}"));
        recipe.train.init_from = Some(folder.clone());
        sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
        let out = fixture.text(&format!("exported-{dtype}"));
        sae::run(&["export", &recipe.run.dir, "--out", &out]).exits(0);
        python(&interpreter, &["-c".into(), SAELENS_START.into(), folder, out]);
    }
}

/// Dictionaries with the tensors of dictionary_learning: `make` writes one of its class AutoEncoder, as its trainers do, and its
/// weights as safetensors; `same` compares what two folders, of it or of SAELens, make of the same rows; `hub` loads a folder as SAELens loads from the Hub.
const DICTIONARY_LEARNING: &str = "
import json, pathlib, sys, torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

class Dictionary(torch.nn.Module):
    def __init__(self, width, features, shifted):
        super().__init__()
        self.encoder = torch.nn.Linear(width, features)
        self.decoder = torch.nn.Linear(features, width, bias=not shifted)
        if shifted:
            self.bias = torch.nn.Parameter(torch.zeros(width))
    def encode(self, x):
        return torch.relu(self.encoder(x - self.bias if hasattr(self, 'bias') else x))
    def decode(self, f):
        return self.decoder(f) + (self.bias if hasattr(self, 'bias') else 0)

def load(folder):
    folder = pathlib.Path(folder)
    if (folder / 'cfg.json').exists():
        return SAE.load_from_disk(folder)
    config = json.loads((folder / 'config.json').read_text())['trainer']
    shifted = {'AutoEncoder': True, 'AutoEncoderNew': False}[config['dict_class']]
    dictionary = Dictionary(config['activation_dim'], config['dict_size'], shifted)
    archive = folder / 'ae.pt'
    dictionary.load_state_dict(torch.load(archive) if archive.exists() else load_file(folder / 'ae.safetensors'))
    return dictionary

torch.manual_seed(2)
what, *folders = sys.argv[1:]
if what == 'make':
    made = Dictionary(32, 200, True)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    folder = pathlib.Path(folders[0])
    folder.mkdir()
    torch.save(made.state_dict(), folder / 'ae.pt')
    if len(folders) > 1:
        save_file(made.state_dict(), folders[1])
    config = {'trainer': {'dict_class': 'AutoEncoder', 'activation_dim': 32, 'dict_size': 200}, 'buffer': {}}
    (folder / 'config.json').write_text(json.dumps(config))
elif what == 'hub':
    import sae_lens.loading.pretrained_sae_loaders as loaders
    from huggingface_hub.utils import EntryNotFoundError
    def fetch(repo_id, filename, force_download):
        path = pathlib.Path(folders[0]) / filename
        if not path.exists():
            raise EntryNotFoundError(filename)
        return str(path)
    loaders.hf_hub_download = fetch
    assert SAE.from_pretrained('somebody/hub', folders[1]).cfg.d_sae == int(folders[2])
else:
    one, other = (load(folder) for folder in folders)
    x = 3 * torch.randn(300, 32)
    with torch.no_grad():
        a, b = one.encode(x), other.encode(x)
        for a, b in ((a, b), (one.decode(a), other.decode(b))):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max(), (a - b).abs().max()
        assert (one.encode(x) > 0).float().mean() > 0.01
";

/// dictionary_learning and SAELens make the same of our exports to both; what dictionary_learning has written becomes a SAELens folder, a
/// run's start and the dictionary of an evaluation that mean the same; and SAELens finds an export in a folder as the Hub has them.
#[test]
fn dictionaries_go_to_and_fro() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::with_data();
    let call = |words: &[&str]| {
        let words = ["-c", DICTIONARY_LEARNING].iter().chain(words).map(|&word| word.to_owned());
        python(&interpreter, &words.collect::<Vec<_>>());
    };
    let mut recipe = fixture.recipe("run");
    (recipe.sae.bias_init, recipe.sae.bias_init_l0) = (BiasInit::Calibrated, 8.0);
    (recipe.train.dead_window, recipe.train.l1) = (1, 5.0);
    sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
    let hooks = fixture.text("hub/blocks.3.hook_resid_post");
    let ours = fixture.text("ours");
    for (out, format) in [(&hooks, "saelens"), (&ours, "dictionary-learning")] {
        sae::run(&["export", &recipe.run.dir, "--alive-only", "--format", format, "--out", out]).exits(0);
    }
    call(&["same", &hooks, &ours]);
    let map = fixture.path("ours/features.safetensors");
    assert_eq!(
        std::fs::read(map).expect("a map"),
        std::fs::read(Path::new(&hooks).join("features.safetensors")).expect("a map")
    );
    let features = fixture.json("ours/config.json")["trainer"]["dict_size"].to_string();
    call(&["hub", &fixture.text("hub"), "blocks.3.hook_resid_post", &features]);

    let theirs = fixture.text("theirs");
    let bare = fixture.text("bare.safetensors");
    call(&["make", &theirs, &bare]);
    let turned = fixture.text("turned");
    sae::run(&["export", &theirs, "--format", "saelens", "--out", &turned]).exits(0);
    call(&["same", &theirs, &turned]);
    let again = fixture.text("again");
    sae::run(&["export", &turned, "--format", "dictionary-learning", "--out", &again]).exits(0);
    call(&["same", &theirs, &again]);
    sae::run(&["export", &turned, "--alive-only", "--out", &fixture.text("none")])
        .exits(64)
        .says(&["--alive-only needs a run"]);
    let eval = |of: &str| {
        let report = sae::run(&["eval", of, "--data", &fixture.text("eval"), "--json"]).exits(0).json();
        ["explained_variance", "l0"].map(|key| report[key].as_f64().expect("a number"))
    };
    let measured = eval(&theirs);
    (recipe.sae.features, recipe.sae.bias_init) = (200, BiasInit::Zero);
    (recipe.train.lr, recipe.train.tokens) = (1e-30, Some(256));
    recipe.train.init_from = Some(theirs);
    recipe.run.dir = fixture.text("from-theirs");
    sae::run(&["train", &fixture.save("from", &recipe)]).exits(0);
    for other in [eval(&turned), eval(&recipe.run.dir)] {
        for (a, b) in measured.iter().zip(other) {
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{measured:?} and {other:?}");
        }
    }

    // The archive by itself, and its tensors as safetensors, which come first where both are there.
    let start = |from: String, raw: bool, run: &str| {
        let mut recipe = recipe.clone();
        (recipe.run.dir, recipe.train.init_from) = (fixture.text(run), Some(from));
        recipe.train.init_space = raw.then_some(InitSpace::Raw);
        sae::run(&["train", &fixture.save(run, &recipe)]).exits(0);
        eval(&recipe.run.dir)
    };
    let whole = start(fixture.text("theirs"), false, "whole");
    assert_eq!(start(fixture.text("theirs/ae.pt"), true, "archive"), whole);
    std::fs::rename(&bare, fixture.path("theirs/ae.safetensors")).expect("renamed");
    std::fs::write(fixture.path("theirs/ae.pt"), "damaged").expect("written");
    assert_eq!(start(fixture.text("theirs"), false, "tensors"), whole);

    // Damaged, absent, and of another class.
    let refused = |parts: &[&str]| {
        let out = fixture.text("none");
        sae::run(&["export", &fixture.text("theirs"), "--out", &out]).exits(64).says(parts);
    };
    std::fs::remove_file(fixture.path("theirs/ae.safetensors")).expect("removed");
    refused(&["ae.pt", "is no zip archive of PyTorch's"]);
    std::fs::remove_file(fixture.path("theirs/ae.pt")).expect("removed");
    refused(&["neither ae.safetensors nor ae.pt"]);
    std::fs::write(fixture.path("theirs/config.json"), r#"{"trainer": {"dict_class": "GatedAutoEncoder"}}"#)
        .expect("written");
    refused(&["GatedAutoEncoder", "AutoEncoderNew"]);
}

/// What TensorBoard has of a folder of runs: the curves and histograms of `run`, and what its tab HParams shows of all.
const READ_EVENTS: &str = "
import json, sys
from google.protobuf import json_format
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

runs, run = sys.argv[1:]
events = EventAccumulator(run, size_guidance={'scalars': 0, 'histograms': 0})
events.Reload()
tags = events.Tags()

multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(runs)
multiplexer.Reload()
provider = data_provider.MultiplexerDataProvider(multiplexer, runs)
hparams = backend_context.Context(base_plugin.TBContext(multiplexer=multiplexer, data_provider=provider))
statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS]
request = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=statuses, include_metrics=True)
groups = list_session_groups.Handler(RequestContext(), hparams, 'experiment', request).run()
print(json.dumps({
    'scalars': {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags['scalars']},
    'histograms': {tag: [[e.step, e.histogram_value.num] for e in events.Histograms(tag)] for tag in tags['histograms']},
    'hparams': {group.name: json_format.MessageToDict(group) for group in groups.session_groups},
}))
";

/// TensorBoard finds the numbers of metrics.jsonl in the event files under their names, each step once, also when the run was killed
/// behind a checkpoint and went on; and its tab HParams has both runs of a folder with their recipes.
#[test]
fn tensorboard_reads_our_events() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::with_data();
    let runs = fixture.path("runs");
    let recipe = |name: &str, lr: f64| {
        let mut recipe = fixture.recipe(name);
        recipe.run.dir = text(&runs.join(name));
        recipe.data.eval = vec![fixture.text("eval")];
        (recipe.eval.every, recipe.checkpoint.every, recipe.checkpoint.keep) = (20, Every::Steps(15), 100);
        recipe.train.lr = lr;
        fixture.save(name, &recipe)
    };
    sae::run(&["train", &recipe("whole", 1e-3)]).exits(0);
    // The end of a run, its summary included, is made again from a checkpoint in its middle; then its end alone.
    let path = recipe("killed", 2e-3);
    sae::run(&["train", &path]).exits(0);
    let run = runs.join("killed");
    for folder in checkpoints::committed(&run) {
        if !text(&folder).contains("step-0000000030") {
            std::fs::remove_dir_all(folder).expect("removed");
        }
    }
    sae::run(&["train", &path, "--resume"]).exits(0);
    sae::run(&["train", &path, "--resume"]).exits(0);

    let said = python(&interpreter, &["-c".into(), READ_EVENTS.into(), text(&runs), text(&run)]);
    let events: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    let scalars: BTreeMap<String, Vec<(u64, f64)>> =
        serde_json::from_value(events["scalars"].clone()).expect("scalars");
    let lines = json_lines(&run.join("metrics.jsonl"));
    let curve = |kind: &str, key: &str| -> Vec<(u64, f64)> {
        let point = |line: &Value| {
            (line["step"].as_u64().expect("a step"), f64::from(line[key].as_f64().expect("a value") as f32))
        };
        lines.iter().filter(|line| line["kind"] == kind).map(point).collect()
    };
    assert_eq!(curve("eval", "loss").iter().map(|(step, _)| *step).collect::<Vec<_>>(), [19, 39, 59, 60]);
    for key in ["loss", "mse", "l1_norm", "l0", "explained_variance", "lambda", "lr", "tokens_per_s", "wall_s", "flops"]
    {
        for kind in ["train", "eval"] {
            assert_eq!(scalars.get(&format!("{kind}/{key}")), Some(&curve(kind, key)), "{kind}/{key}");
        }
    }
    for key in ["dead_fraction", "gradient_norm", "stall_share"] {
        assert_eq!(scalars.get(&format!("train/{key}")), Some(&curve("train", key)), "{key}");
    }
    let others = scalars.keys().filter(|tag| !tag.starts_with("train/") && !tag.starts_with("eval/"));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new());
    let summary = json(&run.join("summary.json"));
    let fired = 256.0 - summary["density"]["silent"].as_u64().expect("a count") as f64;
    let histogram = events["histograms"]["eval/log10_density"].as_array().expect("a histogram");
    assert_eq!(histogram.iter().map(|entry| entry[0].as_u64()).collect::<Vec<_>>(), [19, 39, 59, 60].map(Some));
    assert_eq!(histogram.last().map(|entry| entry[1].as_f64()), Some(Some(fired)));

    for (name, lr) in [("whole", 1e-3), ("killed", 2e-3)] {
        let group = &events["hparams"][name];
        let hparams = &group["hparams"];
        assert_eq!((hparams["train.lr"].as_f64(), hparams["width"].as_f64()), (Some(lr), Some(32.0)), "{group}");
        assert_eq!(hparams["data.train"], fixture.text("train"), "{group}");
        assert_eq!(group["sessions"][0]["status"], "STATUS_SUCCESS", "{group}");
        let metrics = group["metricValues"].as_array().expect("metrics");
        let loss = metrics.iter().find(|metric| metric["name"]["tag"] == "eval/loss").expect("a loss");
        let summary = json(&runs.join(name).join("summary.json"));
        assert_eq!(loss["value"].as_f64().map(|loss| loss as f32), summary["loss"].as_f64().map(|loss| loss as f32));
    }
}

/// Everything in object storage: shards, run, checkpoints, export; interrupted and resumed, to the bits of a local run. No
/// secret shows at the finest level of logging.
#[test]
fn a_run_in_object_storage_is_the_same_run() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let fixture = Fixture::new();
    let spool = fixture.path("tmp");
    std::fs::create_dir(&spool).expect("a folder is made");
    let mut environment = s3.environment();
    environment.push(("TMPDIR".into(), text(&spool)));
    let pairs: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let on_s3 = |arguments: &[&str]| sae::run_with(arguments, &pairs);

    let shape = ["--features", "128", "--width", "32", "--rows", "15401", "--shards", "3", "--active", "4"];
    on_s3(&[&["synth", "--out", "s3://bucket/train"][..], &shape].concat()).exits(0);
    sae::run(&[&["synth", "--out", &fixture.text("train")][..], &shape].concat()).exits(0);
    let report = on_s3(&["inspect", "s3://bucket/train", "--json"]).exits(0).json();
    assert_eq!((report["rows"].as_u64(), &report["manifest"]), (Some(15_401), &"verified".into()));

    let mut local = fixture.recipe("local");
    local.log.every = 1;
    local.checkpoint.every = Every::Steps(20);
    sae::run(&["train", &fixture.save("local", &local)]).exits(0);
    let mut remote = Recipe { run: Run { dir: "s3://bucket/run".into() }, ..local.clone() };
    remote.data.train = vec!["s3://bucket/train".into()];
    let path = fixture.save("remote", &remote);
    stop_after_lines(&path, &spool, 25, &pairs);
    on_s3(&["train", &path]).exits(64).says(&["already holds a run"]);
    on_s3(&["train", &path, "--resume"]).exits(0);

    let summary: Value = serde_json::from_slice(&s3.get("run/summary.json")).expect("a summary");
    let folder = format!("run/{}", summary["checkpoint"].as_str().expect("a checkpoint"));
    let manifest: Value = serde_json::from_slice(&s3.get(&format!("{folder}/manifest.json"))).expect("a manifest");
    let same = checkpoints::last(&fixture.path("local"));
    let files = manifest["files"].as_array().expect("files");
    assert_eq!(files.len(), same.len());
    for (name, bytes) in &same {
        assert!(s3.get(&format!("{folder}/{name}")) == *bytes, "{name} differs from the local run's");
    }
    let lines = String::from_utf8(s3.get("run/metrics.jsonl")).expect("text");
    assert_eq!(lines.lines().count(), kills::metrics(&fixture.path("local")).len());

    let traced: Vec<(&str, &str)> = pairs.iter().copied().chain([("RUST_LOG", "trace")]).collect();
    let evaluated =
        sae::run_with(&["eval", "s3://bucket/run", "--data", "s3://bucket/train", "--json"], &traced).exits(0);
    let here = sae::run(&["eval", &local.run.dir, "--data", &fixture.text("train"), "--json"]).exits(0);
    assert_eq!(evaluated.json()["loss"], here.json()["loss"]);
    assert!(evaluated.stderr.contains("TRACE"), "tracing was on: {}", evaluated.stderr);
    assert!(!evaluated.stderr.contains("c4n4ry"), "a secret shows");
    on_s3(&["export", "s3://bucket/run", "--format", "saelens", "--out", "s3://bucket/exported"]).exits(0);
    assert!(s3.get("exported/sae_weights.safetensors").len() > 4 * 2 * 32 * 256);
    on_s3(&["export", "s3://bucket/run", "--max-shard-size", "20000", "--out", "s3://bucket/parts"]).exits(0);
    let still = ["--set", "train.lr=1e-30", "--set", "train.tokens=256"];
    let losses = ["run", "exported", "parts"].map(|from| {
        let sets = [format!("train.init_from=s3://bucket/{from}"), format!("run.dir=s3://bucket/from-{from}")];
        let sets = sets.each_ref().map(|set| ["--set", set]).concat();
        on_s3(&[&["train", &path], &still[..], &sets].concat()).exits(0);
        let run = format!("s3://bucket/from-{from}");
        let report = on_s3(&["eval", &run, "--data", "s3://bucket/train", "--json"]).exits(0).json();
        report["loss"].as_f64().expect("a loss")
    });
    let evaluated = here.json()["loss"].as_f64().expect("a loss");
    assert!(losses.iter().all(|loss| (loss - evaluated).abs() < 1e-5 * evaluated), "{losses:?}, {evaluated}");

    let missing = |data: &str| {
        on_s3(&["train", &path, "--set", &format!("data.train={data}"), "--set", "run.dir=s3://bucket/none"])
    };
    missing("s3://no-such-bucket/acts").exits(64).says(&["bucket does not exist"]);
    missing("s3://bucket/nothing-here").exits(65).says(&["s3://bucket/nothing-here"]);
}

/// Starts a run and stops it when the metrics of the only run spooled below `temporary` have so many lines.
fn stop_after_lines(recipe: &str, temporary: &Path, lines: usize, environment: &[(&str, &str)]) {
    let mut command = sae::sae(&["train", recipe]);
    command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("sae starts");
    let text = || std::fs::read_to_string(spool(temporary)?.join("metrics.jsonl")).ok();
    let written = || text().unwrap_or_default().lines().count();
    while written() < lines && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    sae::signal(&child, "TERM");
    assert_eq!(child.wait().expect("a child can be waited for").code(), Some(75));
}

/// A store that does not answer holds up neither the steps nor, when it does at last, the checkpoint; the next checkpoint waits. What
/// comes out is what comes out of a run that never waited.
#[test]
fn training_goes_on_while_a_checkpoint_is_stored() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let gate = Gate::start(s3.address(), "weights-");
    let fixture = Fixture::with_data();
    let temporary = fixture.path("tmp");
    std::fs::create_dir(&temporary).expect("a folder is made");
    let mut recipe = fixture.recipe("here");
    (recipe.log.every, recipe.checkpoint.every) = (1, Every::Steps(6));
    sae::run(&["train", &fixture.save("here", &recipe)]).exits(0);

    recipe.run.dir = "s3://bucket/run".into();
    let path = fixture.save("there", &recipe);
    let mut command = sae::sae(&["train", &path]);
    command.envs(s3.environment_by(&gate.address)).env("TMPDIR", &temporary);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
    let metrics = || std::fs::read_to_string(spool(&temporary)?.join("metrics.jsonl")).ok();
    let steps = || metrics().unwrap_or_default().lines().count();
    let waiting = Instant::now();
    while steps() < 12 {
        assert!(child.try_wait().expect("a child has a state").is_none(), "it goes on");
        assert!(waiting.elapsed() < Duration::from_secs(60), "{} steps, of which 6 are before the checkpoint", steps());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The one of step 12 comes after the one of step 6.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(steps(), 12);
    let manifest = "run/checkpoints/step-0000000006/attempt-0001/manifest.json";
    assert!(s3.find(manifest).is_none(), "nothing is committed that is not stored");
    gate.open();
    assert!(child.wait().expect("a child can be waited for").success());
    let summary: Value = serde_json::from_slice(&s3.get("run/summary.json")).expect("a summary");
    let folder = format!("run/{}", summary["checkpoint"].as_str().expect("a checkpoint"));
    for (name, bytes) in checkpoints::last(&fixture.path("here")) {
        assert!(s3.get(&format!("{folder}/{name}")) == bytes, "{name} differs");
    }
}
