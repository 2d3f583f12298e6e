//! TLS in front of a server of the tests, with a certificate that only those trust who are told of its authority.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Passes decrypted bytes on to a server until this value goes.
#[derive(Debug)]
pub struct Tls {
    relay: Child,
    address: String,
    authority: PathBuf,
}

impl Tls {
    /// Listens in front of the server at `address`; `folder` gets the certificate of the authority.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(python: &Path, address: &str, folder: &Path) -> Tls {
        let authority = folder.join("authority.pem");
        let mut command = Command::new(python);
        command.arg(crate::root().join("tests/reference/tls.py")).arg(address).arg(&authority);
        let mut relay = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
        let mut port = String::new();
        BufReader::new(relay.stdout.take().expect("standard output")).read_line(&mut port).expect("a line");
        let port: u16 = port.trim().parse().expect("the port on which it listens");
        Tls { relay, address: format!("127.0.0.1:{port}"), authority }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The certificate by which it can be trusted.
    pub fn authority(&self) -> &Path {
        &self.authority
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
    }
}
