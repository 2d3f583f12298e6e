//! One rank of a job over TCP, for tests/tests/ranks.rs: `rank JOB SILENCE_MS OPERATION_MS`. Prints its address; reads its index and the
//! addresses of all ranks in a line. Exit code 71 when the job failed, with the reason as the last line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kernels::Error;
use kernels::ranks::tcp::{Limits, Listening};
use kernels::ranks::{Failure, Group, Ranks};
use tests::ranks::{TOKEN, behave};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [job, silence_ms, operation_ms] = &arguments[..] else { panic!("usage: rank JOB SILENCE_MS OPERATION_MS") };
    let limit = |ms: &str| Duration::from_millis(ms.parse().expect("a number"));
    let limits = Limits { silence: limit(silence_ms), operation: limit(operation_ms), ..Limits::default() };
    let listening = Listening::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    println!("{}", listening.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    let mut words = line.split_whitespace();
    let rank: usize = words.next().and_then(|word| word.parse().ok()).expect("an index");
    let addresses: Vec<SocketAddr> = words.map(|word| word.parse().expect("an address")).collect();
    let done = listening.meet(rank, &addresses, &TOKEN, limits).and_then(|ranks| run(job, &ranks));
    if let Err(error) = done {
        println!("{error}");
        std::process::exit(71);
    }
}

/// The last rank is the one that things happen to.
fn run(job: &str, ranks: &Arc<dyn Ranks>) -> Result<(), Error> {
    let group = Group::of(ranks.clone(), (0..ranks.size()).collect());
    let last = ranks.rank() == ranks.size() - 1;
    match job {
        "behave" => behave(ranks),
        // Never between two transfers for long.
        "transfer" => transfer(&group, usize::MAX)?,
        "wait" => {
            transfer(&group, 1)?;
            if last {
                std::thread::sleep(Duration::from_secs(600));
            }
            transfer(&group, 1)?;
        }
        "abort" => {
            transfer(&group, 3)?;
            if last {
                let reason = "row 7 of part-0003.parquet is damaged".to_owned();
                ranks.abort(Failure { rank: ranks.rank(), code: Some(65), reason });
            }
            transfer(&group, 1)?;
        }
        "panic" => {
            transfer(&group, 3)?;
            assert!(!last, "the last rank panics");
            transfer(&group, 1)?;
        }
        "leave" => {
            transfer(&group, 3)?;
            if !last {
                transfer(&group, 1)?;
            }
        }
        other => panic!("no job is called {other}"),
    }
    Ok(())
}

fn transfer(group: &Group, times: usize) -> Result<(), Error> {
    let message = vec![group.index() as u8; 8 << 20];
    for time in 0..times {
        group.gather(&message)?;
        if time == 0 {
            println!("running");
        }
    }
    Ok(())
}
