//! What lies before a real server: a proxy that spoils some of its answers, as networks and busy stores do, and a relay that is cut.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::processes::wait_for;

/// What happens to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 503 SlowDown in its place.
    SlowDown,
    /// The connection is reset after half of a part of an object.
    Reset,
    /// Half of a part of an object, said to be all of it.
    Short,
    /// 403 for what is not there, as S3 answers a user who may not list the bucket.
    Forbidden,
}

/// A proxy for requests without a body; it ends with the process.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: String,
    spoilt: Arc<AtomicU32>,
}

impl Proxy {
    /// Passes on what `server` answers, after spoiling the first `times` answers.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(server: &str, fault: Fault, times: u32) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a port").to_string();
        let (spoilt, server) = (Arc::new(AtomicU32::new(0)), server.to_owned());
        let counter = spoilt.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (server, counter) = (server.clone(), counter.clone());
                // A client that hangs up early is its own affair.
                std::thread::spawn(move || drop(answer(client, &server, fault, times, &counter)));
            }
        });
        Proxy { address, spoilt }
    }

    /// How many answers were spoilt.
    pub fn spoilt(&self) -> u32 {
        self.spoilt.load(Ordering::SeqCst)
    }
}

/// One request and its answer; then the connection is closed.
fn answer(mut client: TcpStream, server: &str, fault: Fault, times: u32, spoilt: &AtomicU32) -> std::io::Result<()> {
    let (mut request, mut length) = ([0; 1 << 14], 0);
    while !request[..length].ends_with(b"\r\n\r\n") {
        // The request stays unread, so that closing the connection resets it.
        length = client.peek(&mut request)?;
    }
    let line = request.iter().position(|&byte| byte == b'\n').unwrap_or(0) + 1;
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(&[&request[..line], b"Connection: close\r\n", &request[line..length]].concat())?;
    let mut whole = Vec::new();
    upstream.read_to_end(&mut whole)?;
    let end = whole.windows(4).position(|four| four == b"\r\n\r\n").expect("a head ends") + 4;
    let (head, body) = (String::from_utf8_lossy(&whole[..end]).into_owned(), &whole[end..]);
    let is_part = head.lines().next().is_some_and(|line| line.contains(" 206 ")) && !body.is_empty();
    let more = |n| (n < times).then_some(n + 1);
    let is_meant = match fault {
        Fault::SlowDown => true,
        Fault::Forbidden => head.lines().next().is_some_and(|line| line.contains(" 404 ")),
        Fault::Reset | Fault::Short => is_part,
    };
    let spoil = is_meant && spoilt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok();
    match fault {
        Fault::Reset if spoil => return client.write_all(&whole[..end + body.len() / 2]),
        Fault::Short if spoil => {
            let half = body.len() / 2;
            let said = head.replace(&format!("Content-Length: {}\r", body.len()), &format!("Content-Length: {half}\r"));
            assert_ne!(said, head, "the head says how long the body is");
            client.write_all(&[said.as_bytes(), &body[..half]].concat())?;
        }
        Fault::SlowDown if spoil => {
            let body = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
            let head = format!("HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            client.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        }
        Fault::Forbidden if spoil => {
            client.write_all(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
        }
        _ => client.write_all(&whole)?,
    }
    client.read_exact(&mut request[..length])
}

/// A relay to a server that can be cut: nobody listens then, and what was connected is not any more. It ends with the process.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: String,
    wanted: Arc<AtomicBool>,
    listens: Arc<AtomicBool>,
}

impl Relay {
    /// Listens before `server`.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(server: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a port");
        let [wanted, listens] = [true, true].map(|is| Arc::new(AtomicBool::new(is)));
        let (server, flags) = (server.to_owned(), [wanted.clone(), listens.clone()]);
        std::thread::spawn(move || relay(listener, address, &server, &flags));
        Relay { address: address.to_string(), wanted, listens }
    }

    /// Lets connections fail from now on.
    pub fn cut(&self) {
        self.want(false);
    }

    /// Ends a cut.
    pub fn mend(&self) {
        self.want(true);
    }

    fn want(&self, it: bool) {
        self.wanted.store(it, Ordering::SeqCst);
        wait_for("the relay", || (self.listens.load(Ordering::SeqCst) == it).then_some(()));
    }
}

fn relay(mut listener: TcpListener, address: SocketAddr, server: &str, [wanted, listens]: &[Arc<AtomicBool>; 2]) {
    loop {
        listener.set_nonblocking(true).expect("a mode");
        let mut open = Vec::new();
        while wanted.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((client, _)) => open.extend(connect(client, server).expect("the server listens")),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
                // A client that is gone again is its own affair.
                Err(_) => {}
            }
        }
        drop(listener);
        for stream in open {
            let _ = stream.shutdown(Shutdown::Both);
        }
        listens.store(false, Ordering::SeqCst);
        while !wanted.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        listener = TcpListener::bind(address).expect("the port is still free");
        listens.store(true, Ordering::SeqCst);
    }
}

/// Passes on what either side says, in threads; the two connections.
fn connect(client: TcpStream, server: &str) -> std::io::Result<[TcpStream; 2]> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect(server)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        std::thread::spawn(move || {
            // However it ends, it is over.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok([client, server])
}
