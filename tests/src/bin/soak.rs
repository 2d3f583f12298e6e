//! Kills runs at random moments and resumes them, as often as asked: `cargo run -p tests --bin soak -- --kills 100`.
//! Exit code 0: every run that came to its end was the same as an undisturbed one, bit for bit.

use tests::fixture::Fixture;
use tests::kills::soak;

fn main() {
    let (mut kills, mut seed) = (100, std::process::id().into());
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (name.as_str(), value) {
            ("--kills", Some(value)) => kills = value as u32,
            ("--seed", Some(value)) => seed = value,
            _ => {
                eprintln!("usage: soak [--kills N] [--seed N]");
                std::process::exit(64);
            }
        }
    }
    println!("{kills} kills, seed {seed}");
    let fixture = Fixture::with_data();
    let tally = soak(&fixture, kills, seed, &mut |tally| {
        println!(
            "{} kills, {} with a checkpoint, {} runs finished",
            tally.kills, tally.with_checkpoint, tally.finished
        );
    });
    println!("ok: {} kills, {} runs finished, every one the same as the undisturbed one", tally.kills, tally.finished);
}
