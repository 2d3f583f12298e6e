//! `sae doctor`: what a run needs, looked at before it is started.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use indicatif::{HumanBytes, HumanCount};
use kernels::Device;
use kernels::cuda::gpu::Peers;
use kernels::cuda::nccl::Nccl;
use kernels::cuda::nvrtc::Nvrtc;
use kernels::mesh::{Axes, Place};
use loader::{Dataset, OpenOptions, Store, memory};
use rustix::process::{Resource, getrlimit};
use trainer::data::Data;
use trainer::plan::{self, DataSize};
use trainer::recipe::Recipe;
use trainer::{meeting, synthesis};

use crate::args::{Doctor, WorldArgs};
use crate::device::{self, DeviceChoice, Opened};
use crate::failure::Failure;
use crate::world::{self, World};
use crate::{disk, job, recipes, remedy, table};

/// Bytes written and read back to see how fast a place is: more than the caches of controllers hide, and no long wait.
const PROBE_BYTES: usize = 64 << 20;

/// Ranks that look only do not wait through queues for those that are missing.
const MEETING: Duration = Duration::from_secs(60);

/// Seconds of sending after which a rate is known.
const ENOUGH_S: f64 = 0.1;

/// Below this many open files, many row groups in flight and a few libraries can be too many.
const FEW_FILES: u64 = 4096;

/// Seconds by which clocks may differ: object stores refuse requests that are 15 minutes off, and times in logs should compare.
const CLOCKS_DIFFER_S: f64 = 5.0;

/// What a check came to; what failed says what to do.
enum Finding {
    Ok(String),
    Warning(String),
    Failed(String),
}

impl From<Failure> for Finding {
    fn from(failure: Failure) -> Self {
        Finding::Failed(failure.message().to_owned())
    }
}

/// What is wrong with the place that `key` names.
fn no_place(key: &str, error: trainer::Error) -> Finding {
    use loader::Error;
    let words = remedy::words(&error);
    let trainer::Error::Loader(error) = error else { return Finding::Failed(words) };
    Finding::Failed(match &error {
        Error::NotFound { location, .. } => {
            format!("nothing to read at {location}: correct {key}, or put shards there (sae synth makes some)")
        }
        Error::Unreachable { .. } => format!("{words}: look at this machine's network and the store's address"),
        // A store says by itself what it wants.
        Error::CannotWrite { location, .. } if !location.contains("://") => {
            format!("{words}: free some space, fix the permissions, or choose another {key}")
        }
        _ => words,
    })
}

/// Makes all checks, whatever comes of each, and prints them as one table.
pub fn run(args: &Doctor) -> Result<(), Failure> {
    let recipe = args.recipe.as_ref().map(|path| recipes::read(path, &args.set)).transpose()?;
    let mut checks = vec![("device", device(&args.world)), ("kernel compiler", compiler()), ("NCCL", nccl())];
    checks.extend(ranks(&args.world));
    checks.extend([("memory", memory_left(recipe.as_ref(), &args.world)), ("open files", open_files())]);
    if let Some(recipe) = &recipe {
        checks.push(("data.train", data(recipe)));
        checks.extend(run_dir(recipe));
        checks.extend(between_ranks(recipe, &args.world).map(|found| ("between ranks", found)));
    }
    let failed = checks.iter().filter(|(_, found)| matches!(found, Finding::Failed(_))).count();
    let row = |(name, found): (&str, Finding)| {
        let (state, text) = match found {
            Finding::Ok(text) => ("ok", text),
            Finding::Warning(text) => ("warning", text),
            Finding::Failed(text) => ("failed", text),
        };
        [name.to_owned(), state.to_owned(), text]
    };
    table::columns(&["check", "", "found"], &checks.into_iter().map(row).collect::<Vec<_>>());
    if failed > 0 {
        let checks = if failed == 1 { "1 check" } else { &format!("{failed} checks") };
        return Err(Failure::arguments(format!("{checks} failed: the table says what to do")));
    }
    Ok(())
}

/// The GPU that a rank would take, and whether it reaches the others of its machine.
fn device(flags: &WorldArgs) -> Finding {
    let local_rank = World::new(flags, &world::environment()).map_or(0, |world| world.local_rank);
    match device::visible_gpu(local_rank).and_then(|gpu| Ok((gpu.describe(), gpu.peers()?))) {
        Ok((gpu, Peers { others: 0, .. })) => Finding::Ok(gpu),
        Ok((gpu, Peers { others, reached })) => {
            let found = format!("{gpu}; it reaches {reached} of {others} other GPUs here directly");
            if reached < others { Finding::Warning(found) } else { Finding::Ok(found) }
        }
        Err(kernels::Error::NoDriver { .. }) => Finding::Ok("the processor: there is no NVIDIA driver".to_owned()),
        Err(error) => Finding::Warning(format!("computing on the processor: {}", remedy::words(&error.into()))),
    }
}

fn compiler() -> Finding {
    match Nvrtc::find(None) {
        Ok(nvrtc) => Finding::Ok(format!("NVRTC {}", nvrtc.version())),
        Err(_) => Finding::Ok(
            "no NVRTC: kernels come with the binary or from the cache, and the processor needs none".to_owned(),
        ),
    }
}

fn nccl() -> Finding {
    match Nccl::find(None) {
        Ok(nccl) => Finding::Ok(format!("NCCL {}", nccl.version())),
        Err(_) => Finding::Ok("no NCCL: only ranks on several GPUs need it".to_owned()),
    }
}

/// The line that other programs look for, `rank R of N`, and what several ranks call this start.
fn ranks(flags: &WorldArgs) -> Vec<(&'static str, Finding)> {
    let environment = world::environment();
    let world = match World::new(flags, &environment) {
        Ok(world) => world,
        Err(failure) => return vec![("ranks", failure.into())],
    };
    let World { rank, ranks, local_rank, local_ranks, attempt, launcher } = &world;
    let place = format!("rank {rank} of {ranks}, {local_rank} of {local_ranks} here, started by {launcher}");
    if let Some(told) = world::shell_in_step(&world, &environment) {
        return vec![("ranks", Finding::Failed(format!("{place}\n{told}")))];
    }
    if *ranks > 1 {
        return vec![("ranks", Finding::Ok(place)), ("attempt", Finding::Ok(attempt.clone()))];
    }
    let found = match world::unused_tasks(&world, &environment) {
        Some(told) => Finding::Warning(format!("{place}\n{told}")),
        None => Finding::Ok(place),
    };
    vec![("ranks", found)]
}

/// How fast ranks that were started together reach each other, by the way that they would while training; nothing where there is one.
fn between_ranks(recipe: &Recipe, flags: &WorldArgs) -> Option<Finding> {
    // What is wrong with it stands in a line of its own.
    let environment = world::environment();
    let world = World::new(flags, &environment).ok().filter(|world| world.ranks > 1)?;
    if world::shell_in_step(&world, &environment).is_some() {
        return None;
    }
    // Training may follow in the same start of the job.
    let world = World { attempt: format!("{}-doctor", world.attempt), ..world };
    Some(meet_and_measure(recipe, &world).unwrap_or_else(Finding::from))
}

fn meet_and_measure(recipe: &Recipe, world: &World) -> Result<Finding, Failure> {
    let store = Store::open(&recipe.run.dir)?;
    let axes = job::join(&store, world, None, recipe, MEETING)?;
    let all = axes.all.clone();
    // The others wait for this rank: they hear why it is gone.
    let found = measure(recipe, world, axes).inspect_err(|failure| all.abort(failure.of(all.index())))?;
    meeting::forget(&store, &world.attempt, world.rank)?;
    Ok(found)
}

fn measure(recipe: &Recipe, world: &World, axes: Axes) -> Result<Finding, Failure> {
    let opened = device::open(DeviceChoice::Auto, &recipe.train, axes, world.local())?;
    let (way, rates) = match &opened {
        Opened::Cpu(device) => ("over TCP", rates_of(device)?),
        Opened::Cuda(device) => ("by NCCL", rates_of(device)?),
    };
    let slowest = slowest(&rates);
    let bytes = |rank: usize| HumanBytes(rates[rank] as u64);
    let (own, least) = (bytes(world.rank), bytes(slowest));
    Ok(Finding::Ok(format!("{way} this one sends {own}/s, and rank {slowest} the least of all, {least}/s")))
}

/// The bytes a second that each rank sends: of as many values as take a while, or as [`PROBE_BYTES`] hold.
fn rates_of(device: &impl Device) -> Result<Vec<f64>, Failure> {
    let all = &device.axes().all;
    let mut bytes = PROBE_BYTES >> 10;
    loop {
        let own = device.exchange_rate(bytes / size_of::<f32>())?;
        let rates = all.gather(&own.to_ne_bytes())?;
        let rates: Vec<f64> =
            rates.iter().map(|rate| rate.first_chunk().map_or(0.0, |rate| f64::from_ne_bytes(*rate))).collect();
        if bytes >= PROBE_BYTES || bytes as f64 / rates[slowest(&rates)] > ENOUGH_S {
            return Ok(rates);
        }
        bytes *= 4;
    }
}

fn slowest(rates: &[f64]) -> usize {
    (0..rates.len()).min_by(|&a, &b| rates[a].total_cmp(&rates[b])).unwrap_or(0)
}

fn memory_left(recipe: Option<&Recipe>, flags: &WorldArgs) -> Finding {
    if let Some(Err(failure)) = recipe.and_then(|recipe| fits(recipe, flags)) {
        return failure.into();
    }
    match memory::available() {
        Some(bytes) => Finding::Ok(format!("{} available", HumanBytes(bytes))),
        None => Finding::Warning("the system does not say how much memory is available".to_owned()),
    }
}

/// Whether the weights of a recipe that computes on the processor fit here; nothing where that is not known, for which other lines say why.
fn fits(recipe: &Recipe, flags: &WorldArgs) -> Option<Result<(), Failure>> {
    let world = World::new(flags, &world::environment()).ok()?;
    if device::visible_gpu(world.local_rank).is_ok() {
        return None;
    }
    let mesh = job::mesh_of(None, world.ranks, recipe).ok()?;
    let rows = match (&recipe.data.synth, synthesis::to_make(recipe).ok()?.is_empty()) {
        (Some(spec), false) => DataSize::of_synthetic(recipe, spec),
        _ => Data::open(recipe, None).and_then(|data| DataSize::of(recipe, &data)),
    };
    let local = world.local();
    let Opened::Cpu(device) = device::open(DeviceChoice::Cpu, &recipe.train, Axes::alone(), local).ok()? else {
        return None;
    };
    let place = Place { mesh, rank: world.rank };
    Some(plan::check_fits(&device, recipe, &rows.ok()?, place, world.local_ranks).map_err(Failure::from))
}

fn open_files() -> Finding {
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < FEW_FILES => {
            Finding::Warning(format!("{files} may be open: ulimit -n {FEW_FILES} before the start allows more"))
        }
        Some(files) => Finding::Ok(format!("{} may be open", HumanCount(files))),
        None => Finding::Ok("any number may be open".to_owned()),
    }
}

fn data(recipe: &Recipe) -> Finding {
    let look = || -> Result<String, trainer::Error> {
        if let Some(making) = synthesis::to_make(recipe)?.first().filter(|making| making.key == "data.train") {
            return Ok(format!("not there yet: training makes {} first", recipes::synthetic(&making.spec)));
        }
        let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
        let data = Dataset::open(&recipe.data.train, &options)?;
        Ok(format!("{} rows × {} {}", HumanCount(data.rows()), data.width(), data.dtype().name()))
    };
    look().map_or_else(|error| no_place("data.train", error), Finding::Ok)
}

/// Writes and reads in the run's folder; nothing stays.
fn run_dir(recipe: &Recipe) -> Vec<(&'static str, Finding)> {
    let store = match Store::open(&recipe.run.dir) {
        Ok(store) => store,
        Err(error) => return vec![("run.dir", no_place("run.dir", error.into()))],
    };
    // Folders that are made to look, which the last rank to look takes away.
    let made = store.local_path().map_or(Vec::new(), |folder| {
        folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect()
    });
    let mut checks = vec![("run.dir", speed(&store).unwrap_or_else(|error| no_place("run.dir", error.into())))];
    if let Some(folder) = store.local_path() {
        checks.push(("room in run.dir", room(folder)));
    }
    // One that is not empty stays, and ends the walk.
    let _ = made.into_iter().try_for_each(std::fs::remove_dir);
    checks
}

/// Speed of writing and reading a probe, and how far the clock of a file system is from ours.
fn speed(store: &Store) -> loader::Result<Finding> {
    let key = format!("doctor-{}.probe", std::process::id());
    // One that does not answer at all is known before so much is sent.
    if let Err(error @ loader::Error::Unreachable { .. }) = store.head(&key) {
        return Err(error);
    }
    let started = Instant::now();
    store.put(&key, vec![0x5a; PROBE_BYTES])?;
    let write_s = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let read = store.get(&key).map(|bytes| bytes.len());
    let read_s = started.elapsed().as_secs_f64();
    let apart_s = store.local_path().and_then(|folder| clocks_apart_s(&folder.join(&key)));
    store.delete(&key)?;
    let length = read?;
    let rate = |seconds: f64| HumanBytes((PROBE_BYTES as f64 / seconds) as u64).to_string();
    let speed = format!("{} written at {}/s and read at {}/s", HumanBytes(length as u64), rate(write_s), rate(read_s));
    Ok(match apart_s {
        Some(apart_s) if apart_s > CLOCKS_DIFFER_S => Finding::Warning(format!(
            "{speed}; its clock and this machine's are {apart_s:.0} s apart: look at their NTP"
        )),
        _ => Finding::Ok(speed),
    })
}

/// Seconds between now and the time at which a file system says that a file was just written.
fn clocks_apart_s(path: &Path) -> Option<f64> {
    let written = std::fs::metadata(path).and_then(|file| file.modified()).ok()?;
    let apart = SystemTime::now().duration_since(written).unwrap_or_else(|later| later.duration());
    Some(apart.as_secs_f64())
}

fn room(folder: &Path) -> Finding {
    match disk::free_bytes(folder) {
        Some(bytes) => Finding::Ok(format!("{} free; sae train --dry-run says what a run writes", HumanBytes(bytes))),
        None => Finding::Warning("the system does not say how much room there is".to_owned()),
    }
}
