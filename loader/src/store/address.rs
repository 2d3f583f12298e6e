//! What a user types, taken apart: scheme, bucket or host, and the parts of the path with what they mean.

use crate::store::key;
use crate::store::redact::redact;
use crate::{Error, Result};

/// Azure's schemes, with `az://CONTAINER/PATH` or `az://CONTAINER@ACCOUNT.…/PATH`.
pub(crate) const AZURE: [&str; 6] = ["az", "azure", "abfs", "abfss", "wasb", "wasbs"];

/// A path or a URL that carries neither credentials nor anything that would be cut off.
pub(crate) struct Address<'a> {
    /// In small letters; empty for a path.
    pub(crate) scheme: String,
    /// Bucket, container, host: what stands between `://` and `/`.
    pub(crate) authority: &'a str,
    /// All that stands before the parts, with the `/` that ends it.
    head: &'a str,
    parts: Vec<&'a str>,
}

impl<'a> Address<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        if text.is_empty() {
            let example = "give a folder, a file, a glob or a URL such as s3://bucket/prefix";
            return Err(Error::Arguments(format!("empty path: {example}")));
        }
        if has_query(text) {
            return Err(in_url(text));
        }
        let Some((scheme, rest)) = split_scheme(text) else {
            let (head, path) = text.split_at(usize::from(text.starts_with('/')));
            return Ok(Address { scheme: String::new(), authority: "", head, parts: parts(path) });
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.strip_prefix('/').unwrap_or(path);
        let head = &text[..text.len() - path.len()];
        let address = Address { scheme: scheme.to_ascii_lowercase(), authority, head, parts: parts(path) };
        address.check(text)?;
        Ok(address)
    }

    fn check(&self, text: &str) -> Result<()> {
        let refuse = |problem: String| Err(Error::Arguments(format!("{}: {problem}", redact(text))));
        let scheme = self.scheme.as_str();
        let (is_azure, is_bucket) = (AZURE.contains(&scheme), matches!(scheme, "s3" | "s3a" | "gs"));
        // Azure writes the container where others write a user: abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH.
        if let Some((user, _)) = self.authority.rsplit_once('@')
            && (!is_azure || user.contains(':'))
        {
            return Err(in_url(text));
        }
        if !(is_azure || is_bucket || matches!(scheme, "file" | "memory" | "http" | "https")) {
            return refuse(format!(
                "unknown scheme {scheme}: paths, file://, s3://, gs://, az://, abfss://, wasbs://, http(s):// and memory:// are \
                 understood"
            ));
        }
        if self.authority.is_empty() && !matches!(scheme, "file" | "memory") {
            return refuse(format!("no bucket: write {scheme}://BUCKET/PREFIX"));
        }
        let in_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if is_bucket && !self.authority.chars().all(in_name) {
            return refuse(format!(
                "no bucket is called {}: write {scheme}://BUCKET/PREFIX, and where it is not the provider's own set the server's address \
                 in the environment (AWS_ENDPOINT)",
                self.authority
            ));
        }
        if scheme == "file" && (!matches!(self.authority, "" | "localhost") || !self.head.ends_with('/')) {
            return refuse("write file:///absolute/path".into());
        }
        if key::is_encoded(text) && text.contains('#') {
            return refuse("what stands behind a `#` is not asked for: write %23 where it belongs to a name".into());
        }
        if self.is_http() && text.contains('?') {
            return refuse("what stands behind a `?` is not asked for: write %3F where it belongs to a name".into());
        }
        Ok(())
    }

    pub(crate) fn is_http(&self) -> bool {
        self.scheme.starts_with("http")
    }

    /// The parts of the path as typed.
    pub(crate) fn parts(&self) -> &[&'a str] {
        &self.parts
    }

    /// The text up to so many parts, as typed.
    pub(crate) fn text(&self, parts: usize) -> String {
        let text = format!("{}{}", self.head, self.parts[..parts].join("/"));
        if text.is_empty() { ".".into() } else { text }
    }

    /// The path or key that so many parts mean.
    pub(crate) fn names(&self, parts: usize) -> Result<String> {
        let typed = self.parts[..parts].join("/");
        match self.scheme.as_str() {
            "" => Ok(self.text(parts)),
            "file" => Ok(format!("/{}", key::decode(&typed, &self.text(parts))?)),
            _ if self.is_http() => key::decode(&typed, &self.text(parts)),
            _ => Ok(typed),
        }
    }

    /// The pattern that the parts from one on are: what is percent-encoded stands for itself.
    pub(crate) fn pattern(&self, from: usize) -> Result<String> {
        let typed = self.parts[from..].join("/");
        if self.scheme != "file" {
            return Ok(typed);
        }
        let (mut pattern, mut rest) = (String::new(), typed.as_str());
        while let Some((plain, encoded)) = rest.find('%').map(|at| rest.split_at(at)) {
            // A character that is not ASCII takes several `%XX`; digits behind them are no wildcards and come to no harm.
            let end = encoded.find(|c: char| c != '%' && !c.is_ascii_hexdigit()).unwrap_or(encoded.len());
            let meant = key::decode(&encoded[..end], &self.text(self.parts.len()))?;
            pattern += &(plain.to_string() + &glob::Pattern::escape(&meant));
            rest = &encoded[end..];
        }
        Ok(pattern + rest)
    }
}

/// `/` at the end are nothing in a path; in a key more than one cannot be named.
fn parts(path: &str) -> Vec<&str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() { Vec::new() } else { path.split('/').collect() }
}

/// The scheme of a URL, and what stands behind `://`.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(plain)).then_some((scheme, rest))
}

/// Whether a URL carries a query that may hold a key: `?name=`.
///
/// In the URLs of the web, and of files, any name will do. Elsewhere `?` is a character of a key or of a pattern, and only a name that
/// signatures and tokens have counts. In a glob a `/` may lie between `?` and the `=` of a folder below: `part-?/layer=12`.
pub fn has_query(text: &str) -> bool {
    const SECRET: [&str; 12] = [
        "sig",
        "signature",
        "token",
        "access_token",
        "key",
        "api_key",
        "apikey",
        "secret",
        "password",
        "credential",
        "awsaccesskeyid",
        "googleaccessid",
    ];
    if split_scheme(text).is_none() {
        return false;
    }
    let names_a_value = |rest: &str| rest.find(['=', '/']).is_some_and(|at| rest[at..].starts_with('='));
    let names_a_secret = |rest: &str| {
        let names = rest.split('&').filter_map(|pair| Some(pair.split_once('=')?.0.to_ascii_lowercase()));
        names
            .into_iter()
            .any(|name| SECRET.contains(&name.as_str()) || name.starts_with("x-amz-") || name.starts_with("x-goog-"))
    };
    let is_encoded = key::is_encoded(text);
    text.split('?').skip(1).any(|rest| if is_encoded { names_a_value(rest) } else { names_a_secret(rest) })
}

fn in_url(text: &str) -> Error {
    Error::Arguments(format!(
        "{}: credentials and queries do not belong in a URL: set them in the environment (AWS_ACCESS_KEY_ID …)",
        redact(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_told_from_a_key() {
        for url in [
            "https://h/x?sig=a/b",
            "s3://b/part-?/x?sig=secret",
            "https://h/x?a&sig=secret",
            "az://c/x?a=b&X-Amz-Signature=c",
        ] {
            assert!(has_query(url), "{url}");
        }
        for url in [
            "s3://b/part-?/layer=12/*.parquet",
            "s3://b/layer=12/part-?",
            "part-?=/x",
            "s3://b/layer=12",
            "s3://b/a?b=c",
            "x?sig=secret",
        ] {
            assert!(!has_query(url), "{url}");
        }
    }

    #[test]
    fn nothing_is_cut_off() {
        let names = |text: &str| {
            let address = Address::parse(text).unwrap();
            address.names(address.parts().len()).unwrap()
        };
        for path in ["a#b/c?d", "a%20b/[0]", "~x/ü層/ .", "a\\b;c=d&e,f|g"] {
            assert_eq!(names(&format!("s3://bucket/{path}")), path);
            assert_eq!(names(&format!("gs://bucket/{path}/")), path);
            assert_eq!(names(path), path);
        }
        assert_eq!(names("file:///a%20b/%5B0%5D"), "/a b/[0]");
        assert_eq!(names("http://h:1/a%2520b/%23/ü"), "a%20b/#/ü");
        assert_eq!((names("s3://bucket"), names("/"), names("a/b/").as_str()), (String::new(), "/".into(), "a/b"));
    }
}
