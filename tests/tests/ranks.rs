//! Ranks on every transport: the same list of cases, and what happens when a rank dies, stops, aborts or never comes, with real
//! processes and real signals; unauthenticated connections while ranks meet.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use kernels::Error;
use kernels::cuda::nccl::Nccl;
use kernels::ranks::tcp::{Limits, Listening};
use kernels::ranks::{Failure, Group, Ranks, threads, threads_within};
use tests::need;
use tests::ranks::{TOKEN, behave, each, tcp};
use trainer::Exit;

/// Of processes that are as good as dead.
const SILENCE: Duration = Duration::from_secs(2);

#[test]
fn threads_behave() {
    for size in 1..=8 {
        each(threads(size), |ranks| behave(&ranks));
    }
}

#[test]
fn tcp_behaves() {
    for size in 1..=8 {
        each(tcp(size, Limits::default()), |ranks| behave(&ranks));
    }
}

#[test]
fn processes_behave() {
    for outcome in Job::start("behave", 3, Limits::default()).outcomes() {
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }
}

/// What the job of each transport tells when its last rank does not do its part.
fn failures(make: impl Fn() -> Vec<Arc<dyn Ranks>>, job: impl Fn(&Group) + Sync) -> Vec<String> {
    // A rank that has not yet taken what was sent when the job fails does not get it any more.
    let taken = Barrier::new(3);
    let results = each(make(), |ranks| {
        let group = Group::of(ranks.clone(), (0..ranks.size()).collect());
        group.gather(b"first").expect("all are there");
        taken.wait();
        if ranks.rank() == ranks.size() - 1 {
            drop(ranks);
            job(&group);
            return None;
        }
        let started = Instant::now();
        // Only rank 0 waits for the last one itself; the others wait for rank 0 and hear of it.
        let members = if ranks.rank() == 0 { vec![0, ranks.size() - 1] } else { (0..ranks.size() - 1).collect() };
        let error = Group::of(ranks.clone(), members).gather(b"second").expect_err("a failure");
        assert!(started.elapsed() < Duration::from_secs(3), "{error} after {:?}", started.elapsed());
        assert!(matches!(error, Error::Peer { rank: 2, operation: "gather", .. }), "{error}");
        let again = Group::of(ranks, vec![0, 1]).gather(b"third").expect_err("the same failure");
        assert_eq!(again.to_string(), error.to_string(), "the first cause is final");
        Some(error.to_string())
    });
    results.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_does_not_come_leaves_or_aborts_is_named_by_all() {
    let second = Duration::from_secs(1);
    // Signs of life tell every 0.2 s whom a rank waits for.
    let limits = Limits { operation: second, silence: SILENCE, ..Limits::default() };
    let transports: [&dyn Fn() -> Vec<Arc<dyn Ranks>>; 2] = [&|| threads_within(3, second), &|| tcp(3, limits)];
    for make in transports {
        let late = failures(make, |_| thread::sleep(Duration::from_millis(1500)));
        assert!(late[0].contains("has not come to this operation within 1s"), "{late:?}");
        let left = failures(make, |_| ());
        assert!(left[0].contains("left the job while others still waited for it"), "{left:?}");
        for errors in [late, left] {
            assert_eq!(errors[0], errors[1], "every rank tells the same");
        }
    }
    let transports: [&dyn Fn() -> Vec<Arc<dyn Ranks>>; 2] = [&|| threads(3), &|| tcp(3, Limits::default())];
    for make in transports {
        let results = each(make(), |ranks| {
            let group = Group::of(ranks.clone(), vec![0, 1, 2]);
            if ranks.rank() == 2 {
                ranks.abort(Failure { rank: 2, code: Some(65), reason: "row 7 is damaged".to_owned() });
            }
            let error = group.gather(b"").expect_err("an abort");
            assert!(matches!(error, Error::Peer { rank: 2, code: Some(65), .. }), "{error:?}");
            assert_eq!(trainer::Error::from(error.clone()).exit(), Exit::Data);
            error.to_string()
        });
        // A restart would not help, so none is proposed.
        assert!(results.iter().all(|error| error == "rank 2: row 7 is damaged (during gather)"), "{results:?}");
    }
}

#[test]
fn a_panic_is_told() {
    let transports: [&dyn Fn() -> Vec<Arc<dyn Ranks>>; 2] = [&|| threads(2), &|| tcp(2, Limits::default())];
    for make in transports {
        let mut ranks = make();
        let last = ranks.pop().expect("two ranks");
        let panicking = thread::spawn(move || {
            let _last = last;
            panic!("this is part of the test");
        });
        let error = Group::of(ranks.remove(0), vec![0, 1]).gather(b"").expect_err("a panic");
        assert!(error.to_string().starts_with("rank 1: panicked"), "{error}");
        assert_eq!(trainer::Error::from(error).exit(), Exit::Hardware, "a restart may help");
        assert!(panicking.join().is_err());
    }
}

#[test]
fn members_that_disagree_about_a_sum_are_told() {
    for ranks in [threads(2), tcp(2, Limits::default())] {
        let errors = each(ranks, |ranks| {
            let mut values = vec![0.0; 10 + 10 * ranks.rank()];
            let group = Group::of(ranks, vec![0, 1]);
            let error = group.sum_f32(&mut values).expect_err("another length");
            assert!(values.iter().all(|value| *value == 0.0));
            error.to_string()
        });
        assert!(errors.iter().all(|error| error.contains("all ranks must run the same program")), "{errors:?}");
    }
}

/// Processes of tests/src/bin/rank.rs.
struct Job {
    ranks: Vec<(Child, BufReader<ChildStdout>)>,
}

/// How a process ended.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    /// What it printed since it was running.
    said: String,
    after: Duration,
}

impl Job {
    fn start(job: &str, size: usize, limits: Limits) -> Job {
        let limits = [limits.silence, limits.operation].map(|limit| limit.as_millis().to_string());
        let start = |_| {
            let mut rank = Command::new(env!("CARGO_BIN_EXE_rank"));
            let rank = rank.arg(job).args(&limits).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut rank = rank.spawn().expect("a process");
            let said = BufReader::new(rank.stdout.take().expect("its output is a pipe"));
            (rank, said)
        };
        let mut job = Job { ranks: (0..size).map(start).collect() };
        let addresses: Vec<String> = (0..size).map(|rank| job.line(rank)).collect();
        for (rank, (process, _)) in job.ranks.iter_mut().enumerate() {
            let line = format!("{rank} {}\n", addresses.join(" "));
            process.stdin.take().expect("its input is a pipe").write_all(line.as_bytes()).expect("it reads");
        }
        job
    }

    fn line(&mut self, rank: usize) -> String {
        let mut line = String::new();
        self.ranks[rank].1.read_line(&mut line).expect("it prints");
        line.trim().to_owned()
    }

    /// Waits until all have made their first transfer, and a random moment longer.
    fn running(mut self) -> Job {
        for rank in 0..self.ranks.len() {
            assert_eq!(self.line(rank), "running");
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
        thread::sleep(Duration::from_nanos(u64::from(now.subsec_nanos()) % 200_000_000));
        self
    }

    /// Sends a signal to the last rank.
    fn signal(&self, name: &str) -> &Job {
        let (last, _) = self.ranks.last().expect("a job has ranks");
        let status = Command::new("kill").arg(format!("-{name}")).arg(last.id().to_string()).status();
        assert!(status.expect("kill(1) runs").success());
        self
    }

    /// Sends a signal to all ranks at once.
    fn signal_all(&self, name: &str) {
        let ids = self.ranks.iter().map(|(process, _)| process.id().to_string());
        let status = Command::new("kill").arg(format!("-{name}")).args(ids).status();
        assert!(status.expect("kill(1) runs").success());
    }

    /// Waits for every rank.
    fn outcomes(mut self) -> Vec<Outcome> {
        let count = self.ranks.len();
        self.first_outcomes(count)
    }

    /// Waits for the first `count` ranks.
    fn first_outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let started = Instant::now();
        let wait = |(process, output): &mut (Child, BufReader<ChildStdout>)| {
            let mut said = String::new();
            output.read_to_string(&mut said).expect("it prints");
            let code = process.wait().expect("it ends").code();
            Outcome { code, said, after: started.elapsed() }
        };
        self.ranks.iter_mut().take(count).map(wait).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for (process, _) in &mut self.ranks {
            // Also one that is stopped; most have ended.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// All but the last rank ended with 71 in time and say that it is the last one that failed, and why.
#[track_caller]
fn all_name_the_last(outcomes: &[Outcome], limit: Duration, why: &str) {
    for outcome in outcomes {
        let last = outcome.said.lines().last().unwrap_or_default();
        assert_eq!(outcome.code, Some(71), "{outcome:?}");
        assert!(last.starts_with(&format!("rank {}: ", outcomes.len())) && last.contains(why), "{outcome:?}");
        assert!(outcome.after < limit, "{outcome:?}");
    }
}

#[test]
fn a_rank_killed_mid_transfer_is_named_by_the_survivors() {
    for _ in 0..10 {
        let mut job = Job::start("transfer", 4, Limits::default()).running();
        job.signal("KILL");
        all_name_the_last(&job.first_outcomes(3), Duration::from_secs(10), "its connection");
    }
}

#[test]
fn a_stopped_rank_is_named_within_the_limit() {
    for job in ["transfer", "wait"] {
        let mut job = Job::start(job, 4, Limits { silence: SILENCE, ..Limits::default() }).running();
        job.signal("STOP");
        let outcomes = job.first_outcomes(3);
        all_name_the_last(&outcomes, SILENCE + Duration::from_secs(5), "has given no sign of life for 2s");
        assert!(outcomes[0].after > SILENCE / 2, "no sooner than silence can be told from a pause: {outcomes:?}");
        // When it wakes up it learns that the job went on without it.
        job.signal("CONT");
    }
}

#[test]
fn a_pause_shorter_than_the_limit_disturbs_nobody() {
    let limits = Limits { silence: Duration::from_secs(6), ..Limits::default() };
    let mut job = Job::start("transfer", 3, limits).running();
    job.signal("STOP");
    thread::sleep(Duration::from_secs(2));
    job.signal("CONT");
    thread::sleep(Duration::from_secs(2));
    for (process, _) in &mut job.ranks {
        assert!(process.try_wait().expect("a process").is_none(), "it runs");
    }
}

/// A machine that sleeps, or a scheduler that suspends a whole job: each wakes up to peers that it has not heard for longer than the limit, and
/// none of them has failed.
#[test]
fn a_pause_of_all_ranks_beyond_the_limit_disturbs_nobody() {
    let mut job = Job::start("wait", 4, Limits { silence: SILENCE, ..Limits::default() }).running();
    for _ in 0..3 {
        job.signal_all("STOP");
        thread::sleep(SILENCE + Duration::from_millis(500));
        job.signal_all("CONT");
        thread::sleep(SILENCE / 2);
        for rank in 0..4 {
            let ended = job.ranks[rank].0.try_wait().expect("a process");
            assert!(ended.is_none(), "rank {rank} ended with {ended:?}: {}", job.line(rank));
        }
    }
}

#[test]
fn a_live_rank_that_does_not_come_is_named_after_the_deadline() {
    let limits = Limits { operation: Duration::from_secs(2), ..Limits::default() };
    let mut job = Job::start("wait", 3, limits).running();
    all_name_the_last(&job.first_outcomes(2), Duration::from_secs(7), "has not come to this operation within 2s");
}

#[test]
fn the_cause_of_an_abort_arrives() {
    let outcomes = Job::start("abort", 4, Limits::default()).outcomes();
    all_name_the_last(&outcomes[..3], Duration::from_secs(10), "row 7 of part-0003.parquet is damaged");
    assert!(outcomes[3].said.contains("rank 3: row 7 of part-0003.parquet is damaged"), "{outcomes:?}");
    let outcomes = Job::start("panic", 3, Limits::default()).outcomes();
    all_name_the_last(&outcomes[..2], Duration::from_secs(10), "panicked");
    let outcomes = Job::start("leave", 3, Limits::default()).outcomes();
    all_name_the_last(&outcomes[..2], Duration::from_secs(10), "left the job");
    assert_eq!(outcomes[2].code, Some(0), "what it sent before it left has arrived: {outcomes:?}");
}

/// Two ranks that meet, with time in between for other connections.
fn meet_after(others: impl FnOnce(&[SocketAddr])) -> Vec<Arc<dyn Ranks>> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let [first, second] = [(); 2].map(|()| Listening::bind(any).expect("a free port"));
    let addresses = [first.address(), second.address()];
    thread::scope(|scope| {
        let first = scope.spawn(|| first.meet(0, &addresses, &TOKEN, Limits::default()).expect("rank 1 comes"));
        others(&addresses);
        let second = second.meet(1, &addresses, &TOKEN, Limits::default()).expect("rank 0 is there");
        vec![first.join().expect("rank 0"), second]
    })
}

#[test]
fn ten_thousand_unauthenticated_connections_do_not_disturb_a_meeting() {
    let (ended, admitted, came) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let hello: Vec<u8> = [b"sae-rnk1", &[2, 0, 0, 0][..], &[1, 0, 0, 0], &[0; 4], &[7; 32], &[9; 32]].concat();
    let started = Instant::now();
    let knock = |address: SocketAddr| {
        // A meeting that fails must not leave them knocking.
        while !ended.load(Ordering::Relaxed) && started.elapsed() < Duration::from_secs(120) {
            let number = came.fetch_add(1, Ordering::Relaxed);
            let Ok(mut stream) = TcpStream::connect(address) else { continue };
            let garbage: Vec<u8> = (0..200).map(|at| (at * number) as u8).collect();
            let say: &[u8] = [&garbage[..], &hello[..40], &hello, b""][number % 4];
            let _ = stream.write_all(say);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            // A nonce and a proof are all that an unauthenticated connection gets.
            admitted.fetch_add(usize::from(answer.len() > 64), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let mut ranks = meet_after(|addresses| {
            let address = addresses[0];
            (0..4).for_each(|_| drop(scope.spawn(move || knock(address))));
            while came.load(Ordering::Relaxed) < 10_000 {
                thread::sleep(Duration::from_millis(10));
            }
        });
        ended.store(true, Ordering::Relaxed);
        ranks = each(ranks, |ranks| {
            behave(&ranks);
            ranks
        });
        drop(ranks);
    });
    println!("{} connections", came.load(Ordering::Relaxed));
    assert_eq!(admitted.load(Ordering::Relaxed), 0);
}

#[test]
fn unauthenticated_connections_that_stay_make_room() {
    let mut held = Vec::new();
    let started = Instant::now();
    let ranks = meet_after(|addresses| {
        held.extend((0..400).filter_map(|_| TcpStream::connect(addresses[0]).ok()));
        // One byte now and then, so that no single wait is long.
        held.iter_mut().for_each(|stream| drop(stream.write_all(b"s")));
    });
    assert!(started.elapsed() < Duration::from_secs(5), "met after {:?}", started.elapsed());
    each(ranks, |ranks| behave(&ranks));
}

#[test]
fn a_rank_with_another_token_or_of_another_job_is_not_let_in() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    // Long enough that both have spoken before one of them gives up, on a loaded machine too.
    let limits = Limits { meeting: Duration::from_secs(4), ..Limits::default() };
    let meet = |ranks: [(usize, [u8; 32], usize); 2]| {
        let listening = [(); 2].map(|()| Listening::bind(any).expect("a free port"));
        let addresses: Vec<SocketAddr> = listening.iter().map(Listening::address).collect();
        let both: Vec<_> = listening.into_iter().zip(ranks).collect();
        thread::scope(|scope| {
            let start = |(listening, (rank, token, size)): (Listening, (usize, [u8; 32], usize))| {
                let mut addresses = addresses.clone();
                addresses.resize(size, addresses[0]);
                scope.spawn(move || listening.meet(rank, &addresses, &token, limits).map(drop))
            };
            let both: Vec<_> = both.into_iter().map(start).collect();
            both.into_iter().map(|rank| rank.join().expect("no panic").expect_err("no meeting").to_string()).collect()
        })
    };
    let errors: Vec<String> = meet([(0, TOKEN, 2), (1, [1; 32], 2)]);
    assert!(errors[0].starts_with("rank 1: could not be met within 4s: it has not connected"), "{errors:?}");
    assert!(errors[1].contains("does not know the job's token"), "{errors:?}");
    let errors: Vec<String> = meet([(0, TOKEN, 2), (1, TOKEN, 3)]);
    assert!(errors[1].contains("it belongs to another job"), "{errors:?}");
}

#[test]
fn an_address_that_is_not_ours_is_named() {
    let error = Listening::bind(SocketAddr::from(([192, 0, 2, 1], 0))).expect_err("an address for examples");
    assert!(error.to_string().contains("cannot listen at 192.0.2.1:0"), "{error}");
}

/// Passes bytes on in both directions until the link is cut; connections stay open, as they do when a cable is pulled.
fn link(to: SocketAddr, cut: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a port");
    thread::spawn(move || {
        let (dialler, _) = listener.accept().expect("a dialler");
        let listening = TcpStream::connect(to).expect("a rank listens");
        let pass = |mut from: TcpStream, mut to: TcpStream| {
            let cut = cut.clone();
            thread::spawn(move || {
                let mut bytes = [0; 1 << 12];
                while let Ok(read @ 1..) = from.read(&mut bytes) {
                    if !cut.load(Ordering::Relaxed) && to.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
                while cut.load(Ordering::Relaxed) {
                    thread::park();
                }
                let _ = to.shutdown(Shutdown::Both);
            });
        };
        pass(dialler.try_clone().expect("a handle"), listening.try_clone().expect("a handle"));
        pass(listening, dialler);
    });
    address
}

#[test]
fn a_cut_network_is_noticed_on_both_sides() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let limits = Limits { silence: SILENCE, ..Limits::default() };
    let [first, second] = [(); 2].map(|()| Listening::bind(any).expect("a free port"));
    let cut = Arc::new(AtomicBool::new(false));
    let addresses = [link(first.address(), cut.clone()), second.address()];
    let meet = |rank, listening: Listening| move || listening.meet(rank, &addresses, &TOKEN, limits).expect("all meet");
    let second = thread::spawn(meet(1, second));
    let ranks = vec![meet(0, first)(), second.join().expect("a rank")];
    let taken = Barrier::new(2);
    each(ranks, |ranks| {
        let group = Group::of(ranks.clone(), vec![0, 1]);
        group.gather(b"first").expect("a whole network");
        // Longer than silence may last: signs of life keep an idle job together.
        thread::sleep(SILENCE + SILENCE / 2);
        group.gather(b"second").expect("a whole network");
        taken.wait();
        cut.store(true, Ordering::Relaxed);
        let started = Instant::now();
        let error = group.gather(&[0; 1 << 20]).expect_err("a cut network").to_string();
        assert!(error.starts_with(&format!("rank {}: has given no sign of life", 1 - ranks.rank())), "{error}");
        assert!(started.elapsed() < SILENCE + Duration::from_secs(5), "after {:?}", started.elapsed());
    });
}

/// What of NCCL needs no GPU.
#[test]
fn nccl_is_found_or_asked_for() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let error = Nccl::find(Some(empty.path())).expect_err("an empty folder");
    let words = error.to_string();
    assert!(words.contains("libnccl.so.2") && words.contains("SAE_NCCL") && words.contains("pip install"), "{words}");
    assert_eq!(trainer::Error::from(error).exit(), Exit::Arguments, "a restart would not help");
    let Some(folder) = need::nccl() else { return };
    let nccl = Nccl::find(Some(&folder)).expect("NCCL");
    assert!(nccl.version().starts_with("2."), "{}", nccl.version());
    assert_ne!(nccl.unique_id().expect("an id"), nccl.unique_id().expect("another id"));
}
