//! The scripts for a machine with a GPU, benchmarks/run.sh and benchmarks/run-more.sh: on the emulator to their end, and with
//! programs in the place of ours that hang, crash and print without end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tests::emulator::{Emulator, Variant};
use tests::{need, processes, root, sae};

/// Seconds that a call may take with all its parts, and bytes of its archive.
const MOST_SECONDS: u64 = 530;
const MOST_BYTES: u64 = 16 << 20;

/// A script and its archive, which is a folder of that name.
const CALLS: [(&str, &str); 2] = [("run.sh", "gpu"), ("run-more.sh", "gpu-more")];

/// The files of a script's archive, by name: parts are found without their number.
struct Archive(BTreeMap<String, String>);

impl Archive {
    fn open(out: &Path, call: &str) -> Archive {
        let packed = out.join(format!("{call}.tar.gz"));
        let bytes = fs::metadata(&packed).expect("an archive").len();
        assert!(bytes < MOST_BYTES, "{call}: {bytes} bytes");
        let unpacked = tempfile::tempdir().expect("a folder");
        let status = Command::new("tar").arg("-xzf").arg(&packed).arg("-C").arg(unpacked.path()).status();
        assert!(status.expect("tar runs").success(), "{call}: a whole archive");
        let files = fs::read_dir(unpacked.path().join(call)).expect("a folder named after the call").flatten();
        let read = |path: PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let name = name.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('-').to_owned();
            (name, String::from_utf8_lossy(&fs::read(&path).expect("a file")).into_owned())
        };
        Archive(files.map(|file| read(file.path())).collect())
    }

    #[track_caller]
    fn text(&self, file: &str) -> &str {
        self.0.get(file).unwrap_or_else(|| panic!("no {file} among {:?}", self.0.keys()))
    }

    /// Objects of a file with one a line.
    #[track_caller]
    fn lines(&self, file: &str) -> Vec<Value> {
        self.text(file).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// What became of each part, in order.
    fn results(&self) -> Vec<(String, String)> {
        let result = |line: &str| {
            let (head, rest) = line.split_once(" at most ").expect("a limit");
            let name = head.split_whitespace().next().expect("a name");
            (name.to_owned(), rest.split_once(" s ").expect("seconds").1.trim().to_owned())
        };
        self.text("summary.txt").lines().map(result).collect()
    }

    #[track_caller]
    fn result(&self, part: &str) -> String {
        let results = self.results();
        let found = results.iter().find(|(name, _)| name == part);
        found.unwrap_or_else(|| panic!("no {part} among {results:?}")).1.clone()
    }
}

/// Parts of a script with their seconds, from its line `begin`.
fn limits(script: &str) -> Vec<(String, u64)> {
    let text = fs::read_to_string(root().join("benchmarks").join(script)).expect("a script");
    let begin = text.split("\nbegin ").nth(1).expect("a line that begins").replace("\\\n", " ");
    let line = begin.lines().next().expect("a line");
    let words: Vec<&str> = line.split_whitespace().collect();
    let first = words.iter().position(|word| word.starts_with("gpu")).expect("the archive's name") + 1;
    let pair = |pair: &[&str]| (pair[0].to_owned(), pair[1].parse().expect("seconds"));
    words[first..].chunks(2).map(pair).collect()
}

#[test]
fn the_limits_of_all_parts_fit_into_one_call() {
    for (script, _) in CALLS {
        let limits = limits(script);
        let all: u64 = limits.iter().map(|(_, seconds)| seconds).sum();
        assert!(limits.len() > 5 && all <= MOST_SECONDS, "{script}: {all} s");
    }
}

/// A folder as bundle.sh makes it, of binaries without kernels in the profile of the tests.
fn bundle() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    // This process runs from TARGET/PROFILE/deps/NAME.
    let own = std::env::current_exe().expect("a process knows its file");
    let target = own.ancestors().nth(3).expect("target");
    let mut bundle = Command::new(root().join("benchmarks/bundle.sh"));
    bundle.arg(folder.path()).envs([("SAE_PROFILE", "dev"), ("CARGO", env!("CARGO"))]).env("CARGO_TARGET_DIR", target);
    let output = bundle.output().expect("bash runs");
    assert!(output.status.success(), "bundle.sh: {}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// cuBLAS, as far as the benchmarks use it: it refuses what is not asked as they should.
const CUBLAS: &str = r#"
#include <stddef.h>
#include <string.h>
int cublasCreate_v2(void** handle) { return *handle = "handle", 0; }
int cublasDestroy_v2(void* handle) { return strcmp(handle, "handle"); }
int cublasSetStream_v2(void* handle, void* stream) { return !stream; }
int cublasGemmEx(void* handle, int of_a, int of_b, int m, int n, int k, const float* alpha, const char* a, int a_type, int lda,
                 const char* b, int b_type, int ldb, const float* beta, char* c, int c_type, int ldc, int compute, int algorithm) {
    const size_t bytes = a_type == 14 ? 2 : 4;
    if (of_a != 1 || of_b != 0 || *alpha != 1 || *beta != 0 || compute != 68 || algorithm != -1) return 7;
    if (a_type != b_type || a_type != c_type || (a_type != 14 && a_type != 0)) return 15;
    if (m != 136 || n != 64 || k != 72 || lda != 72 || ldb != 72 || ldc != m) return 8;
    // Both ends of all three.
    char sum = a[0] + a[((size_t)m * lda - 1) * bytes] + b[0] + b[((size_t)n * ldb - 1) * bytes];
    return c[0] = c[((size_t)m * n - 1) * bytes] = sum, 0;
}
"#;

fn cublas(folder: &Path) {
    let source = folder.join("cublas.c");
    fs::write(&source, CUBLAS).expect("written");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join("libcublas.so.13")).arg(&source);
    assert!(cc.status().expect("cc runs").success(), "the stand-in compiles");
}

/// Runs both scripts, toy shapes and ten times the time, on the emulator.
#[test]
fn both_calls_reach_their_end_on_the_emulator() {
    let Some(emulator) = Emulator::build(Variant::Plain) else { return };
    let (bundle, out) = (bundle(), tempfile::tempdir().expect("a folder"));
    cublas(out.path());
    let python = need::python();
    let has_torch = python.is_some();
    for (script, call) in CALLS {
        let mut run = Command::new(bundle.path().join(script));
        run.arg(out.path()).envs(emulator.environment(0)).env("SAE_CUBLAS", out.path());
        run.envs([("EMULATOR_CAPABILITY", "90"), ("SAE_SMALL", "1"), ("SAE_SECONDS", "5300")]);
        run.env("SAE_PYTHON", python.as_deref().unwrap_or(Path::new("no python")));
        let output = run.output().expect("bash runs");
        let archive = Archive::open(out.path(), call);
        let said = format!("{}\n{}", archive.text("summary.txt"), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{script}: {said}");
        let expected: Vec<String> = limits(script).into_iter().map(|(name, _)| name).collect();
        let results = archive.results();
        let parts: Vec<&str> = results.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(parts[1..parts.len() - 1], expected, "{said}");
        for (part, result) in &results[1..] {
            let may_be_left_out = match part.as_str() {
                "ncu" | "memcheck" | "racecheck" | "synccheck" => true,
                "gemm" | "torch" => !has_torch,
                _ => false,
            };
            assert!(result == "ok" || (may_be_left_out && result.starts_with("left out")), "{part}: {result}\n{said}");
        }
        match call {
            "gpu" => holds_a_first_call(&archive, has_torch),
            _ => holds_a_second_call(&archive),
        }
    }
}

fn holds_a_first_call(archive: &Archive, has_torch: bool) {
    for weights in ["mixed/f32", "f32/f32", "mixed/bf16", "mixed/int8", "bf16-sr/f32", "bf16-sr/bf16", "bf16-sr/int8"] {
        assert!(archive.text("machine.txt").contains(&format!("\n{weights}: ok")), "{}", archive.text("machine.txt"));
    }
    for part in ["cases.txt", "equal-steps.txt", "golden.txt"] {
        assert!(archive.text(part).contains("test result: ok. 1 passed"), "{part}");
    }
    let lines = archive.lines("kernels.jsonl");
    let of = |what: &str| lines.iter().filter(|line| line["what"] == what).collect::<Vec<_>>();
    let shares: f64 =
        of("kernel").iter().chain(&of("between kernels")).filter_map(|line| line["share_of_step"].as_f64()).sum();
    let steps = of("step").len() as f64;
    assert!(steps >= 2.0 && (shares - steps).abs() < 0.02 * steps, "{shares} of {steps} steps");
    let kernels: Vec<&str> = of("kernel").iter().filter_map(|line| line["kernel"].as_str()).collect();
    for kernel in
        ["normalize_bf16", "encode_bf16", "decode_bf16", "fill_runs", "backward_bf16", "count_features", "adam_mixed"]
    {
        assert!(kernels.contains(&kernel), "{kernel} among {kernels:?}");
    }
    let encode = lines.iter().find(|line| line["what"] == "operation in a step" && line["operation"] == "encode");
    let encode = encode.expect("a line for encode");
    assert!(encode["tflops"].as_f64() > Some(0.0) && encode["share_of_ceiling"].as_f64() > Some(0.0), "{encode}");
    let ceiling = of("ceiling")[0];
    assert!(
        ceiling["copy_gbs"].as_f64() > Some(0.0) && ceiling["gemm_by"].as_str().is_some_and(|by| by.contains("cuBLAS"))
    );
    assert!(archive.lines("crossing.jsonl").iter().any(|line| line["what"] == "density"));
    if has_torch {
        assert!(archive.lines("gemm.jsonl").iter().any(|line| line["dtype"] == "bf16" && line["tflops"].is_f64()));
        let torch = archive.lines("torch.jsonl");
        assert!(
            torch.iter().any(|line| line["what"] == "ratio" && line["times_torch"].as_f64() > Some(0.0)),
            "{torch:?}"
        );
    }
}

fn holds_a_second_call(archive: &Archive) {
    let boundaries = archive.text("boundaries.txt");
    assert!(boundaries.contains("\ncase a sum of exactly 0 is silent Mixed(F32) ok\n"), "{boundaries}");
    for (file, precision, moments) in [
        ("f32.jsonl", "f32", "f32"),
        ("mixed-bf16.jsonl", "mixed", "bf16"),
        ("mixed-int8.jsonl", "mixed", "int8"),
        ("bf16-sr.jsonl", "bf16-sr", "f32"),
        ("bf16-sr-bf16.jsonl", "bf16-sr", "bf16"),
        ("bf16-sr-int8.jsonl", "bf16-sr", "int8"),
    ] {
        let steps = archive.lines(file).into_iter().filter(|line| line["what"] == "step").collect::<Vec<_>>();
        let own = |line: &Value| line["precision"] == precision && line["moments"] == moments;
        assert!(!steps.is_empty() && steps.iter().all(own), "{file}: {steps:?}");
    }
    let batches: Vec<u64> = archive.lines("batches.jsonl").iter().filter_map(|line| line["batch"].as_u64()).collect();
    assert!(batches.contains(&64) && batches.contains(&40), "{batches:?}");
    assert!(archive.text("train.txt").contains("the same bits"));
}

/// A folder as bundle.sh makes it, with shell scripts as programs; `sae` and `step` say that they were there.
struct Standins(TempDir);

impl Standins {
    fn new(cuda_tests: &str, step: &str) -> Standins {
        let folder = tempfile::tempdir().expect("a folder");
        for file in ["parts.sh", "run.sh", "run-more.sh", "gemm.py", "dense_torch.py"] {
            fs::copy(root().join("benchmarks").join(file), folder.path().join(file)).expect("copied");
        }
        let standins = Standins(folder);
        standins.program("sae", "echo \"sae $*\"");
        standins.program("step", step);
        let list = "[ \"$1\" = --list ] && { echo \"$2: test\"; exit; }";
        standins.program("cuda_tests", &format!("{list}\n{cuda_tests}"));
        standins
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{body}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(self.0.path().join(script));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.0.path().display())).arg(self.0.path().join("out"));
        command.env("SAE_PYTHON", "no python").stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str) -> Output {
        self.command(script).output().expect("bash runs")
    }

    fn archive(&self, call: &str) -> Archive {
        Archive::open(&self.0.path().join("out"), call)
    }
}

/// The first part hangs and does not hear TERM, others crash, fail, print 40 MiB, leave large files or are not there.
#[test]
fn what_happens_to_a_part_happens_to_no_other() {
    let standins = Standins::new(
        "case \"$1\" in\n*cases*) echo case one; kill -SEGV $$ ;;\n*equal_steps*) head -c 40M /dev/urandom; echo the end ;;\n*) echo golden ;;\nesac",
        "case \"$*\" in\ntiny*) echo begun; trap '' TERM; while :; do sleep 1; done ;;\n*'b a'*) echo kernels; exit 9 ;;\n*) echo \"step $*\" ;;\nesac",
    );
    standins.program(
        "ncu",
        "[ \"$1\" = --import ] || head -c 30M /dev/urandom >\"$results/ncu-basic.ncu-rep\"; echo profiled",
    );
    let output = standins.run("run.sh");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let archive = standins.archive("gpu");
    for (part, result, text) in [
        ("machine", "FAILED: cut off", "begun"),
        ("gemm", "left out: no no python here", "no python"),
        ("cases", "FAILED: exit code 139", "case one"),
        ("equal-steps", "ok", "the end"),
        ("kernels", "FAILED: exit code 9", "kernels"),
        ("ncu", "ok", "profiled"),
        ("crossing", "ok", "step crossing"),
        ("golden", "ok", "golden"),
        ("torch", "left out: no no python here", "no python"),
        ("all", "FAILED", ""),
    ] {
        assert_eq!(archive.result(part), result, "{part}\n{}", archive.text("summary.txt"));
        assert!(part == "all" || archive.text(&format!("{part}.txt")).contains(text), "{part}");
    }
    assert!(archive.text("equal-steps.txt").contains("bytes are left out here"));
    assert!(archive.0.contains_key("ncu-basic.ncu-rep.left-out.txt"));
}

/// The tools of compute-sanitizer are given the tests, and what they find fails their part.
#[test]
fn sanitizers_are_used_where_they_are() {
    let standins = Standins::new("echo \"cases: $SAE_TEST_EMULATED\"", "echo \"step $*\"");
    standins.program(
        "compute-sanitizer",
        "echo \"$1 $2 $3 $4\"\nwhile [ \"$1\" != --error-exitcode ]; do shift; done\nshift 2\n\"$@\"",
    );
    let output = standins.run("run-more.sh");
    // Nothing trains here.
    assert_eq!(output.status.code(), Some(1));
    let archive = standins.archive("gpu-more");
    for tool in ["memcheck", "racecheck", "synccheck"] {
        assert_eq!(archive.result(tool), "ok");
        let text = archive.text(&format!("{tool}.txt"));
        assert!(
            text.contains(&format!("--tool {tool} --target-processes all\n")) && text.contains("cases: few"),
            "{text}"
        );
    }
    assert_eq!(archive.result("train"), "FAILED: exit code 1");
}

/// TERM in the middle of a part: the archive has what was printed until then, and nothing goes on.
#[test]
fn a_call_that_is_ended_leaves_what_it_has() {
    let hangs = "trap '' TERM; echo case one; echo $$ >\"$here/begun\"; while :; do sleep 1; done";
    let standins = Standins::new(hangs, "echo \"step $*\"");
    // Long enough that the part's own limit ends nothing.
    let mut call = standins.command("run.sh");
    let mut call = call.env("SAE_SECONDS", "53000").stdout(Stdio::null()).spawn().expect("bash runs");
    let begun = standins.0.path().join("begun");
    let pid = loop {
        let pid = fs::read_to_string(&begun).ok().and_then(|text| text.trim().parse::<u32>().ok());
        if let Some(pid) = pid {
            break pid;
        }
        assert!(call.try_wait().expect("a child").is_none(), "it ends before its third part");
        std::thread::sleep(Duration::from_millis(20));
    };
    sae::signal(&call, "TERM");
    assert_eq!(call.wait().expect("a child").code(), Some(143));
    let archive = standins.archive("gpu");
    assert_eq!(
        (archive.result("machine"), archive.result("cases")),
        ("ok".into(), "FAILED: cut off by a signal".into())
    );
    assert!(archive.text("machine.txt").contains("step tiny") && archive.text("cases.txt").contains("case one"));
    processes::wait_for("the end of what a part has started", || (!processes::runs(pid)).then_some(()));
}
