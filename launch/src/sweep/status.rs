//! Where a sweep stands, from anywhere: its folder says everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::claim::{Beat, Life, MISSED, Watch};
use super::folder::{Configuration, Files, Folder, State, state_of, varying};
use super::worker::{brief, label, last, short};
use crate::failure::Failure;
use crate::progress::duration;
use crate::runs::{Run, at_once};
use crate::table::{self, Column};

/// A sweep: what is printed with `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its folder.
    pub dir: String,
    /// How many configurations are in each state.
    pub counts: BTreeMap<&'static str, usize>,
    /// Seconds until those that train now are done.
    pub left_s: Option<f64>,
    /// All that were ever submitted.
    pub configurations: Vec<Line>,
}

/// A configuration.
#[derive(Debug, Serialize)]
pub struct Line {
    /// The name of its folder.
    pub id: String,
    /// Its run folder.
    pub run: String,
    /// What became of it.
    pub state: State,
    /// The keys in which configurations of the sweep differ, as TOML writes their values.
    pub keys: BTreeMap<String, String>,
    /// Steps done.
    pub step: Option<u64>,
    /// Steps of the run.
    pub steps: Option<u64>,
    /// Rows a second by the clock: while it trains since it was last begun, at the end over all its starts.
    pub tokens_per_s_wall: Option<f64>,
    /// Seconds until it is done.
    pub left_s: Option<f64>,
    /// At the end on held-out rows, before that of the last steps.
    pub loss: Option<f64>,
    /// Likewise.
    pub l0: Option<f64>,
    /// At the end.
    pub explained_variance: Option<f64>,
    /// Seconds by the clock, at the end.
    pub wall_s: Option<f64>,
    /// Where it trains.
    pub host: Option<String>,
    /// Why it failed.
    pub cause: Option<String>,
    /// Its keys in short, for people.
    #[serde(skip)]
    pub label: String,
}

impl Report {
    /// Looks at a sweep. Whether somebody still trains what is claimed shows only after some time, which this takes.
    ///
    /// # Errors
    /// [`trainer::Exit::Data`] where there is no sweep, or one that cannot be read; those of the store.
    pub fn of(folder: &Folder) -> Result<Report, Failure> {
        let (mut watch, began, mut is_told) = (Watch::default(), Instant::now(), false);
        loop {
            let files = folder.look()?;
            let lives = lives(folder, &files, &mut watch)?;
            let Some(silent) = lives.silent else { return Report::read(folder, &files, &lives.alive, &watch) };
            if !is_told && began.elapsed() > Duration::from_secs(2) {
                is_told = true;
                let most = silent.every() * MISSED;
                tracing::info!(
                    "{} has not been heard of yet: it is waited for {} s at most",
                    silent.owner,
                    most.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn read(
        folder: &Folder,
        files: &BTreeMap<String, Files>,
        alive: &BTreeMap<String, String>,
        watch: &Watch,
    ) -> Result<Report, Failure> {
        let ids: Vec<&String> = files.iter().filter(|(_, files)| files.is_submitted).map(|(id, _)| id).collect();
        if ids.is_empty() {
            return Err(Failure::data(format!(
                "{}: no sweep is there: sae sweep SWEEP.toml begins one, in the folder that it names",
                folder.store.url()
            )));
        }
        let read = at_once(&ids, |id| -> Result<Option<(Option<Configuration>, Line)>, Failure> {
            // What cannot be read of one hides no other.
            let (configuration, cause) = match folder.configuration(id) {
                Ok(None) => return Ok(None),
                Ok(configuration) => (configuration, None),
                Err(failure) if failure.is_of_data() => (None, Some(failure.message().to_owned())),
                Err(other) => return Err(other),
            };
            let beat = alive.get(*id).and_then(|key| watch.beat(key));
            let line = Line::of(folder, id, &files[*id], beat)?;
            Ok(Some((configuration, Line { cause: line.cause.or(cause), ..line })))
        })?;
        let read: Vec<Option<(Option<Configuration>, Line)>> = read.into_iter().collect::<Result<_, _>>()?;
        let mut read: Vec<(Option<Configuration>, Line)> = read.into_iter().flatten().collect();
        let configurations: Vec<Configuration> = read.iter().filter_map(|(one, _)| one.clone()).collect();
        let keys = varying(&configurations);
        for (configuration, line) in &mut read {
            let Some(configuration) = configuration else { continue };
            let own = configuration.recipe.keys();
            line.keys = keys.iter().filter_map(|key| Some((key.clone(), own.get(key)?.clone()))).collect();
            line.label = label(configuration, &keys);
        }
        let order = |(one, line): &(Option<Configuration>, Line)| {
            let of = |one: &Configuration| {
                let train = &one.recipe.train;
                (one.recipe.sae.features, train.tokens, train.lr.to_bits(), train.l1.to_bits(), train.seed)
            };
            (one.is_none(), one.as_ref().map(of), line.id.clone())
        };
        read.sort_by_cached_key(order);
        let lines: Vec<Line> = read.into_iter().map(|(_, line)| line).collect();
        let count = |state: State| (state.name(), lines.iter().filter(|line| line.state == state).count());
        Ok(Report {
            dir: folder.store.url().to_owned(),
            counts: State::ALL.map(count).into(),
            left_s: lines.iter().filter_map(|line| line.left_s).reduce(f64::max),
            configurations: lines,
        })
    }

    /// Prints it for people.
    pub fn show(&self) {
        let lines = || self.configurations.iter();
        let cells = |title: &str, of: &dyn Fn(&Line) -> Option<String>| {
            Column::of(title, lines().map(|line| of(line).unwrap_or_else(|| "–".to_owned())))
        };
        let keys: BTreeSet<&String> = lines().flat_map(|line| line.keys.keys()).collect();
        let of_key = |key: &String| cells(last(key), &|line| line.keys.get(key).map(|value| brief(value)));
        let mut columns = vec![cells("run", &|line| Some(short(&line.id).to_owned()))];
        columns.extend(keys.into_iter().map(of_key));
        columns.extend([
            cells("state", &|line| Some(line.state.name().to_owned())),
            cells("steps", &|line| Some(line.done())),
            cells("loss", &|line| line.loss.map(table::number)),
            cells("L0", &|line| line.l0.map(|l0| format!("{l0:.1}"))),
            cells("EV", &|line| line.explained_variance.map(|share| table::percent(Some(share)))),
            cells("rate", &|line| line.tokens_per_s_wall.map(|per_s| format!("{per_s:.0}/s"))),
            cells("time", &|line| {
                line.wall_s.map(duration).or_else(|| Some(format!("{} left", duration(line.left_s?))))
            }),
        ]);
        // Of narrow terminals: steps tell tokens, and --json all.
        table::in_room(columns, &["rate", "tokens", "EV", "L0"]);
        for line in self.configurations.iter().filter(|line| line.cause.is_some()) {
            table::say(format!("{}: {}", line.label, line.cause.as_deref().unwrap_or_default()));
        }
        let counts: Vec<String> = State::ALL
            .iter()
            .map(|state| (state.name(), self.counts[state.name()]))
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        table::say(format!("{}: {}", self.dir, counts.join(", ")));
    }

    /// What to do next.
    pub fn next(&self) -> String {
        let dir = table::quoted(&self.dir);
        let count = |state: State| self.counts[state.name()];
        if count(State::Done) == self.configurations.len() {
            let laws = table::quoted(&format!("{}/laws", self.dir));
            return format!("next: sae scaling fit {dir} --out {laws}");
        }
        if count(State::Pending) + count(State::Running) == 0 {
            return format!("next: see the causes above, then sae sweep {dir}/sweep.toml --dir {dir} --retry");
        }
        match count(State::Running) {
            0 => format!("next: sae sweep {dir}/sweep.toml --dir {dir}"),
            _ => format!("next: sae sweep status {dir}"),
        }
    }
}

impl Line {
    /// One that nobody trains.
    fn pending(id: &str, run: String) -> Line {
        Line {
            id: id.to_owned(),
            run,
            state: State::Pending,
            keys: BTreeMap::new(),
            step: None,
            steps: None,
            tokens_per_s_wall: None,
            left_s: None,
            loss: None,
            l0: None,
            explained_variance: None,
            wall_s: None,
            host: None,
            cause: None,
            label: short(id).to_owned(),
        }
    }

    fn of(folder: &Folder, id: &str, files: &Files, beat: Option<&Beat>) -> Result<Line, Failure> {
        let mut line = Line::pending(id, folder.store.url_of(id));
        if files.has_summary {
            line.state = State::Done;
        }
        // Of a run folder from which files were deleted there may be no more than that it was done.
        let run = if files.has_summary { Run::read(&folder.run(id)?) } else { Ok(None) };
        let run = match run {
            Err(failure) if failure.is_of_data() => {
                line.cause = Some(failure.message().to_owned());
                return Ok(line);
            }
            run => run?,
        };
        if let Some(summary) = run.and_then(|run| run.summary) {
            (line.step, line.steps) = (Some(summary.steps), Some(summary.steps));
            (line.loss, line.l0) = (summary.loss, summary.l0);
            (line.explained_variance, line.wall_s) = (summary.explained_variance, Some(summary.wall_s));
            line.tokens_per_s_wall = Some(summary.tokens as f64 / summary.wall_s);
        } else if files.has_summary {
            line.cause = Some(
                "files of its run folder are gone: delete the rest of it, and the sweep trains it again".to_owned(),
            );
        } else if let Some(beat) = beat {
            line.state = State::Running;
            line.host = Some(beat.host.clone());
            let progress = beat.progress;
            line.tokens_per_s_wall = progress.tokens_per_s_wall;
            (line.loss, line.l0) = (progress.loss, progress.l0);
            if progress.steps > 0 {
                (line.step, line.steps) = (Some(progress.step), Some(progress.steps));
                let rows = progress.rows.saturating_sub(progress.tokens) as f64;
                line.left_s = progress.tokens_per_s_wall.filter(|&per_s| per_s > 0.0).map(|per_s| rows / per_s);
            }
        } else if let Some(note) = folder.note(id, files)? {
            line.state = state_of(&note);
            line.step = Some(note.step);
            line.cause = Some(note.error);
        }
        Ok(line)
    }

    /// Steps done, of how many.
    fn done(&self) -> String {
        match (self.step, self.steps) {
            (Some(step), Some(steps)) if step != steps => format!("{step}/{steps}"),
            (Some(step), _) => step.to_string(),
            _ => "–".to_owned(),
        }
    }
}

/// What is known of claims.
#[derive(Default)]
struct Lives {
    /// The keys of those that are alive, by what they claim.
    alive: BTreeMap<String, String>,
    /// One of which it is not known yet.
    silent: Option<Beat>,
}

fn lives(folder: &Folder, files: &BTreeMap<String, Files>, watch: &mut Watch) -> Result<Lives, Failure> {
    let mut lives = Lives::default();
    for (id, files) in files.iter().filter(|(_, files)| !files.has_summary) {
        for claim in &files.claims {
            match watch.look(&folder.store, claim, Instant::now())? {
                Life::Alive => {
                    lives.alive.insert(id.clone(), claim.key.clone());
                }
                Life::Unknown => lives.silent = watch.beat(&claim.key).cloned(),
                Life::Abandoned => {}
            }
        }
    }
    Ok(lives)
}
