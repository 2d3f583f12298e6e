//! What goes over a connection: frames of a kind, a length and so many bytes. A message is cut into pieces, so that a sign of life
//! or an abort never waits for the end of a long one.
//!
//! | kind | bytes | meaning |
//! |---|---|---|
//! | beat | rank that it waits for, u32, or [`NOBODY`] | the sender lives |
//! | start | length of a message, u64 | its pieces follow |
//! | piece | at most [`PIECE`] | the next part of that message |
//! | abort | rank that failed, u32; its exit code, u8, or 0; how, UTF-8 | the job has failed |
//! | leave | none | nothing will follow |
//!
//! Numbers are little endian. Lengths are not believed: whatever is longer than both sides agreed on is refused, and memory
//! is taken as bytes arrive.

use std::io::{BufReader, Error, ErrorKind, IoSlice, Read, Result, Write};
use std::net::TcpStream;
use std::sync::Arc;

use crate::ranks::mailbox::Failure;

/// Most bytes of a piece: milliseconds on any network that is used for training, and few system calls a message.
pub const PIECE: usize = 256 << 10;

/// Most bytes of a message.
pub const MOST: u64 = 2 << 30;

/// No rank.
pub const NOBODY: u32 = u32::MAX;

/// Most bytes of the words of an abort.
const REASON: usize = 4 << 10;

const HEADER: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Beat = 0,
    Start = 1,
    Piece = 2,
    Abort = 3,
    Leave = 4,
}

/// The payload of an abort.
pub fn abort(failure: &Failure) -> Vec<u8> {
    let mut end = failure.reason.len().min(REASON);
    while !failure.reason.is_char_boundary(end) {
        end -= 1;
    }
    [&(failure.rank as u32).to_le_bytes(), &[failure.code.unwrap_or(0)][..], &failure.reason.as_bytes()[..end]].concat()
}

/// The sending side. The stream has a write timeout, after which the sender asks whether to go on.
#[derive(Debug)]
pub struct Outgoing {
    stream: Arc<TcpStream>,
    /// Nothing can follow: a frame was left in the middle, or the connection is.
    broken: bool,
}

impl Outgoing {
    pub fn new(stream: Arc<TcpStream>) -> Self {
        Outgoing { stream, broken: false }
    }

    /// Sends a frame; false when it was not sent, because the connection is broken or because nothing could be sent for the write
    /// timeout and `give_up` says so. Why a connection broke is reported by its receiving side.
    pub fn send(&mut self, kind: Kind, payload: &[u8], give_up: &dyn Fn() -> bool) -> bool {
        let mut header = [kind as u8; HEADER];
        header[1..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let mut parts = [IoSlice::new(&header), IoSlice::new(payload)];
        let mut parts = &mut parts[..];
        let mut begun = false;
        while !self.broken && !parts.is_empty() {
            match (&*self.stream).write_vectored(parts) {
                Ok(0) => self.broken = true,
                Ok(sent) => {
                    IoSlice::advance_slices(&mut parts, sent);
                    begun = true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if give_up() {
                        self.broken = begun;
                        return false;
                    }
                }
                Err(_) => self.broken = true,
            }
        }
        !self.broken
    }
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A sign of life.
    Beat {
        awaited: u32,
    },
    /// A part of a message.
    Part,
    Message(Vec<u8>),
    Abort(Failure),
    Leave,
}

/// The receiving side.
#[derive(Debug)]
pub struct Incoming<R> {
    reader: BufReader<R>,
    /// How many ranks there are.
    size: usize,
    message: Vec<u8>,
    /// Bytes of the message that are still to come.
    missing: u64,
}

impl<R: Read> Incoming<R> {
    pub fn new(reader: R, size: usize) -> Self {
        Incoming { reader: BufReader::new(reader), size, message: Vec::new(), missing: 0 }
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// Those of the connection; [`ErrorKind::InvalidData`] when what arrived is no frame.
    pub fn next(&mut self) -> Result<Event> {
        let mut header = [0; HEADER];
        self.reader.read_exact(&mut header)?;
        let [kind, len @ ..] = header;
        let len = u32::from_le_bytes(len) as usize;
        match kind {
            kind if kind == Kind::Beat as u8 && len == 4 => {
                let mut awaited = [0; 4];
                self.reader.read_exact(&mut awaited)?;
                Ok(Event::Beat { awaited: u32::from_le_bytes(awaited) })
            }
            kind if kind == Kind::Leave as u8 && len == 0 => Ok(Event::Leave),
            kind if kind == Kind::Start as u8 && len == 8 && self.missing == 0 => self.start(),
            kind if kind == Kind::Piece as u8 && len <= PIECE && len as u64 <= self.missing => self.piece(len),
            kind if kind == Kind::Abort as u8 && (5..=5 + REASON).contains(&len) => self.abort(len),
            _ => Err(invalid()),
        }
    }

    fn start(&mut self) -> Result<Event> {
        let mut total = [0; 8];
        self.reader.read_exact(&mut total)?;
        self.missing = u64::from_le_bytes(total);
        if self.missing > MOST {
            return Err(invalid());
        }
        Ok(self.arrived())
    }

    fn piece(&mut self, len: usize) -> Result<Event> {
        let at = self.message.len();
        self.message.resize(at + len, 0);
        self.reader.read_exact(&mut self.message[at..])?;
        self.missing -= len as u64;
        Ok(self.arrived())
    }

    fn arrived(&mut self) -> Event {
        if self.missing == 0 { Event::Message(std::mem::take(&mut self.message)) } else { Event::Part }
    }

    fn abort(&mut self, len: usize) -> Result<Event> {
        let mut payload = vec![0; len];
        self.reader.read_exact(&mut payload)?;
        let ([rank @ .., code], reason) = payload.split_first_chunk::<5>().ok_or_else(invalid)?;
        let rank = u32::from_le_bytes(*rank) as usize;
        if rank >= self.size {
            return Err(invalid());
        }
        // It will be printed: nothing that a terminal would act on.
        let reason = String::from_utf8_lossy(reason).replace(char::is_control, " ");
        Ok(Event::Abort(Failure { rank, code: Some(*code).filter(|code| *code > 0), reason }))
    }
}

fn invalid() -> Error {
    Error::new(ErrorKind::InvalidData, "it sent what no rank sends")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind], &(payload.len() as u32).to_le_bytes()[..], payload].concat()
    }

    fn first(bytes: &[u8]) -> Result<Event> {
        Incoming::new(bytes, 2).next()
    }

    #[test]
    fn a_message_comes_in_pieces_with_other_frames_between_them() {
        let bytes =
            [frame(1, &5u64.to_le_bytes()), frame(2, b"ab"), frame(0, &[7, 0, 0, 0]), frame(2, b"cde"), frame(4, b"")]
                .concat();
        let mut incoming = Incoming::new(&bytes[..], 2);
        let events: Vec<Event> = (0..5).map(|_| incoming.next().expect("a frame")).collect();
        assert_eq!(
            events,
            [Event::Part, Event::Part, Event::Beat { awaited: 7 }, Event::Message(b"abcde".to_vec()), Event::Leave]
        );
        assert_eq!(incoming.next().expect_err("the end").kind(), ErrorKind::UnexpectedEof);
        assert_eq!(first(&frame(1, &[0; 8])).expect("a frame"), Event::Message(Vec::new()));
    }

    #[test]
    fn what_is_no_frame_is_refused_and_takes_no_memory() {
        let longer = (MOST + 1).to_le_bytes();
        let long = frame(1, &1u64.to_le_bytes());
        let cases: [Vec<u8>; 8] = [
            frame(5, b""),
            frame(0, b"x"),
            frame(4, b"x"),
            frame(1, b"short"),
            frame(1, &longer),
            frame(2, b"a piece of nothing"),
            frame(3, &[2, 0, 0, 0, 0]),
            vec![2, 255, 255, 255, 255],
        ];
        for bytes in cases {
            assert_eq!(first(&bytes).expect_err("no frame").kind(), ErrorKind::InvalidData, "{bytes:?}");
        }
        let mut incoming = Incoming::new(std::io::Cursor::new([long.clone(), long].concat()), 2);
        assert_eq!(incoming.next().expect("a start"), Event::Part);
        assert_eq!(incoming.next().expect_err("a second start").kind(), ErrorKind::InvalidData);
        // The announced length alone takes nothing.
        let mut incoming = Incoming::new(std::io::Cursor::new(frame(1, &MOST.to_le_bytes())), 2);
        assert_eq!((incoming.next().expect("a start"), incoming.message.capacity()), (Event::Part, 0));
    }

    #[test]
    fn an_abort_names_the_rank_and_fits_into_a_frame() {
        let failure = Failure { rank: 1, code: Some(65), reason: "é".repeat(REASON) };
        let Event::Abort(told) = first(&frame(3, &abort(&failure))).expect("a frame") else { panic!("an abort") };
        assert_eq!((told.rank, told.code, told.reason.len()), (1, Some(65), REASON));
        let Event::Abort(told) = first(&frame(3, &abort(&Failure::seen(0, String::new())))).expect("a frame") else {
            panic!("an abort")
        };
        assert_eq!(told, Failure::seen(0, String::new()));
        let Event::Abort(told) = first(&frame(3, b"\0\0\0\0\0\x1b[2J\xff")).expect("a frame") else {
            panic!("an abort")
        };
        assert_eq!(told.reason, " [2J\u{fffd}");
    }
}
