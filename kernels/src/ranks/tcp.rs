//! Ranks that are processes, over TCP: for runs on processors, on one machine or a network that is trusted, and for tests of
//! what happens when processes fail. GPUs talk through NCCL.
//!
//! Every pair of ranks has a connection ([`Listening::meet`]) and each rank a thread for each of its peers that receives, so two ranks
//! that send each other more than the system buffers do not wait for each other. One more thread sends a sign of life
//! to every peer and counts one as lost that has sent nothing for [`Limits::silence`]: a process that was stopped and a cut network keep
//! their connections. The same thread tells everybody the first failure that its rank heard of, so that all ranks name the same
//! cause. TCP's own keep-alive is not used: it notices neither sooner nor more.
//!
//! A peer has to know the job's token; what follows is neither encrypted nor signed.

mod frame;
mod meeting;

pub use meeting::Listening;

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::mailbox::{Failure, Mailbox};
use super::{DEADLINE, Ranks};
use crate::Error;
use frame::{Event, Incoming, Kind, MOST, NOBODY, Outgoing, PIECE};

/// How long one rank waits for others.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For all to meet.
    pub meeting: Duration,
    /// For another rank to come to the same operation.
    pub operation: Duration,
    /// For a sign of life. Each rank gives ten in this time.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { meeting: Duration::from_secs(60), operation: DEADLINE, silence: Duration::from_secs(8) }
    }
}

/// How long a sender waits for room in the system's buffers before it looks whether the job still stands.
const ROOM: Duration = Duration::from_millis(100);

/// How long a rank that leaves waits for others to have read its last words.
const LINGER: Duration = Duration::from_secs(2);

/// One rank of a job.
#[derive(Debug)]
struct Tcp {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    watch: Option<JoinHandle<()>>,
}

/// What its threads have in common.
#[derive(Debug)]
struct Shared {
    rank: usize,
    limits: Limits,
    mailbox: Mailbox,
    /// By rank; none to oneself.
    links: Vec<Option<Link>>,
    orders: Sender<Order>,
    sent: AtomicU64,
    exchanging_ns: AtomicU64,
    /// Links count from here.
    started: Instant,
}

/// The connection to a peer.
#[derive(Debug)]
struct Link {
    stream: Arc<TcpStream>,
    outgoing: Mutex<Outgoing>,
    /// When something came from it last, in ms since the start. Before it has sent anything, the end of the meeting: it may
    /// still be meeting others.
    heard_ms: AtomicU64,
    /// The rank that it waited for at its last sign of life, or [`NOBODY`].
    awaited: AtomicU32,
    /// It has said that nothing will follow.
    left: AtomicBool,
}

/// To the thread that watches.
enum Order {
    /// Tell everybody the first failure, and end.
    Tell,
    /// Say good-bye, and end.
    Leave,
}

impl Tcp {
    /// Takes over one connection to each other rank, in their order; there is none to `rank` itself.
    fn start(rank: usize, streams: Vec<Option<Arc<TcpStream>>>, limits: Limits) -> Result<Self, Error> {
        let (orders, received) = channel();
        let heard_ms = limits.meeting.as_millis() as u64;
        let link = |stream: Arc<TcpStream>| Link {
            outgoing: Mutex::new(Outgoing::new(stream.clone())),
            stream,
            heard_ms: AtomicU64::new(heard_ms),
            awaited: AtomicU32::new(NOBODY),
            left: AtomicBool::new(false),
        };
        let shared = Arc::new(Shared {
            rank,
            limits,
            mailbox: Mailbox::new(rank, streams.len()),
            links: streams.into_iter().map(|stream| stream.map(link)).collect(),
            orders,
            sent: AtomicU64::new(0),
            exchanging_ns: AtomicU64::new(0),
            started: Instant::now(),
        });
        let mut tcp = Tcp { shared: shared.clone(), readers: Vec::new(), watch: None };
        for (from, link) in shared.links().filter(|(from, _)| *from != rank) {
            link.stream
                .set_read_timeout(None)
                .and(link.stream.set_write_timeout(Some(ROOM)))
                .map_err(Error::threads)?;
            let (shared, name) = (shared.clone(), format!("from-rank-{from}"));
            let reader = thread::Builder::new().name(name).spawn(move || shared.receive(from));
            tcp.readers.push(reader.map_err(Error::threads)?);
        }
        let watch = thread::Builder::new().name("ranks".to_owned()).spawn(move || shared.watch(&received));
        tcp.watch = Some(watch.map_err(Error::threads)?);
        Ok(tcp)
    }
}

impl Shared {
    /// The peers with their ranks.
    fn links(&self) -> impl Iterator<Item = (usize, &Link)> {
        self.links.iter().enumerate().filter_map(|(rank, link)| link.as_ref().map(|link| (rank, link)))
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Remembers a failure and has it told; the first one counts.
    fn fail(&self, failure: Failure) {
        self.mailbox.fail(failure);
        // Without a thread that watches the rank is leaving.
        let _ = self.orders.send(Order::Tell);
    }

    /// Receives from one peer until it leaves or fails.
    fn receive(&self, from: usize) {
        let Some(link) = &self.links[from] else { return };
        let mut incoming = Incoming::new(&*link.stream, self.links.len());
        loop {
            match incoming.next() {
                Ok(Event::Beat { awaited }) => link.awaited.store(awaited, Ordering::Relaxed),
                Ok(Event::Part) => {}
                Ok(Event::Message(message)) => self.mailbox.put(from, message),
                Ok(Event::Abort(failure)) => return self.fail(failure),
                Ok(Event::Leave) => {
                    link.left.store(true, Ordering::Relaxed);
                    self.mailbox.leave(from);
                    // It waits for this, to know that everything was read.
                    let _ = link.stream.shutdown(Shutdown::Write);
                    return;
                }
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    let reason = "its connection closed without a word: it died or was killed".to_owned();
                    return self.fail(Failure::seen(from, reason));
                }
                Err(error) => {
                    return self.fail(Failure::seen(from, format!("its connection broke: {error}")));
                }
            }
            link.heard_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// Gives signs of life and misses those of others, until there is a failure to tell or the rank leaves.
    fn watch(&self, orders: &Receiver<Order>) {
        let interval = self.limits.silence / 10;
        let (mut last, mut awake_since_ms) = (Instant::now(), 0);
        loop {
            match orders.recv_timeout(interval) {
                Ok(Order::Tell) => return self.tell(),
                Ok(Order::Leave) | Err(RecvTimeoutError::Disconnected) => {
                    for (_, link) in self.links() {
                        link.send(Kind::Leave, &[], &|| true);
                        let _ = link.stream.shutdown(Shutdown::Write);
                    }
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let awaited = self.mailbox.awaited().map_or(NOBODY, |rank| rank as u32).to_le_bytes();
            for (_, link) in self.links() {
                // A thread that is sending a message gives a sign of life by that.
                if let Ok(mut outgoing) = link.outgoing.try_lock() {
                    outgoing.send(Kind::Beat, &awaited, &|| true);
                }
            }
            // After a pause of its own a rank has not read what others sent meanwhile, and they may have paused with it and wake up later:
            // all have as long again as they always have.
            if last.elapsed() >= interval * 3 {
                awake_since_ms = self.now_ms();
            }
            self.miss(awake_since_ms);
            last = Instant::now();
        }
    }

    /// Fails when a peer has been silent for too long, of the time since this rank was last awake.
    fn miss(&self, awake_since_ms: u64) {
        let (now_ms, limit) = (self.now_ms(), self.limits.silence);
        let silent = |link: &Link| {
            let silence_ms = now_ms.saturating_sub(link.heard_ms.load(Ordering::Relaxed).max(awake_since_ms));
            !link.left.load(Ordering::Relaxed) && u128::from(silence_ms) > limit.as_millis()
        };
        if let Some((rank, _)) = self.links().find(|(_, link)| silent(link)) {
            let reason = format!("has given no sign of life for {limit:.0?}: it was stopped, or the network is cut");
            self.fail(Failure::seen(rank, reason));
        }
    }

    /// Tells every peer the first failure. The one that failed may be stopped and take nothing.
    fn tell(&self) {
        let Some(failure) = self.mailbox.failure() else { return };
        let payload = frame::abort(&failure);
        for (_, link) in self.links() {
            link.send(Kind::Abort, &payload, &|| true);
            let _ = link.stream.shutdown(Shutdown::Write);
        }
    }

    /// Sends a message. That it could not be sent is reported by receiving, which knows why.
    fn send(&self, to: usize, message: &[u8], since: Instant) {
        let Some(link) = &self.links[to] else { return };
        let give_up = || self.mailbox.failure().is_some() || since.elapsed() > self.limits.operation;
        let mut going = link.send(Kind::Start, &(message.len() as u64).to_le_bytes(), &give_up);
        for piece in message.chunks(PIECE) {
            going = going && self.mailbox.failure().is_none() && link.send(Kind::Piece, piece, &give_up);
        }
        if going {
            self.sent.fetch_add(message.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Link {
    fn send(&self, kind: Kind, payload: &[u8], give_up: &dyn Fn() -> bool) -> bool {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).send(kind, payload, give_up)
    }
}

impl Ranks for Tcp {
    fn rank(&self) -> usize {
        self.shared.rank
    }

    fn size(&self) -> usize {
        self.shared.links.len()
    }

    fn exchange(&self, with: &[usize], messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, Error> {
        assert_eq!(with.len(), messages.len(), "one message for each rank");
        let (shared, since) = (&*self.shared, Instant::now());
        if let Some(message) = messages.iter().find(|message| message.len() as u64 > MOST) {
            let reason =
                format!("has {} bytes for one rank, and {MOST} can be sent: make batches smaller", message.len());
            let failure = Failure::seen(shared.rank, reason);
            self.abort(failure.clone());
            return Err(failure.during("exchange"));
        }
        // Each begins with the one after itself, so that not all send to the same.
        let after = with.iter().position(|&to| to == shared.rank).map_or(0, |at| at + 1);
        for at in (after..with.len()).chain(0..after) {
            match with[at] {
                to if to == shared.rank => shared.mailbox.put(to, messages[at].to_vec()),
                to => shared.send(to, messages[at], since),
            }
        }
        let awaited_by = |rank: usize| {
            let awaited = shared.links[rank].as_ref().map(|link| link.awaited.load(Ordering::Relaxed) as usize);
            awaited.filter(|awaited| *awaited < shared.links.len())
        };
        let take = |&from| shared.mailbox.take(from, since, shared.limits.operation, awaited_by);
        let received: Result<_, Failure> = with.iter().map(take).collect();
        shared.exchanging_ns.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        received.map_err(|failure| {
            shared.fail(failure.clone());
            failure.during("exchange")
        })
    }

    fn abort(&self, failure: Failure) {
        self.shared.fail(failure);
        // The process may end next; the others should have been told by then.
        wait_for(&self.watch);
    }

    fn check(&self) -> Result<(), Error> {
        self.shared.mailbox.check()
    }

    fn bytes_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    fn exchanging(&self) -> Duration {
        Duration::from_nanos(self.shared.exchanging_ns.load(Ordering::Relaxed))
    }
}

/// Waits for threads to end, for at most [`LINGER`].
fn wait_for<'a>(threads: impl IntoIterator<Item = &'a JoinHandle<()>> + Copy) {
    let since = Instant::now();
    while since.elapsed() < LINGER && !threads.into_iter().all(JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if thread::panicking() {
            self.abort(Failure::seen(self.shared.rank, "panicked".to_owned()));
        }
        // After a failure the thread has ended, and everybody was told.
        let _ = self.shared.orders.send(Order::Leave);
        // Closing a connection before the other side has read everything would lose the end of what was sent.
        wait_for(&self.watch);
        // A peer that failed reads nothing any more, and may be stopped and never close its end.
        let failed = self.shared.mailbox.failure().map(|failure| failure.rank);
        for (_, link) in self.shared.links().filter(|&(rank, _)| Some(rank) == failed) {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        wait_for(&self.readers);
        for (_, link) in self.shared.links() {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        for thread in self.readers.drain(..).chain(self.watch.take()) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
