//! From what a user types to a store and a prefix: paths, globs, file://, s3://, gs://, az://, abfss://,
//! wasbs://, http(s)://, memory://.
//!
//! Credentials come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`) and never appear in output: a URL that carries
//! some is refused, and what stores say is redacted.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ClientConfigKey, ObjectStore};
use url::Url;

use crate::patience::{self, Patient};
use crate::{Error, Result, Store, environment};

/// Where data lies: a store, a prefix (a folder or one file) and perhaps a glob below it.
#[derive(Clone)]
pub struct Location {
    pub(crate) backend: Backend,
    /// What the user sees: without credentials and query.
    pub(crate) url: String,
    /// Matches the path below the prefix.
    pub(crate) pattern: Option<glob::Pattern>,
}

/// Azure's schemes, with `az://CONTAINER/PATH` or `az://CONTAINER@ACCOUNT.…/PATH`.
const AZURE: [&str; 6] = ["az", "azure", "abfs", "abfss", "wasb", "wasbs"];

/// Who answers requests.
#[derive(Clone)]
pub(crate) enum Backend {
    /// Plain files: read and written by this crate, for speed and for fsync.
    Local(PathBuf),
    /// Anything else.
    Remote {
        store: Arc<dyn ObjectStore>,
        prefix: Key,
        /// Whether it can list (plain HTTP servers cannot).
        lists: bool,
    },
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Location({})", self.url)
    }
}

impl Location {
    /// Resolves a path, a glob or a URL. Nothing is read yet.
    pub fn resolve(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::Arguments(
                "empty path: give a folder, a file, a glob or a URL such as s3://bucket/prefix".into(),
            ));
        }
        if has_query(text) {
            return Err(in_url(text));
        }
        let (plain, pattern) = split_glob(text)?;
        if !plain.contains("://") {
            let path = absolute(Path::new(&plain))?;
            return Ok(Location { url: text.into(), backend: Backend::Local(path), pattern });
        }
        let url = Url::parse(&plain).map_err(|e| Error::Arguments(format!("{}: not a URL: {e}", redact(text))))?;
        // Azure writes the container where others write a user: abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH.
        let user = !url.username().is_empty() && !AZURE.contains(&url.scheme());
        if user || url.password().is_some() {
            return Err(in_url(text));
        }
        let backend = backend(&url)?;
        Ok(Location { backend, url: text.into(), pattern })
    }

    /// The location as typed.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The store at this location, taken as a folder.
    pub fn store(&self) -> Store {
        Store::new(self.backend.clone(), self.url.trim_end_matches('/').to_string())
    }

    /// The location's folder and last name: how a single file is opened.
    pub(crate) fn split_file(&self) -> Option<(Location, String)> {
        let (folder_url, _) = self.url.rsplit_once('/').unwrap_or((".", ""));
        let (backend, name) = match &self.backend {
            Backend::Local(path) => {
                let name = path.file_name()?.to_str()?.to_string();
                (Backend::Local(path.parent()?.to_path_buf()), name)
            }
            Backend::Remote { store, prefix, lists } => {
                let mut parts: Vec<_> = prefix.parts().collect();
                let name = parts.pop()?.as_ref().to_string();
                (Backend::Remote { store: store.clone(), prefix: parts.into_iter().collect(), lists: *lists }, name)
            }
        };
        Some((Location { backend, url: folder_url.to_string(), pattern: None }, name))
    }
}

/// Whether a URL carries a query, which may hold a key: `?name=`. In a glob `?` stands for one character of a name, and a
/// `/` lies between it and the `=` of a folder below: `part-?/layer=12`.
pub fn has_query(text: &str) -> bool {
    let names_a_value = |rest: &str| rest.find(['=', '/']).is_some_and(|at| rest[at..].starts_with('='));
    text.contains("://") && text.split('?').skip(1).any(names_a_value)
}

fn in_url(text: &str) -> Error {
    Error::Arguments(format!(
        "{}: credentials and queries do not belong in a URL: set them in the environment (AWS_ACCESS_KEY_ID …)",
        redact(text)
    ))
}

/// Splits `a/b/*.parquet` into the folder without wildcards and the pattern below it.
fn split_glob(text: &str) -> Result<(String, Option<glob::Pattern>)> {
    let wild = |part: &str| part.contains(['*', '?', '[']);
    if !wild(text) || (!text.contains("://") && Path::new(text).exists()) {
        return Ok((text.into(), None));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(Error::Arguments(format!(
            "{}: plain HTTP has no listing, so no globs: name the files",
            redact(text)
        )));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let first = parts.iter().position(|p| wild(p)).unwrap_or(parts.len());
    let pattern = glob::Pattern::new(&parts[first..].join("/"))
        .map_err(|e| Error::Arguments(format!("{text}: not a glob: {e}")))?;
    let folder = if first == 0 { ".".to_string() } else { format!("{}/", parts[..first].join("/")) };
    Ok((folder, Some(pattern)))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::Arguments(format!("{}: {e}", path.display())))
}

fn backend(url: &Url) -> Result<Backend> {
    static MEMORY: LazyLock<Arc<InMemory>> = LazyLock::new(|| Arc::new(InMemory::new()));
    let host = url.host_str().unwrap_or_default().to_string();
    let fail = |e: object_store::Error| Error::Arguments(format!("{}: {}", url.as_str(), redact(&e.to_string())));
    let key = Key::from_url_path(url.path()).map_err(|e| Error::Arguments(format!("{url}: {e}")))?;
    let remote = |store: Arc<dyn ObjectStore>, prefix: Key| Backend::Remote { store, prefix, lists: true };
    let need_bucket = || Error::Arguments(format!("{url}: no bucket: write {}://BUCKET/PREFIX", url.scheme()));
    match url.scheme() {
        "file" => {
            let path =
                url.to_file_path().map_err(|()| Error::Arguments(format!("{url}: write file:///absolute/path")))?;
            Ok(Backend::Local(path))
        }
        "memory" => {
            let joined = if host.is_empty() {
                key
            } else {
                Key::from_iter([host.as_str()]).parts().chain(key.parts()).collect()
            };
            Ok(remote(MEMORY.clone(), joined))
        }
        _ if host.is_empty() => Err(need_bucket()),
        "s3" | "s3a" => Ok(remote(s3(&host, url)?, key)),
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (key, value) in environment::settings("GOOGLE_")? {
                builder = builder.with_config(key, value);
            }
            let builder = builder.with_bucket_name(&host).with_retry(patience::left_to_clients());
            Ok(remote(Arc::new(builder.with_http_connector(Patient).build().map_err(fail)?), key))
        }
        scheme if AZURE.contains(&scheme) => {
            // `wasbs` is the older name, which the client does not know.
            let address = format!("abfss{}", &url[url::Position::AfterScheme..]);
            let mut builder = MicrosoftAzureBuilder::new();
            for (key, value) in environment::settings("AZURE_")? {
                builder = builder.with_config(key, value);
            }
            let builder = builder.with_url(address).with_retry(patience::left_to_clients());
            Ok(remote(Arc::new(builder.with_http_connector(Patient).build().map_err(fail)?), key))
        }
        "http" | "https" => {
            let base = &url[..url::Position::BeforePath];
            let options = object_store::ClientOptions::new().with_allow_http(true);
            let builder = HttpBuilder::new().with_url(base).with_client_options(options);
            let builder = builder.with_retry(patience::left_to_clients()).with_http_connector(Patient);
            Ok(Backend::Remote { store: Arc::new(builder.build().map_err(fail)?), prefix: key, lists: false })
        }
        other => Err(Error::Arguments(format!(
            "{url}: unknown scheme {other}: paths, file://, s3://, gs://, az://, abfss://, wasbs://, http(s):// and memory:// are understood"
        ))),
    }
}

fn s3(bucket: &str, url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new();
    for (key, value) in environment::settings("AWS_")? {
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket).with_retry(patience::left_to_clients()).with_http_connector(Patient);
    for (key, value) in [
        (ClientConfigKey::ConnectTimeout, "5 seconds"),
        // A whole request, so that a stalled body is given up and retried; 64 MiB parts pass at 1 MB/s.
        (ClientConfigKey::Timeout, "60 seconds"),
    ] {
        let key = AmazonS3ConfigKey::Client(key);
        if builder.get_config_value(&key).is_none() {
            builder = builder.with_config(key, value);
        }
    }
    let has = |key| builder.get_config_value(&key).is_some();
    let skips = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).is_some_and(|v| v == "true");
    let named = has(AmazonS3ConfigKey::AccessKeyId)
        || has(AmazonS3ConfigKey::ContainerCredentialsRelativeUri)
        || has(AmazonS3ConfigKey::ContainerCredentialsFullUri)
        || has(AmazonS3ConfigKey::MetadataEndpoint)
        || (has(AmazonS3ConfigKey::WebIdentityTokenFile) && has(AmazonS3ConfigKey::RoleArn));
    // Without credentials the client asks the cloud's metadata address for three minutes: look first whether it is there. It would give
    // those of the machine where a profile asks for others.
    if !skips && !named && (environment::named_profile().is_some() || !metadata_service_answers()) {
        return Err(Error::Denied { location: url.to_string(), problem: environment::no_credentials(url.as_str()) });
    }
    let store = builder.build().map_err(|e| Error::Arguments(format!("{url}: {}", redact(&e.to_string()))))?;
    Ok(Arc::new(store))
}

fn metadata_service_answers() -> bool {
    let address = SocketAddr::from(([169, 254, 169, 254], 80));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Cuts user names, passwords and queries (signatures, tokens) out of URLs in a text.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>)".contains(c)).unwrap_or(after.len());
        let (url, tail) = after.split_at(end);
        let no_query = url.find('?').map_or(url, |q| &url[..q]);
        let authority_end = no_query.find('/').unwrap_or(no_query.len());
        let start = no_query[..authority_end].rfind('@').map_or(0, |a| a + 1);
        out.push_str(&no_query[start..]);
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_cut_out() {
        assert_eq!(redact("GET https://u:p@h/a?sig=x failed"), "GET https://h/a failed");
        assert_eq!(redact("no url"), "no url");
        for url in
            ["s3://AKIA:secret@bucket/x", "s3://bucket/x?sig=secret", "abfss://c@a.dfs.core.windows.net/x?sig=secret"]
        {
            let error = Location::resolve(url).unwrap_err();
            assert!(error.to_string().contains("do not belong") && !error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_query_is_told_from_a_glob() {
        for url in ["https://h/x?sig=a/b", "s3://b/part-?/x?sig=secret", "https://h/x?a&sig=secret"] {
            assert!(has_query(url), "{url}");
        }
        for url in ["s3://b/part-?/layer=12/*.parquet", "s3://b/layer=12/part-?", "part-?=/x", "s3://b/layer=12"] {
            assert!(!has_query(url), "{url}");
        }
        let location = Location::resolve("memory://b/part-?/layer=12/*.parquet").unwrap();
        assert_eq!(location.pattern.unwrap().as_str(), "part-?/layer=12/*.parquet");
    }

    #[test]
    fn globs_are_split_from_their_folder() {
        let (folder, pattern) = split_glob("s3://b/run/*/x-[0-9].parquet").unwrap();
        assert_eq!((folder.as_str(), pattern.unwrap().as_str()), ("s3://b/run/", "*/x-[0-9].parquet"));
        assert_eq!(split_glob("*.parquet").unwrap().0, ".");
    }

    #[test]
    fn azure_writes_its_container_where_others_write_a_user() {
        for url in [
            "abfss://acts@lab.dfs.core.windows.net/layer12/a",
            "wasbs://acts@lab.blob.core.windows.net/layer12/a",
            "az://acts@lab.blob.core.windows.net/layer12/a",
        ] {
            let location = Location::resolve(url).unwrap();
            assert_eq!(location.url(), url, "messages name the container");
            let Backend::Remote { store, prefix, .. } = location.backend else { panic!("{url} is remote") };
            let store = store.to_string();
            assert!(store.contains("account: lab") && store.contains("container: acts"), "{store}");
            assert_eq!(prefix.as_ref(), "layer12/a");
        }
        let error = Location::resolve("abfss://acts:secret@lab.dfs.core.windows.net/x").unwrap_err().to_string();
        assert!(error.contains("do not belong in a URL") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn bad_urls_say_what_to_write() {
        let text = |url: &str| Location::resolve(url).unwrap_err().to_string();
        assert!(text("ftp://x/y").contains("unknown scheme ftp"));
        assert!(text("s3:///y").contains("no bucket: write s3://BUCKET/PREFIX"));
        assert!(text("").contains("empty path"));
    }
}
