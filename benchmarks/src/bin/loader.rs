//! How fast rows arrive, beside a plain copy of the same bytes and, if asked, pyarrow on the same files.
//!
//! Traffic model: a delivered byte is read once (page cache or memory store), hashed once, and copied once into the caller's
//! buffer; the reference copies each byte once, in blocks of the same size, on one thread.
//!
//! `cargo run --release -p benchmarks --bin loader -- [--gib 1] [--width 768] [--threads 2] [--dir FOLDER] [--python PATH]`

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use loader::{Cursor, Dataset, Dtype, OpenOptions, Order, ShardWriter, Store, Stream, StreamOptions, WriteOptions};

const REPEATS: usize = 5;
const BATCH: usize = 4096;

struct Arguments {
    gib: f64,
    width: usize,
    threads: usize,
    /// A folder of the user's, which is kept; otherwise a temporary one.
    dir: Option<PathBuf>,
    python: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut a = Arguments { gib: 1.0, width: 768, threads: 2, dir: None, python: None };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or(format!("{name} needs a value"))?;
        let bad = |e: String| format!("{name} {value}: {e}");
        match name.as_str() {
            "--gib" => a.gib = value.parse().map_err(|e| bad(format!("{e}")))?,
            "--width" => a.width = value.parse().map_err(|e| bad(format!("{e}")))?,
            "--threads" => a.threads = value.parse().map_err(|e| bad(format!("{e}")))?,
            "--dir" => a.dir = Some(value.into()),
            "--python" => a.python = Some(value),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(a)
}

/// Writes rows whose bits are a pattern; returns their bytes.
fn write(url: &str, a: &Arguments) -> Result<u64, loader::Error> {
    let store = Store::open(url)?;
    let mut options = WriteOptions::new(a.width, Dtype::F16);
    let row_bytes = a.width * 2;
    let rows = (a.gib * f64::from(1 << 30)) as u64 / row_bytes as u64;
    options.shard_rows = rows.div_ceil(4);
    let mut writer = ShardWriter::create(&store, options)?;
    let mut block = vec![0u8; 1024 * row_bytes];
    let mut x = 1u64;
    let mut left = rows;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Keeps the exponent away from NaN, so that other readers meet ordinary numbers.
            word.copy_from_slice(&(x & 0xbbff_bbff_bbff_bbff).to_le_bytes());
        }
        let n = left.min(1024);
        writer.write(&block[..n as usize * row_bytes], &[])?;
        left -= n;
    }
    writer.finish()?;
    Ok(rows * row_bytes as u64)
}

/// Seconds to deliver every row once; checks the count.
fn deliver(url: &str, order: Order, threads: usize) -> Result<(f64, f64), loader::Error> {
    let dataset = Dataset::open(&[url.to_string()], &OpenOptions::default())?;
    let options = StreamOptions { order, batch: BATCH, threads, ..StreamOptions::default() };
    let mut buffer = vec![1u8; BATCH * dataset.row_bytes()];
    let began = Instant::now();
    let mut stream = Stream::start(&dataset, options, Cursor::default())?;
    let (mut rows, mut stall) = (0, 0.0);
    while let Some(batch) = stream.next(&mut buffer)? {
        rows += batch.rows as u64;
        stall += batch.stall.as_secs_f64();
    }
    assert_eq!(rows, dataset.rows(), "a benchmark refuses to time a wrong result");
    Ok((began.elapsed().as_secs_f64(), stall))
}

/// Seconds to copy `bytes` bytes in blocks of a batch from memory that is not in the cache.
fn copy(bytes: u64, block: usize) -> f64 {
    let from = vec![1u8; bytes as usize];
    let mut to = vec![1u8; block];
    let began = Instant::now();
    for part in from.chunks(block) {
        to[..part.len()].copy_from_slice(part);
        std::hint::black_box(&mut to);
    }
    began.elapsed().as_secs_f64()
}

fn pyarrow(python: &str, dir: &Path, memory_map: bool) -> Option<f64> {
    let script = "import sys,time,glob,pyarrow.parquet as pq\n\
        t=time.perf_counter(); n=0\n\
        for f in sorted(glob.glob(sys.argv[1]+'/*.parquet')):\n\
        \x20for b in pq.ParquetFile(f, memory_map=sys.argv[2]=='map').iter_batches(batch_size=4096): n+=b.num_rows\n\
        print(time.perf_counter()-t)";
    let output = Command::new(python)
        .args(["-c", script])
        .arg(dir)
        .arg(if memory_map { "map" } else { "read" })
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn run(a: &Arguments, dir: &Path) -> Result<(), loader::Error> {
    let (local, memory) = (dir.display().to_string(), "memory://benchmark/loader".to_string());
    let bytes = write(&local, a)?;
    write(&memory, a)?;
    let block = BATCH * a.width * 2;
    let direct = Order::Direct { window_bytes: (bytes / 4).min(1 << 30) };
    let rate = |seconds: f64| bytes as f64 / 1e9 / seconds;
    let copied = rate(median((0..REPEATS).map(|_| copy(bytes, block)).collect()));
    println!("{:.2} GB, rows of {} f16, {} threads, medians of {REPEATS}", bytes as f64 / 1e9, a.width, a.threads);
    println!("{:<28} {:>8} {:>8} {:>8}", "", "GB/s", "x copy", "stall");
    println!("{:<28} {copied:>8.2} {:>8.2}", "plain copy, one thread", 1.0);
    for (name, url, order) in [
        ("local, sequential", &local, Order::Sequential),
        ("local, striped", &local, Order::Striped),
        ("local, direct", &local, direct),
        ("memory, sequential", &memory, Order::Sequential),
        ("memory, direct", &memory, direct),
    ] {
        let runs = (0..REPEATS).map(|_| deliver(url, order, a.threads)).collect::<Result<Vec<_>, _>>()?;
        let seconds = median(runs.iter().map(|r| r.0).collect());
        let stall = median(runs.iter().map(|r| r.1 / r.0).collect());
        println!("{name:<28} {:>8.2} {:>8.2} {:>7.0}%", rate(seconds), rate(seconds) / copied, stall * 100.0);
    }
    for (name, memory_map) in [("pyarrow, memory map", true), ("pyarrow, reading", false)] {
        let Some(python) = &a.python else { break };
        let times: Vec<f64> = (0..REPEATS).filter_map(|_| pyarrow(python, dir, memory_map)).collect();
        if times.is_empty() {
            println!("{name}: {python} could not read the files");
        } else {
            let r = rate(median(times));
            println!("{name:<28} {r:>8.2} {:>8.2}", r / copied);
        }
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    let outcome = arguments().and_then(|a| {
        let temporary = std::env::temp_dir().join(format!("loader-benchmark-{}", std::process::id()));
        let ran = run(&a, a.dir.as_deref().unwrap_or(&temporary)).map_err(|e| e.to_string());
        // Best effort, and only our own folder.
        let _ = std::fs::remove_dir_all(&temporary);
        ran
    });
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            std::process::ExitCode::FAILURE
        }
    }
}
