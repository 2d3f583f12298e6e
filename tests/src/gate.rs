//! A TCP proxy before a real server that holds some requests back until it is asked to let them through.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// A gate; it ends with the process.
#[derive(Debug)]
pub struct Gate {
    /// Where it listens.
    pub address: String,
    shut: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    /// Passes on what is said to `server` and what it answers. While the gate is shut, as it is at first, requests that write an
    /// object with `held` in its key wait.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(server: &str, held: &'static str) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a port").to_string();
        let shut = Arc::new((Mutex::new(true), Condvar::new()));
        let (server, waits) = (server.to_owned(), shut.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                let (from, to) = (client.try_clone().expect("a socket"), upstream.try_clone().expect("a socket"));
                let waits = waits.clone();
                // Who hangs up ends both directions.
                std::thread::spawn(move || {
                    pass(from, to, |bytes| {
                        let line = String::from_utf8_lossy(bytes.split(|&byte| byte == b'\n').next().unwrap_or(bytes));
                        if line.starts_with("PUT ") && line.contains(held) {
                            let (shut, opened) = &*waits;
                            let shut = shut.lock().expect("nobody panics here");
                            drop(opened.wait_while(shut, |shut| *shut));
                        }
                    })
                });
                std::thread::spawn(move || pass(upstream, client, |_| ()));
            }
        });
        Gate { address, shut }
    }

    /// Lets through what waits and what comes.
    ///
    /// # Panics
    /// Never: nobody panics who holds the lock.
    pub fn open(&self) {
        *self.shut.0.lock().expect("nobody panics here") = false;
        self.shut.1.notify_all();
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn(&[u8])) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        before(&bytes[..n]);
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
