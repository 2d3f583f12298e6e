//! Stores that are down, go down, refuse, or are named in a way that no client could use: what is said, and when it is given up.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use tests::fixture::{Fixture, text};
use tests::launcher::Launcher;
use tests::need;
use tests::processes::wait_for;
use tests::proxy::{Fault, Proxy, Relay};
use tests::s3::{self, S3};
use tests::sae::{self, Finished};
use tests::tls::Tls;

/// What `sae` needs in its environment to use an S3 server at an address, whether or not there is one.
fn environment(address: &str) -> Vec<(String, String)> {
    let pairs = [
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "c4n4ry-never-print-me".to_owned()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

#[track_caller]
fn run(address: &str, arguments: &[&str]) -> Finished {
    let environment = environment(address);
    let pairs: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    sae::run_with(arguments, &pairs)
}

/// An address of this machine at which nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").to_string()
}

/// The first failure is reported with the time until which it is tried again, and so is the end.
#[test]
fn a_store_that_is_down_is_told_at_once_and_given_up_soon() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let address = nobody();
    let told = format!("http://{address}: Connection refused");
    let all = [told.as_str(), "tried again until 20", "for 1 s altogether (--patience)"];
    let given_up = "given up after 1 s (--patience)";
    let in_store = ["--set", "run.dir=s3://bucket/run"];
    for words in [
        &["inspect", "s3://bucket/acts"][..],
        &["eval", "s3://bucket/run", "--data", &fixture.text("eval")],
        &["export", "s3://bucket/run", "--out", &fixture.text("out")],
        &["train", &path, "--set", "data.train=s3://bucket/acts"],
        &[&["train", &path, "--resume-or-start"], &in_store[..]].concat(),
        &[&["launch", "local", "--restarts", "0", &path], &in_store[..]].concat(),
    ] {
        let finished = run(&address, &[&["--patience", "1"], words].concat()).exits(69).says(&all);
        assert!(finished.stderr.contains(given_up), "{words:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("storage unreachable"), "{words:?}: {}", finished.stderr);
        assert_eq!(finished.stderr.matches("tried again until").count(), 1, "{words:?}: {}", finished.stderr);
    }
    let doctor = run(&address, &[&["--patience", "1", "doctor", &path], &in_store[..]].concat()).exits(64).says(&all);
    assert!(doctor.stdout.contains("unreachable"), "{}", doctor.stdout);
}

/// Without being asked for more or less it is 10 s; the variable says it too.
#[test]
fn patience_is_ten_seconds_before_training() {
    let fixture = Fixture::new();
    let address = nobody();
    for (patience, told) in [(None, "for 10 s altogether"), (Some("77"), "for 77 s altogether")] {
        let mut command = sae::sae(&["inspect", "s3://bucket/acts"]);
        command.envs(environment(&address)).envs(patience.map(|seconds| ("SAE_PATIENCE", seconds)));
        let inspects = Launcher::start(&fixture, told, command);
        let errors = fixture.path(format!("{told}.errors.txt"));
        wait_for("the first failure", || std::fs::read_to_string(&errors).ok()?.contains(told).then_some(()));
        drop(inspects);
    }
}

/// One that is there and does not answer, and one that answers that it is busy.
#[test]
fn a_store_that_is_silent_or_busy_is_told_and_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address").to_string();
    let inspect = ["--patience", "1", "inspect", "s3://bucket/acts"];
    run(&address, &inspect).exits(69).says(&["storage unreachable", "no answer to ", " for 1 s: given up after 1 s"]);
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let busy = Proxy::start(s3.address(), Fault::SlowDown, u32::MAX);
    let busy = run(&busy.address, &inspect).exits(69);
    let said = busy.says(&["it answered 503 Service Unavailable", "given up after 1 s"]);
    assert!(!said.stderr.contains("c4n4ry"), "{}", said.stderr);
}

/// A store that goes away in the middle of a run is waited for longer, and the log says for how long it was away. Nothing is lost.
#[test]
fn an_outage_in_the_middle_of_a_run_is_told_with_its_length() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let relay = Relay::start(s3.address());
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.run.dir = "s3://bucket/run".into();
    let path = fixture.save("run", &recipe);
    let mut command = sae::sae(&["train", &path]);
    command.envs(environment(&relay.address)).env("TMPDIR", fixture.path("."));
    let run = Launcher::start(&fixture, "run", command);
    let lines = || std::fs::read_to_string(s3::spool(&fixture.path("."))?.join("metrics.jsonl")).ok();
    wait_for("a metrics line", || lines().filter(|lines| lines.contains('\n')));
    relay.cut();
    let errors = fixture.path("run.errors.txt");
    let said = |part: &str| std::fs::read_to_string(&errors).ok().filter(|said| said.contains(part));
    wait_for("the first failure", || said("for 150 s altogether"));
    relay.mend();
    let (code, said) = run.ends();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("http://{} answers again after ", relay.address)), "{said}");
    assert!(s3.find("run/summary.json").is_some(), "{said}");
}

/// An answer that breaks off is read on, and told.
#[test]
fn an_answer_that_breaks_off_is_told() {
    let Some(interpreter) = need::python() else { return };
    let s3 = with_shards(&interpreter);
    let proxy = Proxy::start(s3.address(), Fault::Reset, 1);
    run(&proxy.address, &["inspect", "s3://bucket/acts"])
        .exits(0)
        .says(&["an answer broke off: ", "answers again after "]);
}

fn with_shards(interpreter: &Path) -> S3 {
    let s3 = S3::start(interpreter);
    let shape = ["--features", "64", "--width", "32", "--rows", "2000", "--shards", "2", "--active", "4"];
    run(s3.address(), &[&["synth", "--out", "s3://bucket/acts"][..], &shape].concat()).exits(0);
    s3
}

/// S3 answers 403 for what is absent to a user who may not list the bucket: a manifest that may be absent is done without.
#[test]
fn a_manifest_that_is_refused_is_done_without() {
    let Some(interpreter) = need::python() else { return };
    let s3 = with_shards(&interpreter);
    s3.delete("acts/manifest.json");
    let proxy = Proxy::start(s3.address(), Fault::Forbidden, u32::MAX);
    for (data, state) in [("s3://bucket/acts/shard-00000.parquet", "absent"), ("s3://bucket/acts", "read-only")] {
        let finished = run(&proxy.address, &["inspect", data, "--json"]).exits(0);
        let report = finished.says(&["acts/manifest.json", "refused", "without"]).json();
        assert_eq!(report["manifest"], state, "{data}: {report}");
    }
    assert!(proxy.spoilt() >= 2 && s3.find("acts/manifest.json").is_none());
}

/// Servers speak TLS. One whose certificate comes from an authority that this machine does not know is named and gets no request;
/// `SSL_CERT_FILE` makes the authority known.
#[test]
fn a_server_is_known_by_its_certificate() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::new();
    let s3 = with_shards(&interpreter);
    let tls = Tls::start(&interpreter, s3.address(), &fixture.path("."));
    let endpoint = format!("https://{}", tls.address());
    let mut environment = s3.environment();
    environment.retain(|(name, _)| name != "AWS_ENDPOINT" && name != "AWS_ALLOW_HTTP");
    environment.push(("AWS_ENDPOINT".to_owned(), endpoint.clone()));
    let pairs: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let inspect = ["--patience", "1", "inspect", "s3://bucket/acts", "--json"];
    sae::run_with(&inspect, &pairs).exits(69).says(&[&endpoint, "certificate"]);
    let authority = text(tls.authority());
    let known = sae::run_with(&inspect, &[&pairs[..], &[("SSL_CERT_FILE", &authority)]].concat()).exits(0);
    assert_eq!(known.json()["rows"], 2000);
}

/// What the environment says about stores and no client could use: one message that names the variable, and no value that is a secret.
#[test]
fn settings_that_no_client_could_use_are_named() {
    let address = nobody();
    for (name, value, url, said) in [
        ("AWS_ENDPOINT", "127.0.0.1:9000", "s3://bucket/x", "write https://127.0.0.1:9000, or http://127.0.0.1:9000"),
        ("AWS_ENDPOINT_URL", "minio", "s3://bucket/x", "\"minio\" is no address"),
        ("AWS_REGION", "us east 1", "s3://bucket/x", "\"us east 1\" is no region"),
        ("AWS_SECRET_ACCESS_KEY", "c4n4ry\n", "s3://bucket/x", "begins or ends with a space or a line break"),
        ("AWS_PROXY_URL", "proxy:3128", "s3://bucket/x", "write https://proxy:3128"),
        ("GOOGLE_BASE_URL", "storage", "gs://bucket/x", "\"storage\" is no address"),
        ("AZURE_STORAGE_ENDPOINT", "nonsense", "az://c@a.blob.core.windows.net/x", "\"nonsense\" is no address"),
        ("AWS_ALLOW_HTTP", "perhaps", "s3://bucket/x", "perhaps"),
    ] {
        let environment = environment(&address);
        let pairs = environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let pairs: Vec<_> = pairs.filter(|(other, _)| *other != name).chain([(name, value)]).collect();
        let finished = sae::run_with(&["inspect", url], &pairs).exits(64).says(&[said]);
        assert!(!finished.stderr.contains("panicked") && !finished.stderr.contains("c4n4ry"), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

/// Profiles, SSO and credential_process are AWS's own to read: the message has the command that does it.
#[test]
fn credentials_of_a_profile_are_said_how_to_export() {
    let fixture = Fixture::new();
    let home = fixture.path("home");
    std::fs::create_dir_all(home.join(".aws")).expect("a folder");
    std::fs::write(home.join(".aws/config"), "[default]\ncredential_process = /bin/false\n").expect("written");
    for (profile, named) in [(Some("research"), "research"), (None, "default")] {
        let mut command: Command = sae::sae(&["inspect", "s3://bucket/acts"]);
        command.env("HOME", text(&home)).envs(profile.map(|profile| ("AWS_PROFILE", profile)));
        let (code, said) = Launcher::start(&fixture, named, command).ends();
        assert_eq!(code, Some(64), "{said}");
        let command = format!("eval \"$(aws configure export-credentials --profile {named} --format env)\"");
        assert!(said.contains(&command), "{said}");
    }
}
