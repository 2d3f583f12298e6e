//! How ranks find each other: every one listens, the higher of two dials the lower, and both prove that they know the job's token
//! before anything else is read.
//!
//! | from | bytes |
//! |---|---|
//! | dialler | [`MAGIC`], ranks of the job, its rank, the other's rank (u32 each), a nonce of 32 bytes |
//! | listener | a nonce of 32 bytes, its proof |
//! | dialler | its proof |
//! | listener | [`WELCOME`] |
//!
//! A proof is the BLAKE3 hash, keyed with the token, of who proves, the hello and the listener's nonce. Both nonces are in both
//! proofs, so neither can be played back; hashes are compared in constant time.
//!
//! Anyone can connect while ranks meet. A handshake has few bytes and little time, and a connection that stalls makes room for
//! the next: diallers that were pushed out by a flood try again. Nobody listens once all have met.

use std::collections::VecDeque;
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::{Limits, Tcp};
use crate::Error;
use crate::ranks::{Failure, Ranks};

/// What every dialler says first: the protocol and its version.
const MAGIC: &[u8; 8] = b"sae-rnk1";

/// The listener's last word: the dialler is in.
const WELCOME: &[u8] = b"!";

const HELLO: usize = MAGIC.len() + 3 * 4 + NONCE;
const NONCE: usize = 32;
const PROOF: usize = blake3::OUT_LEN;

/// Time for a handshake: a few round trips and a busy machine.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Handshakes at once. Of more than that the oldest gives way, when it had this long.
const AT_ONCE: usize = 256;
const AT_LEAST: Duration = Duration::from_millis(100);

/// Between two attempts to dial, and between two looks at who has come.
const RETRY: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(2);

/// A rank that others can dial, before it has met them.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

/// A connection and whose it is.
type Met = (usize, Arc<TcpStream>);

/// What a handshake is about.
#[derive(Clone, Copy)]
struct Job<'a> {
    rank: usize,
    size: usize,
    token: &'a [u8; 32],
    /// Of the meeting.
    deadline: Instant,
}

/// A connection that has not yet proved that it knows the token of the job.
struct Unauthenticated {
    stream: Arc<TcpStream>,
    since: Instant,
    /// It was let in, failed, or was pushed out: the first to set this decides.
    decided: Arc<AtomicBool>,
}

impl Listening {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn bind(address: SocketAddr) -> Result<Listening, Error> {
        let failed = |error: IoError| Error::Listen { address, source: error.into() };
        let listener = TcpListener::bind(address).map_err(failed)?;
        // Accepting takes turns with looking at who has proved what.
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Listening { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects to all other ranks, whose addresses are given by rank; that of `rank` itself is not used. All ranks of a job, and
    /// nobody else, know its `token`. Returns when every connection is there.
    ///
    /// # Errors
    /// [`Error::Peer`] with a rank that has not been met within [`Limits::meeting`]; [`Error::Threads`].
    ///
    /// # Panics
    /// When there is no address for `rank`.
    pub fn meet(
        self,
        rank: usize,
        addresses: &[SocketAddr],
        token: &[u8; 32],
        limits: Limits,
    ) -> Result<Arc<dyn Ranks>, Error> {
        assert!(rank < addresses.len(), "one address for each rank");
        let deadline = Instant::now() + limits.meeting;
        let job = Job { rank, size: addresses.len(), token, deadline };
        let ended = AtomicBool::new(false);
        // Why each of the ranks that are dialled has not been met yet.
        let excuses = Mutex::new(vec![None; rank]);
        let streams = thread::scope(|scope| {
            let (sender, met) = channel();
            for (peer, address) in addresses.iter().enumerate().take(rank) {
                let (sender, ended, excuses) = (sender.clone(), &ended, &excuses);
                let dial = move || dial(job, peer, *address, ended, excuses, &sender);
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, dial) {
                    // Those that were spawned end by it.
                    ended.store(true, Ordering::Relaxed);
                    return Err(Error::threads(error));
                }
            }
            let streams = self.receive(scope, job, &sender, &met);
            ended.store(true, Ordering::Relaxed);
            Ok(streams)
        })?;
        let missing = (0..job.size).find(|&peer| peer != rank && streams[peer].is_none());
        if let Some(peer) = missing {
            let excuses = excuses.into_inner().unwrap_or_else(PoisonError::into_inner);
            let excuse = excuses.into_iter().nth(peer).flatten().unwrap_or("it has not connected".to_owned());
            let reason = format!("could not be met within {:.0?}: {excuse}", limits.meeting);
            return Err(Failure::seen(peer, reason).during("meeting"));
        }
        Ok(Arc::new(Tcp::start(rank, streams, limits)?))
    }

    /// Lets connections in that prove themselves, until everybody has been met or the time is over. The streams by rank.
    fn receive<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        job: Job<'scope>,
        sender: &Sender<Met>,
        met: &Receiver<Met>,
    ) -> Vec<Option<Arc<TcpStream>>> {
        let mut streams: Vec<Option<Arc<TcpStream>>> = vec![None; job.size];
        let mut unauthenticated = VecDeque::new();
        while streams.iter().flatten().count() + 1 < job.size && Instant::now() < job.deadline {
            unauthenticated.retain(|connection: &Unauthenticated| !connection.decided.load(Ordering::Acquire));
            let full = unauthenticated.len() >= AT_ONCE;
            if full && unauthenticated.front().is_some_and(|oldest| oldest.since.elapsed() > AT_LEAST) {
                unauthenticated.pop_front().into_iter().for_each(|oldest| oldest.push_out());
            }
            // Errors are those of connections that ended before they were accepted, or of too many open files.
            let accepted = if full { None } else { self.listener.accept().ok() };
            let wait = if accepted.is_some() { Duration::ZERO } else { LOOK };
            if let Some((stream, _)) = accepted {
                let (connection, sender) = (Unauthenticated::new(stream), sender.clone());
                let (stream, decided) = (connection.stream.clone(), connection.decided.clone());
                let answer = move || {
                    let proved = answer(job, &stream, &decided);
                    decided.store(true, Ordering::Release);
                    if let Ok(peer) = proved {
                        // Nobody receives any more when the meeting is over.
                        let _ = sender.send((peer, stream));
                    }
                };
                if thread::Builder::new().spawn_scoped(scope, answer).is_ok() {
                    unauthenticated.push_back(connection);
                }
            }
            match met.recv_timeout(wait) {
                // A rank that dials again has given up its earlier connection.
                Ok((peer, stream)) => streams[peer] = Some(stream),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        unauthenticated.into_iter().for_each(|connection| connection.push_out());
        streams
    }
}

impl Unauthenticated {
    fn new(stream: TcpStream) -> Self {
        Unauthenticated { stream: Arc::new(stream), since: Instant::now(), decided: Arc::default() }
    }

    fn push_out(self) {
        if !self.decided.swap(true, Ordering::AcqRel) {
            // Its thread reads the end.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

/// Dials a lower rank until it has been met.
fn dial(
    job: Job<'_>,
    peer: usize,
    address: SocketAddr,
    ended: &AtomicBool,
    excuses: &Mutex<Vec<Option<String>>>,
    met: &Sender<Met>,
) {
    let mut answered = false;
    while !ended.load(Ordering::Relaxed) {
        let rest = job.deadline.saturating_duration_since(Instant::now()).min(HANDSHAKE);
        if rest.is_zero() {
            return;
        }
        let connected = TcpStream::connect_timeout(&address, rest);
        match connected.and_then(|stream| introduce(job, peer, &stream).map(|()| stream)) {
            Ok(stream) => {
                // Nobody receives any more when the meeting is over.
                let _ = met.send((peer, Arc::new(stream)));
                return;
            }
            Err(error) => {
                let excuse = match error.kind() {
                    // One that answered before hangs up when its own time is over: what it answered says more.
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset if answered => None,
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                        Some("it hung up: it belongs to another job".to_owned())
                    }
                    kind => {
                        answered |= kind == ErrorKind::PermissionDenied;
                        Some(error.to_string())
                    }
                };
                if let Some(excuse) = excuse {
                    excuses.lock().unwrap_or_else(PoisonError::into_inner)[peer] = Some(format!("{address}: {excuse}"));
                }
                thread::sleep(RETRY);
            }
        }
    }
}

/// The dialler's side of the handshake.
fn introduce(job: Job<'_>, peer: usize, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let until = job.until();
    let hello = [&MAGIC[..], &number(job.size), &number(job.rank), &number(peer), &nonce()?].concat();
    write(stream, &hello, until)?;
    let theirs: [u8; NONCE] = read(stream, until)?;
    if proof(job.token, b"listener", &hello, &theirs) != read::<PROOF>(stream, until)? {
        return Err(IoError::new(
            ErrorKind::PermissionDenied,
            "the process that listens there does not know the job's token",
        ));
    }
    write(stream, proof(job.token, b"dialler", &hello, &theirs).as_bytes(), until)?;
    match read::<{ WELCOME.len() }>(stream, until)? == WELCOME {
        true => Ok(()),
        false => Err(refused()),
    }
}

/// The listener's side: the rank that has proved itself and was not pushed out meanwhile.
fn answer(job: Job<'_>, stream: &TcpStream, decided: &AtomicBool) -> std::io::Result<usize> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let until = job.until();
    let mut hello = [0; HELLO];
    let (magic, rest) = hello.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&read::<{ MAGIC.len() }>(stream, until)?);
    if magic != MAGIC {
        return Err(refused());
    }
    rest.copy_from_slice(&read::<{ HELLO - MAGIC.len() }>(stream, until)?);
    let [size, peer, me] = [8, 12, 16].map(|at| {
        let bytes = hello[at..].first_chunk().expect("a hello has three numbers");
        u32::from_le_bytes(*bytes) as usize
    });
    if size != job.size || me != job.rank || peer <= me || peer >= size {
        return Err(refused());
    }
    let mine = nonce()?;
    let reply = [mine, *proof(job.token, b"listener", &hello, &mine).as_bytes()].concat();
    write(stream, &reply, until)?;
    if proof(job.token, b"dialler", &hello, &mine) != read::<PROOF>(stream, until)?
        || decided.swap(true, Ordering::AcqRel)
    {
        return Err(refused());
    }
    write(stream, WELCOME, until)?;
    Ok(peer)
}

impl Job<'_> {
    /// When a handshake that begins now must have ended.
    fn until(&self) -> Instant {
        self.deadline.min(Instant::now() + HANDSHAKE)
    }
}

fn number(rank: usize) -> [u8; 4] {
    (rank as u32).to_le_bytes()
}

fn nonce() -> std::io::Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

/// Compared in constant time, also with bytes.
fn proof(token: &[u8; 32], who: &[u8], hello: &[u8], nonce: &[u8; NONCE]) -> blake3::Hash {
    blake3::Hasher::new_keyed(token).update(who).update(hello).update(nonce).finalize()
}

fn refused() -> IoError {
    IoError::new(ErrorKind::PermissionDenied, "it does not belong to this job")
}

/// Time until then; an error when there is none.
fn rest(until: Instant) -> std::io::Result<Option<Duration>> {
    let rest = until.saturating_duration_since(Instant::now());
    if rest.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(rest)) }
}

/// Reads so many bytes, however slowly they come, until then.
fn read<const N: usize>(mut stream: &TcpStream, until: Instant) -> std::io::Result<[u8; N]> {
    let (mut bytes, mut len) = ([0; N], 0);
    while len < N {
        stream.set_read_timeout(rest(until)?)?;
        match stream.read(&mut bytes[len..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Writes some bytes, which fit into the system's buffers.
fn write(mut stream: &TcpStream, bytes: &[u8], until: Instant) -> std::io::Result<()> {
    stream.set_write_timeout(rest(until)?)?;
    stream.write_all(bytes)
}
