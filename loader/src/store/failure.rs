//! What an error of an object store means to somebody who has to act on it.

use crate::Error;
use crate::store::environment::no_credentials;
use crate::store::patience;
use crate::store::redact::redact;

/// A store's error while reading.
pub(crate) fn read_error(url: &str, e: object_store::Error) -> Error {
    use object_store::Error as E;
    let (location, text) = (url.to_string(), redact(&chain(&e)));
    match e {
        _ if text.contains("NoSuchBucket") => {
            Error::Arguments(format!("{location}: the bucket does not exist (or lies at another endpoint or region)"))
        }
        // The machine is no cloud instance, or one without a role.
        _ if ["169.254.169.254", "metadata.google.internal"].iter().any(|service| text.contains(service)) => {
            let problem = no_credentials(&location);
            Error::Denied { location, problem }
        }
        _ if text.contains("ExpiredToken") => Error::Denied {
            location,
            problem:
                "the credentials in the environment have expired: put new ones there, and go on with --resume-or-start"
                    .into(),
        },
        E::NotFound { .. } => Error::NotFound { location, hint: String::new() },
        // Listings report a refusal without its type.
        _ if matches!(e, E::PermissionDenied { .. } | E::Unauthenticated { .. }) || is_refusal(&text) => {
            Error::Denied {
                location,
                problem: format!(
                    "check the credentials in the environment and the bucket's policy; the store says: {}",
                    brief(&text)
                ),
            }
        }
        E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => Error::Arguments(format!("{location}: {text}")),
        _ if text.contains("redirect without LOCATION") => {
            Error::Arguments(format!("{location}: the bucket lies in another region: set AWS_REGION"))
        }
        _ if text.contains("URL scheme is not allowed") => Error::Arguments(format!(
            "{location}: the endpoint is plain http: set AWS_ALLOW_HTTP=true if that is meant"
        )),
        e => Error::Unreachable { location, problem: patience::given_up(&e).unwrap_or_else(|| brief(&text)) },
    }
}

fn is_refusal(text: &str) -> bool {
    ["status code: 403", "status code: 401"].iter().any(|code| text.contains(code))
}

/// A store's error while writing: refusals mean that writing is impossible there.
pub(crate) fn write_error(url: &str, e: object_store::Error) -> Error {
    match read_error(url, e) {
        Error::Denied { location, problem } => Error::CannotWrite { location, problem },
        Error::NotFound { location, .. } => {
            Error::CannotWrite { location, problem: "the target does not exist".into() }
        }
        other => other,
    }
}

/// An error with its causes, each once.
fn chain(e: &dyn std::error::Error) -> String {
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

/// The first line, of bounded length: servers answer with whole XML documents.
fn brief(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > 400 { format!("{}…", line.chars().take(400).collect::<String>()) } else { line }
}
