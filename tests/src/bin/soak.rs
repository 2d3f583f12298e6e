//! Kills runs at random moments and resumes them, as often as asked: `cargo run -p tests --bin soak -- --kills 100`. With
//! `--ranks 4 --mesh 2x2` the runs are jobs of several ranks under `sae launch local`, whose ranks are killed and, with `--stops N`,
//! stopped. Exit code 0: every run that came to its end was the same as an undisturbed one: bit for bit, but for the last bits of
//! the metrics of several ranks.

use std::fmt::Debug;

use kernels::mesh::Mesh;
use tests::fixture::Fixture;
use tests::{jobs, kills};

/// What was asked for.
struct Options {
    kills: u32,
    stops: u32,
    seed: u64,
    ranks: usize,
    mesh: Mesh,
}

impl Options {
    fn read() -> Option<Options> {
        let seed = std::process::id().into();
        let mut options = Options { kills: 100, stops: 0, seed, ranks: 1, mesh: Mesh::ONE };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next()?;
            match name.as_str() {
                "--kills" => options.kills = value.parse().ok()?,
                "--stops" => options.stops = value.parse().ok()?,
                "--seed" => options.seed = value.parse().ok()?,
                "--ranks" => options.ranks = value.parse().ok()?,
                "--mesh" => options.mesh = value.parse().ok()?,
                _ => return None,
            }
        }
        let fits = options.mesh.ranks() == options.ranks && (options.ranks > 1 || options.stops == 0);
        fits.then_some(options)
    }
}

fn main() {
    let Some(Options { kills, stops, seed, ranks, mesh }) = Options::read() else {
        eprintln!("usage: soak [--kills N] [--seed N] [--ranks N --mesh DxF [--stops N]]");
        std::process::exit(64);
    };
    println!("{kills} kills, {stops} stops, seed {seed}, mesh {mesh}");
    let fixture = Fixture::with_data();
    let done: Box<dyn Debug> = match ranks {
        1 => Box::new(kills::soak(&fixture, kills, seed, &mut |tally| println!("{tally:?}"))),
        _ => Box::new(jobs::soak(&fixture, mesh, (kills, stops), seed, &mut |tally| println!("{tally:?}"))),
    };
    println!("ok: {done:?}, every run the same as the undisturbed one");
}
