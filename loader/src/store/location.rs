//! From what a user types to a store and a prefix: paths, globs, file://, s3://, gs://, az://, abfss://,
//! wasbs://, http(s)://, memory://.
//!
//! What is typed is taken literally as far as it names what is there, and as a pattern from the first part on that has wildcards and
//! names nothing. Where something is written, or one file is meant, all of it is literal.
//!
//! Credentials come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`) and never appear in output: a URL that carries
//! some is refused, and what stores say is redacted.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ClientConfigKey, ObjectStore};

use crate::dataset::is_shard_name;
use crate::store::address::{AZURE, Address};
use crate::store::environment;
use crate::store::key;
use crate::store::patience::{self, Patient};
use crate::store::redact::{Redacted, redact};
use crate::store::remote::{Lists, Remote};
use crate::{Entry, Error, Result, Store, check_expanded};

/// Where data lies: a store, a prefix (a folder or one file) and perhaps a glob below it.
#[derive(Clone)]
pub struct Location {
    store: Store,
    /// What the user sees of the prefix: without credentials, query and glob.
    url: String,
    /// Matches the path below the prefix.
    pub(crate) pattern: Option<glob::Pattern>,
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Location({})", self.url)
    }
}

impl Location {
    /// Resolves a path, a glob or a URL. Only where it has wildcards the store is asked: a part that names what is there is literal.
    pub fn resolve(text: &str) -> Result<Self> {
        let address = Address::parse(text)?;
        let parts = address.parts();
        if address.is_http() {
            // Such a server lists nothing that a pattern could match.
            return Self::at(&address, parts.len());
        }
        let wild = |part: &&str| part.contains(['*', '?', '[']);
        for (at, _) in parts.iter().enumerate().filter(|(_, part)| wild(part)) {
            if !Self::at(&address, at + 1)?.store().exists()? {
                let pattern = address.pattern(at)?;
                let pattern = glob::Pattern::new(&pattern).map_err(|e| {
                    let problem = format!("names nothing that is there, and is not a pattern either: {e}");
                    Error::address(text, problem, e)
                })?;
                return Ok(Location { pattern: Some(pattern), ..Self::at(&address, at)? });
            }
        }
        Self::at(&address, parts.len())
    }

    /// Resolves a path or a URL without patterns: what is written to, or one file.
    pub(crate) fn literal(text: &str) -> Result<Self> {
        let address = Address::parse(text)?;
        Self::at(&address, address.parts().len())
    }

    /// The first `parts` parts of an address.
    fn at(address: &Address<'_>, parts: usize) -> Result<Self> {
        let url = address.text(parts);
        Ok(Location { store: store(address, parts, &url)?, url, pattern: None })
    }

    /// The folder or file as typed.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The store at this location, taken as a folder.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// The one folder in which the named files lie; `None` when a pattern is wild in a folder and so has them in several.
    pub fn folder(&self) -> Option<Store> {
        match &self.pattern {
            Some(pattern) => (!pattern.as_str().contains('/')).then(|| self.store()),
            None => {
                let file = self.split_file().filter(|(_, name)| is_shard_name(name));
                Some(file.map_or_else(|| self.store(), |(folder, _)| folder.store()))
            }
        }
    }

    /// Whether files that are written below a folder may be among those here when this is looked at again.
    pub fn reaches(&self, folder: &Store) -> bool {
        let is_of_one_folder =
            |pattern: &glob::Pattern| !pattern.as_str().contains('/') && !pattern.as_str().contains("**");
        match &self.pattern {
            Some(pattern) if is_of_one_folder(pattern) => folder.lies_in(&self.store) && self.store.lies_in(folder),
            _ => folder.lies_in(&self.store),
        }
    }

    /// All files here, whatever they are, in the order of their names: the file that is named, what a pattern matches, or what lies below a
    /// folder. None where there is nothing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn files(&self) -> Result<Vec<(Store, Entry)>> {
        if self.pattern.is_none()
            && let Some((folder, name)) = self.split_file()
            && let Some(entry) = folder.store.head(&name)?
        {
            return Ok(vec![(folder.store, entry)]);
        }
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        let is_meant = |entry: &Entry| self.pattern.as_ref().is_none_or(|p| p.matches_with(&entry.key, options));
        let entries = if self.store.lists() { self.store.list("")? } else { Vec::new() };
        Ok(entries.into_iter().filter(is_meant).map(|entry| (self.store.clone(), entry)).collect())
    }

    /// Whether one of [`Location::files`] was named itself.
    pub fn names_file(&self, entry: &Entry) -> bool {
        self.pattern.is_none() && self.split_file().is_some_and(|(_, name)| name == entry.key)
    }

    /// The location's folder and last name: how a single file is opened.
    pub(crate) fn split_file(&self) -> Option<(Location, String)> {
        let (folder_url, _) = self.url.rsplit_once('/').unwrap_or((".", ""));
        let (store, name) = self.store.split(folder_url.trim_end_matches('/'))?;
        Some((Location { store, url: folder_url.to_string(), pattern: None }, name))
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::address(path.display().to_string(), e.to_string(), e))
}

/// The store of an address with its first `parts` parts as the prefix; `url` is what messages call it.
fn store(address: &Address<'_>, parts: usize, url: &str) -> Result<Store> {
    static MEMORY: LazyLock<Arc<InMemory>> = LazyLock::new(|| Arc::new(InMemory::new()));
    let (names, folder_url) = (address.names(parts)?, url.trim_end_matches('/').to_string());
    if address.scheme.is_empty() || address.scheme == "file" {
        check_expanded(&names)?;
        return Ok(Store::local(absolute(Path::new(&names))?, folder_url));
    }
    let bucket = address.authority;
    let fail = |e: object_store::Error| Error::address(redact(url), redact(&e.to_string()), Redacted::from(e));
    // There is one memory, so its buckets are folders in it.
    let in_memory = [bucket, &names].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    let names = if address.scheme == "memory" { in_memory } else { names };
    let key = key::below(&Key::ROOT, &names, || url.to_string())?;
    let remote = match address.scheme.as_str() {
        "memory" => Remote { client: MEMORY.clone(), key, lists: Lists::Whole },
        "s3" | "s3a" => paged(s3(bucket, url)?, key),
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (key, value) in environment::settings("GOOGLE_")? {
                builder = builder.with_config(key, value);
            }
            let builder = builder.with_bucket_name(bucket).with_retry(patience::left_to_clients());
            paged(Arc::new(builder.with_http_connector(Patient).build().map_err(fail)?), key)
        }
        scheme if AZURE.contains(&scheme) => {
            // `wasbs` is the older name, which the client does not know.
            let address = format!("abfss://{bucket}/");
            let mut builder = MicrosoftAzureBuilder::new();
            for (key, value) in environment::settings("AZURE_")? {
                builder = builder.with_config(key, value);
            }
            let builder = builder.with_url(address).with_retry(patience::left_to_clients());
            paged(Arc::new(builder.with_http_connector(Patient).build().map_err(fail)?), key)
        }
        scheme => {
            let options = object_store::ClientOptions::new().with_allow_http(true);
            let base = format!("{scheme}://{bucket}");
            let builder = HttpBuilder::new().with_url(base).with_client_options(options);
            let builder = builder.with_retry(patience::left_to_clients()).with_http_connector(Patient);
            Remote { client: Arc::new(builder.build().map_err(fail)?), key, lists: Lists::No }
        }
    };
    Ok(Store::remote(remote, folder_url))
}

fn paged<S: ObjectStore + PaginatedListStore>(client: Arc<S>, key: Key) -> Remote {
    Remote { client: client.clone(), key, lists: Lists::Pages(client) }
}

fn s3(bucket: &str, url: &str) -> Result<Arc<AmazonS3>> {
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
        return Err(Error::Denied {
            location: url.to_string(),
            problem: environment::no_credentials(url),
            source: None,
        });
    }
    let store = builder.build().map_err(|e| Error::address(url, redact(&e.to_string()), Redacted::from(e)))?;
    Ok(Arc::new(store))
}

fn metadata_service_answers() -> bool {
    let address = SocketAddr::from(([169, 254, 169, 254], 80));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

impl Store {
    /// The folder at a path or URL, taken literally; it need not exist yet.
    pub fn open(url: &str) -> Result<Self> {
        Ok(Location::literal(url)?.store())
    }

    /// The folder of the file at a path or URL, and the file's key in it.
    pub fn open_file(url: &str) -> Result<(Self, String)> {
        let split = Location::literal(url)?.split_file();
        let (folder, key) = split.ok_or_else(|| Error::Arguments(format!("{url}: a file is needed here")))?;
        Ok((folder.store(), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_out_of_messages() {
        for url in
            ["s3://AKIA:secret@bucket/x", "s3://bucket/x?sig=secret", "abfss://c@a.dfs.core.windows.net/x?sig=secret"]
        {
            let error = Location::resolve(url).unwrap_err();
            assert!(error.to_string().contains("do not belong") && !error.to_string().contains("secret"), "{error}");
        }
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
            let name = location.store().name_of("");
            assert!(name.contains("account: lab") && name.contains("container: acts"), "{name}");
            assert!(name.ends_with(" }/layer12/a"), "{name}");
        }
        let error = Location::resolve("abfss://acts:secret@lab.dfs.core.windows.net/x").unwrap_err().to_string();
        assert!(error.contains("do not belong in a URL") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_there_is_literal_and_the_rest_a_pattern() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("run[0]")).unwrap();
        std::fs::write(folder.path().join("run[0]/a?.parquet"), "").unwrap();
        let path = folder.path().to_str().unwrap();
        let store = Location::resolve("memory://literal/x").unwrap().store();
        store.put("run[0]/a?.parquet", &b""[..]).unwrap();
        for root in [path.to_string(), format!("file://{path}"), "memory://literal/x".into()] {
            let found = |text: &str| {
                let location = Location::resolve(&format!("{root}/{text}")).unwrap();
                let below = location.url().strip_prefix(&root).unwrap().to_string();
                (below, location.pattern.map(|pattern| pattern.to_string()))
            };
            let pattern = |folder: &str, pattern: &str| (folder.to_string(), Some(pattern.to_string()));
            assert_eq!(found("run[0]"), ("/run[0]".into(), None));
            assert_eq!(found("run[0]/a?.parquet"), ("/run[0]/a?.parquet".into(), None));
            assert_eq!(found("run[0]/*.parquet"), pattern("/run[0]", "*.parquet"));
            assert_eq!(found("run?0?/a?.parquet"), pattern("", "run?0?/a?.parquet"));
            assert_eq!(found("x-[0-9]/layer=1/"), pattern("", "x-[0-9]/layer=1"));
        }
        // What is encoded in a URL is meant as it is.
        let location = Location::resolve(&format!("file://{path}/r%5B0%5D%C3%BC*")).unwrap();
        assert_eq!(location.pattern.unwrap().as_str(), "r[[]0[]]ü*");
    }

    #[test]
    fn what_is_written_may_be_found_by_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        for root in [path, "memory://reaches/x"] {
            for (text, below, reaches) in [
                ("a", "a", true),
                ("a", "a/out", true),
                ("a", "ab", false),
                ("a/b", "a", false),
                ("a/*.parquet", "a", true),
                ("a/*.parquet", "a/out", false),
                ("a/**/*.parquet", "a/out", true),
                ("a/*/x.parquet", "a/out", true),
                ("a/**", "a/out", true),
                ("a/b*/x.parquet", "b", false),
            ] {
                let out = Store::open(&format!("{root}/{below}")).unwrap();
                let location = Location::resolve(&format!("{root}/{text}")).unwrap();
                assert_eq!(location.reaches(&out), reaches, "{text} and {below}");
            }
        }
    }

    #[test]
    fn a_file_is_split_from_its_folder_and_back() {
        for text in
            ["memory://a/b~%3A/[0]#.parquet", "/a b/c?.parquet", "http://h/a%20b/%23.parquet", "file:///a%3F/x.parquet"]
        {
            let location = Location::literal(text).unwrap();
            let (folder, name) = location.split_file().unwrap();
            assert_eq!(folder.store().url_of(&name), text);
            assert_eq!(location.folder().unwrap().url(), folder.url());
        }
        assert_eq!(
            Location::resolve("memory://none/run/x-*.parquet").unwrap().folder().unwrap().url(),
            "memory://none/run"
        );
        assert!(Location::resolve("memory://none/*/x.parquet").unwrap().folder().is_none());
        assert_eq!(Location::resolve("x-*.none").unwrap().folder().unwrap().url(), ".");
    }

    #[test]
    fn bad_urls_say_what_to_write() {
        let text = |url: &str| Location::resolve(url).unwrap_err().to_string();
        assert!(text("ftp://x/y").contains("unknown scheme ftp"));
        assert!(text("s3:///y").contains("no bucket: write s3://BUCKET/PREFIX"));
        assert!(text("").contains("empty path"));
        for url in ["s3://b/a//x.parquet", "s3://b/a//", "memory://b/a//", "http://h//x.parquet"] {
            assert!(text(url).contains("a part of the key is empty"), "{}", text(url));
        }
        assert!(text("s3://b:9000/a").contains("AWS_ENDPOINT"));
        for url in ["http://h/a#b", "file:///a#b"] {
            assert!(text(url).contains("write %23"), "{}", text(url));
        }
        assert!(text("http://h/a?b").contains("write %3F"));
    }
}
