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
    /// Seconds until those that train now are done and what is pending after them, by as many at a time; nothing where none trains.
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
            return Err(folder.has_no_sweep());
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
            Ok(Some((configuration, Line { cause: cause.or(line.cause), ..line })))
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
        let left_s = left_s(&read);
        let lines: Vec<Line> = read.into_iter().map(|(_, line)| line).collect();
        let count = |state: State| (state.name(), lines.iter().filter(|line| line.state == state).count());
        Ok(Report {
            dir: folder.store.url().to_owned(),
            counts: State::ALL.map(count).into(),
            left_s,
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
        let left = self.left_s.map_or(String::new(), |seconds| format!("; about {} left", duration(seconds)));
        table::say(format!("{}: {}{left}", self.dir, counts.join(", ")));
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
            return format!("next: see the causes above, then sae sweep {dir} --retry");
        }
        match count(State::Running) {
            0 => format!("next: sae sweep {dir}"),
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

/// Seconds until all are done that train or are pending, where some train: work goes by features times rows, at the pace of those that train
/// now. One that has just begun goes at the mean pace of the others, or of those that are done.
fn left_s(read: &[(Option<Configuration>, Line)]) -> Option<f64> {
    let of = |state: State| {
        let known = read.iter().filter_map(|(one, line)| Some((one.as_ref()?, line)));
        known.filter(move |(_, line)| line.state == state)
    };
    let pace = |(one, line): (&Configuration, &Line)| {
        let per_s = line.tokens_per_s_wall.filter(|&per_s| per_s > 0.0)?;
        Some(one.recipe.sae.features as f64 * per_s)
    };
    let mean = |state: State| {
        let paces: Vec<f64> = of(state).filter_map(pace).collect();
        (!paces.is_empty()).then(|| paces.iter().sum::<f64>() / paces.len() as f64)
    };
    let usual = mean(State::Running).or_else(|| mean(State::Done));
    let mut left: f64 = of(State::Pending).map(|(one, _)| one.work()).sum();
    let (mut paces, mut longest) = (0.0, 0.0_f64);
    for (one, line) in of(State::Running) {
        let pace = pace((one, line)).or(usual)?;
        let made = line.step.zip(line.steps).map_or(0.0, |(step, steps)| step as f64 / steps.max(1) as f64);
        let own = one.work() * (1.0 - made).max(0.0);
        (left, paces, longest) = (left + own, paces + pace, longest.max(own / pace));
    }
    (paces > 0.0).then(|| longest.max(left / paces))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_takes_its_time_too() {
        let one = |features: usize, state: State, of: &dyn Fn(&mut Line)| {
            let recipe = format!(
                "data = {{ train = 'a' }}\nsae.features = {features}\ntrain = {{ tokens = 1000, batch = 10 }}\nrun.dir = 'x'"
            );
            let recipe = toml::from_str(&recipe).expect("a recipe");
            let mut line = Line { state, ..Line::pending("0123456789abcdef", String::new()) };
            of(&mut line);
            (Some(Configuration { id: line.id.clone(), recipe }), line)
        };
        let begun = |step: u64, per_s: Option<f64>| {
            move |line: &mut Line| {
                (line.step, line.steps, line.tokens_per_s_wall) = (Some(step), Some(100), per_s);
            }
        };
        let pending = || one(30, State::Pending, &|_| ());
        assert_eq!(left_s(&[pending()]), None, "nobody trains");
        let running = || one(20, State::Running, &begun(50, Some(10.0)));
        assert_eq!(left_s(&[running()]), Some(50.0));
        // 10,000 are left of the one and 30,000 of the other, at 200 a second.
        assert_eq!(left_s(&[running(), pending()]), Some(200.0));
        // A second one that has just begun, as quick as the first; or by itself, as quick as those that are done.
        let new = || one(20, State::Running, &begun(0, None));
        assert_eq!(left_s(&[running(), pending(), new()]), Some(150.0));
        assert_eq!(left_s(&[new()]), None);
        assert_eq!(left_s(&[new(), one(20, State::Done, &begun(100, Some(5.0)))]), Some(200.0));
        // The slowest of few, however quick the others are.
        assert_eq!(left_s(&[running(), one(20, State::Running, &begun(50, Some(1000.0)))]), Some(50.0));
        // One whose recipe cannot be read counts with none.
        assert_eq!(left_s(&[running(), (None, Line::pending("0123456789abcdef", String::new()))]), Some(50.0));
    }
}
