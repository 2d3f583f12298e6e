//! A real S3 server on loopback: moto, from the Python environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server with one bucket, ended with this value.
#[derive(Debug)]
pub struct S3 {
    server: Child,
    address: String,
}

impl S3 {
    /// Starts one on a free port and makes the bucket `bucket`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(python: &Path) -> S3 {
        S3::with_pages(python, 1000)
    }

    /// The same, which lists so many keys at a time. S3 itself lists 1,000.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn with_pages(python: &Path, keys: usize) -> S3 {
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env("MOTO_S3_DEFAULT_MAX_KEYS", keys.to_string());
        let mut server = command.spawn().expect("moto starts");
        let mut lines = BufReader::new(server.stderr.take().expect("standard error")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("Running on http://")?.1.trim().to_owned()))
            .expect("moto says where it listens");
        // It writes a line for each request and must not block on them.
        std::thread::spawn(move || lines.for_each(drop));
        let s3 = S3 { server, address };
        assert_eq!(s3.request("PUT", "bucket", b"").0, 200, "a bucket is made");
        s3
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What `sae` needs in its environment to use it.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment_by(&self.address)
    }

    /// The same by way of another address.
    pub fn environment_by(&self, address: &str) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE".into()),
            ("AWS_SECRET_ACCESS_KEY", "c4n4ry-never-print-me".into()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// An object's bytes, asked for without our own client.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn get(&self, key: &str) -> Vec<u8> {
        self.find(key).unwrap_or_else(|| panic!("{key} is not there"))
    }

    /// An object's bytes, if there is one.
    pub fn find(&self, key: &str) -> Option<Vec<u8>> {
        let (status, body) = self.request("GET", &format!("bucket/{}", encoded(key)), b"");
        (status == 200).then_some(body)
    }

    /// Removes an object.
    ///
    /// # Panics
    /// When the server refuses.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        assert_eq!(self.request("DELETE", &format!("bucket/{}", encoded(key)), b"").0, 204, "{key} is removed");
    }

    /// What the server says an object is.
    ///
    /// # Panics
    /// When it is not there, or the server says nothing.
    #[track_caller]
    pub fn content_type(&self, key: &str) -> String {
        let (status, head, _) = self.answer("HEAD", &format!("bucket/{}", encoded(key)), b"");
        assert_eq!(status, 200, "{key} is there");
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
        };
        head.lines().find_map(field).expect("it has a type")
    }

    /// Stores an object without our own client, by any key.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        assert_eq!(self.request("PUT", &format!("bucket/{}", encoded(key)), bytes).0, 200, "{key} is stored");
    }

    /// Lets everybody read the bucket: as plain HTTP, below this URL.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn publish(&self) -> String {
        let policy = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*",
            "Resource": ["arn:aws:s3:::bucket/*"]}]}"#;
        assert_eq!(self.request("PUT", "bucket?policy", policy.as_bytes()).0, 200, "a policy is set");
        format!("http://{}/bucket", self.address)
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let (status, _, body) = self.answer(method, path, body);
        (status, body)
    }

    /// The status, the head and the body of an answer.
    fn answer(&self, method: &str, path: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).expect("moto listens");
        // moto lets anybody make a bucket but not read an object, and takes any signature for a good one.
        let signed = "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let signature = if path == "bucket" { String::new() } else { format!("{signed}\r\n") };
        let head = format!("Host: {}\r\n{signature}Content-Length: {}", self.address, body.len());
        let request = format!("{method} /{path} HTTP/1.0\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(body)).expect("a request is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer comes");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head ends") + 4;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let body = answer.split_off(end);
        (status, head, body)
    }
}

/// A key in a URL: every byte that might have a meaning there is encoded.
fn encoded(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    key.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Where a run in the store that was given `temporary` as TMPDIR keeps its files that grow, once it has begun.
pub fn spool(temporary: &Path) -> Option<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).ok().into_iter().flatten().flatten();
    // Its name has the user's id behind this.
    let spools = entries(temporary).find(|entry| entry.file_name().to_string_lossy().starts_with("sae-runs"))?;
    Some(entries(&spools.path()).next()?.path())
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
