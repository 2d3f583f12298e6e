//! Secrets stay out of messages.

use std::error::Error;
use std::fmt;

/// An error of a store's client, shown without the credentials that its texts may hold. It has no source: the causes of a client's error are
/// in its text, and would show on their own what it hides.
pub struct Redacted(object_store::Error);

impl Redacted {
    /// The client's error, whose texts must not be shown.
    pub fn get(&self) -> &object_store::Error {
        &self.0
    }

    /// Whether the store said that the credentials are no longer valid.
    pub fn is_expired(&self) -> bool {
        chain(&self.0).contains("ExpiredToken")
    }
}

impl From<object_store::Error> for Redacted {
    fn from(error: object_store::Error) -> Self {
        Redacted(error)
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&chain(&self.0)))
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redacted({self})")
    }
}

impl Error for Redacted {}

/// An error with its causes, each once.
fn chain(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let next = c.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = c.source();
    }
    text
}

/// Cuts user names, passwords and queries (signatures, tokens) out of URLs in a text.
pub(crate) fn redact(text: &str) -> String {
    let service = std::env::var("AWS_CONTAINER_CREDENTIALS_FULL_URI").ok();
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
        let authority = &no_query[start..authority_end];
        // A process that knows the path there is given the credentials of a container.
        let gives_credentials =
            authority.starts_with("169.254.") || is_host_of(service.as_deref().unwrap_or_default(), authority);
        out.push_str(if gives_credentials { authority } else { &no_query[start..] });
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// Whether a URL leads to this host and port.
fn is_host_of(url: &str, authority: &str) -> bool {
    let rest = url.split_once("://").and_then(|(_, rest)| rest.strip_prefix(authority));
    !authority.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_client_hides_its_credentials_in_both_its_texts() {
        let source = "GET https://key:c4n4ry@host/a?sig=c4n4ry failed".into();
        let error = Redacted::from(object_store::Error::Generic { store: "S3", source });
        for said in [error.to_string(), format!("{error:?}")] {
            assert!(said.contains("https://host/a") && !said.contains("c4n4ry"), "{said}");
        }
        assert!(error.source().is_none() && matches!(error.get(), object_store::Error::Generic { .. }));
    }

    #[test]
    fn credentials_are_cut_out() {
        assert_eq!(redact("GET https://u:p@h/a?sig=x failed"), "GET https://h/a failed");
        assert_eq!(redact("no url"), "no url");
        assert!(
            is_host_of("http://127.0.0.1:80/secret", "127.0.0.1:80") && is_host_of("http://localhost", "localhost")
        );
        assert!(!is_host_of("http://127.0.0.1:80/secret", "127.0.0.1:8") && !is_host_of("", ""));
        assert_eq!(redact("GET http://169.254.170.2/v2/credentials/x in 1 s"), "GET http://169.254.170.2 in 1 s");
    }
}
