//! What ranks must do, as one list of cases for every transport. Each rank of a job calls [`behave`]; what it must receive
//! follows from who it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kernels::ranks::tcp::{Limits, Listening};
use kernels::ranks::{Group, Ranks};

/// Of the jobs in tests.
pub const TOKEN: [u8; 32] = [0x5a; 32];

/// A case by its name.
pub type Case = (&'static str, fn(&Arc<dyn Ranks>));

/// Every case. Sizes are those of 1 to 8 ranks.
pub const CASES: [Case; 7] = [
    ("messages of any length", messages_of_any_length),
    ("gathers keep the order of members", gathers),
    ("sums are those of a serial sum in the order of members", sums),
    ("groups are apart from each other", groups),
    ("ranks may be fast or slow", rounds),
    ("long messages cross", long_messages),
    ("bytes are counted", bytes_sent),
];

/// Goes through every case as one rank of a job.
///
/// # Panics
/// When one fails.
pub fn behave(ranks: &Arc<dyn Ranks>) {
    for (name, case) in CASES {
        println!("rank {} of {}: {name}", ranks.rank(), ranks.size());
        case(ranks);
    }
}

/// `size` ranks over TCP in this process, by their indices.
///
/// # Panics
/// When they do not meet.
pub fn tcp(size: usize, limits: Limits) -> Vec<Arc<dyn Ranks>> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listening: Vec<Listening> = (0..size).map(|_| Listening::bind(any).expect("a free port")).collect();
    let addresses: Vec<SocketAddr> = listening.iter().map(Listening::address).collect();
    std::thread::scope(|scope| {
        let meet = |(rank, listening): (usize, Listening)| {
            let addresses = &addresses;
            scope.spawn(move || listening.meet(rank, addresses, &TOKEN, limits).expect("all ranks meet"))
        };
        let meeting: Vec<_> = listening.into_iter().enumerate().map(meet).collect();
        meeting.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    })
}

/// Runs `job` as each of the ranks, on threads of their own; what each gives, in their order.
///
/// # Panics
/// When one does.
pub fn each<T: Send>(ranks: Vec<Arc<dyn Ranks>>, job: impl Fn(Arc<dyn Ranks>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || job(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank that does not panic")).collect()
    })
}

fn all(ranks: &Arc<dyn Ranks>) -> Group {
    Group::of(ranks.clone(), (0..ranks.size()).collect())
}

/// What `from` says to `to` in a round: 0 to 300 bytes.
fn words(from: usize, to: usize, round: usize) -> Vec<u8> {
    let len = (from * 97 + to * 61 + round * 37) % 301;
    (0..len).map(|at| (at * 7 + from * 31 + to * 17 + round) as u8).collect()
}

fn messages_of_any_length(ranks: &Arc<dyn Ranks>) {
    let (me, group) = (ranks.rank(), all(ranks));
    for round in 0..50 {
        let sent = (0..group.size()).map(|to| words(me, to, round)).collect();
        let expected: Vec<_> = (0..group.size()).map(|from| words(from, me, round)).collect();
        assert_eq!(group.exchange(sent).expect("an exchange"), expected);
    }
    let empty = vec![Vec::new(); group.size()];
    assert_eq!(group.exchange(empty.clone()).expect("an exchange"), empty);
    // TCP cuts messages into pieces of 256 KiB: one less, as many, one more, and two of them.
    for len in [(256 << 10) - 1, 256 << 10, (256 << 10) + 1, 512 << 10] {
        let said = |from: usize| (0..len).map(|at| (at % 241 + from) as u8).collect::<Vec<u8>>();
        let gathered = group.gather(&said(me)).expect("a gather");
        assert!(gathered.iter().enumerate().all(|(from, bytes)| *bytes == said(from)), "{len} bytes");
    }
    // One says much, the others nothing.
    let long = vec![me as u8; if me == 0 { 1 << 20 } else { 0 }];
    let gathered = group.gather(&long).expect("a gather");
    assert!(gathered.iter().enumerate().all(|(from, bytes)| bytes.len() == if from == 0 { 1 << 20 } else { 0 }));
}

fn gathers(ranks: &Arc<dyn Ranks>) {
    let group = all(ranks);
    let expected: Vec<_> = (0..group.size()).map(|from| words(from, 9, 1)).collect();
    assert_eq!(group.gather(&words(group.index(), 9, 1)).expect("a gather"), expected);
    let backwards = Group::of(ranks.clone(), (0..ranks.size()).rev().collect());
    assert_eq!(backwards.index(), ranks.size() - 1 - ranks.rank());
    let expected: Vec<_> = expected.into_iter().rev().collect();
    assert_eq!(backwards.gather(&words(ranks.rank(), 9, 1)).expect("a gather"), expected);
}

/// A value of a rank, of very different sizes, so that the order of additions shows in the bits.
fn value(rank: usize, at: usize) -> f64 {
    let hash = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(rank as u32 * 9 + 1) >> 11;
    (hash as f64 / (1_u64 << 52) as f64 - 1.0) * 10_f64.powi((hash % 13) as i32 - 6)
}

/// `((v₀ + v₁) + v₂) + …` over `members`, in their order.
fn serial<T: std::ops::Add<Output = T>>(members: &[usize], value: impl Fn(usize) -> T) -> T {
    members.iter().map(|&member| value(member)).reduce(|sum, value| sum + value).expect("a group has members")
}

fn check_sums(group: &Group, members: &[usize], len: usize) {
    let me = members[group.index()];
    let mut single: Vec<f32> = (0..len).map(|at| value(me, at) as f32).collect();
    let mut double: Vec<f64> = (0..len).map(|at| value(me, at)).collect();
    group.sum_f32(&mut single).expect("a sum");
    group.sum_f64(&mut double).expect("a sum");
    for at in 0..len {
        let expected = serial(members, |member| value(member, at) as f32);
        assert_eq!(single[at].to_bits(), expected.to_bits(), "value {at} of {len} over {members:?}");
        let expected = serial(members, |member| value(member, at));
        assert_eq!(double[at].to_bits(), expected.to_bits(), "value {at} of {len} over {members:?}");
    }
}

fn sums(ranks: &Arc<dyn Ranks>) {
    let members: Vec<usize> = (0..ranks.size()).collect();
    for len in [0, 1, 2, 7, 8, 1000, 100_003] {
        check_sums(&all(ranks), &members, len);
    }
    // What is special stays special, down to the sign of a zero.
    let mut values = [-0.0, f32::INFINITY, f32::NAN];
    all(ranks).sum_f32(&mut values).expect("a sum");
    assert_eq!((values[0].to_bits(), values[1]), ((-0.0_f32).to_bits(), f32::INFINITY));
    assert!(values[2].is_nan());
}

fn groups(ranks: &Arc<dyn Ranks>) {
    let (me, size) = (ranks.rank(), ranks.size());
    // Rows and columns of every mesh with so many ranks, both at once.
    for columns in (1..=size).filter(|columns| size.is_multiple_of(*columns)) {
        let row: Vec<usize> = (0..columns).map(|column| me / columns * columns + column).collect();
        let column: Vec<usize> = (0..size / columns).map(|row| row * columns + me % columns).collect();
        for round in 0..5 {
            check_sums(&Group::of(ranks.clone(), row.clone()), &row, 10 + round);
            check_sums(&Group::of(ranks.clone(), column.clone()), &column, 100 + round);
        }
        let backwards: Vec<usize> = row.into_iter().rev().collect();
        check_sums(&Group::of(ranks.clone(), backwards.clone()), &backwards, 33);
    }
    check_sums(&Group::alone(), &[0], 5);
    let alone = Group::of(ranks.clone(), vec![me]);
    assert_eq!(alone.exchange(vec![words(me, me, 3)]).expect("an exchange"), [words(me, me, 3)]);
}

fn rounds(ranks: &Arc<dyn Ranks>) {
    let group = all(ranks);
    for round in 0..300 {
        if (round * 7 + group.index() * 13).is_multiple_of(50) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let gathered = group.gather(&[group.index() as u8, round as u8]).expect("a gather");
        assert!(gathered.iter().enumerate().all(|(from, bytes)| *bytes == [from as u8, round as u8]));
    }
}

/// 64 MiB both ways between two ranks, which is more than any buffer of a connection; less between more, for the sake of memory.
fn long_messages(ranks: &Arc<dyn Ranks>) {
    let group = all(ranks);
    let len = (128 << 20) / group.size().pow(2).max(2) + group.index();
    let message = |from: usize, len: usize| (0..len).map(|at| (at % 251 + from) as u8).collect::<Vec<u8>>();
    let gathered = group.gather(&message(group.index(), len)).expect("a gather");
    for (from, bytes) in gathered.iter().enumerate() {
        assert!(*bytes == message(from, len - group.index() + from), "what rank {from} said");
    }
}

fn bytes_sent(ranks: &Arc<dyn Ranks>) {
    let (group, size) = (all(ranks), ranks.size() as u64);
    let before = group.bytes_sent();
    group.gather(&[0; 100]).expect("a gather");
    assert_eq!(group.bytes_sent() - before, 100 * (size - 1));
    let before = group.bytes_sent();
    group.sum_f32(&mut vec![1.0; 840]).expect("a sum");
    assert_eq!(group.bytes_sent() - before, 2 * 4 * 840 * (size - 1) / size, "the bytes of an all-reduce");
}
