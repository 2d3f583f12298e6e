//! Sweeps of small runs: submitted, killed, submitted again, until all configurations are done, each once.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loader::Store;
use serde_json::Value;

use crate::fixture::{Fixture, Numbers};
use crate::s3::S3;
use crate::{kills, sae};

/// Where the folder of a sweep lies.
#[derive(Debug)]
pub enum Place<'a> {
    /// On this machine's disk.
    Local,
    /// On an S3 server, with files that grow below the folder.
    S3(&'a S3),
}

impl Place<'_> {
    /// The folder of a sweep by a name.
    pub fn dir(&self, fixture: &Fixture, name: &str) -> String {
        match self {
            Place::Local => fixture.text(name),
            Place::S3(_) => format!("s3://bucket/{name}"),
        }
    }

    fn environment(&self, fixture: &Fixture) -> Vec<(String, String)> {
        match self {
            Place::Local => Vec::new(),
            Place::S3(s3) => {
                let temporary = fixture.text("temporary");
                std::fs::create_dir_all(&temporary).expect("a folder");
                s3.environment().into_iter().chain([("TMPDIR".to_owned(), temporary)]).collect()
            }
        }
    }

    /// A command `sae ARGS` that sees it.
    pub fn sae(&self, fixture: &Fixture, args: &[&str]) -> Command {
        let mut command = sae::sae(args);
        command.envs(self.environment(fixture));
        command
    }

    /// Runs `sae ARGS` to its end.
    #[track_caller]
    pub fn run(&self, fixture: &Fixture, args: &[&str]) -> sae::Finished {
        let environment = self.environment(fixture);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        sae::run_with(args, &environment)
    }
}

/// The text of a sweep of six configurations of 30 to 60 steps on the rows of [`Fixture::with_data`].
pub fn six(fixture: &Fixture) -> String {
    format!(
        "[base.data]\ntrain = '{}'\neval = '{}'\nwindow_bytes = 262144\n[base.train]\nbatch = 256\nl1 = 2\n[base.checkpoint]\nevery = 5\n\
         [base.log]\nevery = 10\nrows = true\n[axes]\ntrain.lr = [1e-3, 2e-3, 4e-3]\n\
         [[points]]\nsae.features = 128\ntrain.tokens = 7680\n[[points]]\nsae.features = 256\ntrain.tokens = 15360\n",
        fixture.text("train"),
        fixture.text("eval")
    )
}

/// The words that train a sweep, with beats so quick that nobody waits long for one that was killed.
pub fn words<'a>(sweep: &'a str, dir: &'a str) -> Vec<&'a str> {
    vec!["sweep", sweep, "--dir", dir, "--slots", "2", "--device", "cpu", "--heartbeat", "0.1"]
}

/// The runs of a sweep by their ids, without what depends on the clock and the place.
#[track_caller]
pub fn table(place: &Place<'_>, fixture: &Fixture, dir: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let shown = place.run(fixture, &["runs", dir, "--json"]).exits(0).json();
    for mut line in shown.as_array().expect("a list").clone() {
        let line = line.as_object_mut().expect("an object");
        let run = line.remove("run").expect("a folder");
        let id = run.as_str().and_then(|run| run.rsplit('/').next()).expect("a name").to_owned();
        for of_the_clock in ["step_s", "wall_s", "tokens_per_s"] {
            assert!(line.remove(of_the_clock).is_some_and(|value| value.is_number()), "{id}: {of_the_clock}");
        }
        found.insert(id, Value::Object(line.clone()));
    }
    found
}

/// Everything that lies in a sweep's folder on this machine, with tags that change when it is written.
#[track_caller]
pub fn contents(dir: &str) -> Vec<(String, Option<String>)> {
    let store = Store::open(dir).expect("a folder");
    store.list("").expect("it can be listed").into_iter().map(|entry| (entry.key, entry.etag)).collect()
}

/// Kills sweeps `kills` times at moments drawn from `seed` and submits them again; those that come to their end have the table of one
/// that nobody has disturbed, and where they lie on this machine the same runs bit for bit. Says how many came to their end.
///
/// # Panics
/// When they do not.
pub fn soak(place: &Place<'_>, fixture: &Fixture, kills: u32, seed: u64, progress: &mut dyn FnMut(String)) -> u32 {
    let sweep = fixture.save_text("six", &six(fixture));
    let undisturbed = fixture.text("undisturbed");
    sae::binary();
    let started = Instant::now();
    sae::run(&words(&sweep, &undisturbed)).exits(0);
    let wall = started.elapsed();
    let expected = table(&Place::Local, fixture, &undisturbed);
    assert_eq!(expected.len(), 6, "{expected:?}");
    let mut numbers = Numbers::new(seed);
    let (mut killed, mut finished) = (0, 0);
    while killed < kills || finished == 0 {
        let dir = place.dir(fixture, &format!("killed-{finished}"));
        loop {
            let delay = wall.mul_f64(f64::from(numbers.unit().abs()));
            if !start(place, fixture, &words(&sweep, &dir), (killed < kills).then_some(delay)) {
                break;
            }
            killed += 1;
            progress(format!("kill {killed} after {:.2} s of {:.2} s", delay.as_secs_f64(), wall.as_secs_f64()));
        }
        finished += 1;
        assert_eq!(table(place, fixture, &dir), expected, "the table of {dir}");
        if let Place::Local = place {
            for id in expected.keys() {
                kills::assert_same_run(
                    &fixture.path("undisturbed").join(id),
                    &fixture.path(format!("killed-{}", finished - 1)).join(id),
                );
            }
        }
        progress(format!("{dir}: done, 6 of 6 configurations the same as in the undisturbed sweep"));
    }
    finished
}

/// Submits a sweep and kills it after a delay. False when it came to its end before.
fn start(place: &Place<'_>, fixture: &Fixture, words: &[&str], kill_after: Option<Duration>) -> bool {
    let mut child = spawn(place, fixture, words);
    if let Some(delay) = kill_after {
        std::thread::sleep(delay);
        // To a process that has ended this does nothing.
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("a child can be waited for");
    if output.status.code().is_none() {
        return true;
    }
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    false
}

/// Submits a sweep, whose output is kept.
///
/// # Panics
/// When it does not start.
pub fn spawn(place: &Place<'_>, fixture: &Fixture, words: &[&str]) -> Child {
    let mut command = place.sae(fixture, words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sae starts")
}
