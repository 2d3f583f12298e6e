//! What an error of an object store means to somebody who has to act on it.

use crate::Error;
use crate::store::environment::no_credentials;
use crate::store::patience;
use crate::store::redact::Redacted;

/// A store's error while reading.
pub(crate) fn read_error(url: &str, e: object_store::Error) -> Error {
    use object_store::Error as E;
    let given_up = patience::given_up(&e);
    let e = Redacted::from(e);
    let (location, text) = (url.to_string(), e.to_string());
    let address = |problem: String, e: Redacted| Error::address(url, problem, e);
    match e.get() {
        _ if text.contains("NoSuchBucket") => {
            address("the bucket does not exist (or lies at another endpoint or region)".into(), e)
        }
        // The machine is no cloud instance, or one without a role.
        _ if ["169.254.169.254", "metadata.google.internal"].iter().any(|service| text.contains(service)) => {
            let problem = no_credentials(&location);
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        _ if e.is_expired() => {
            let problem = "the credentials in the environment have expired: put new ones there".into();
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        // The answer to a HEAD has no body that could say why.
        _ if text.trim_end().ends_with("status code: 400 Bad Request:") => {
            let problem = match url.starts_with("s3") {
                true => {
                    "the store refuses and gives no reason, as it does where the credentials in the environment have expired or are of \
                     another region: put new ones there, or set AWS_REGION"
                }
                false => {
                    "the store refuses and gives no reason: check the address, and the credentials in the environment"
                }
            };
            let problem = problem.to_owned();
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        E::NotFound { .. } => Error::NotFound { location, hint: String::new(), source: Some(e.into()) },
        // Listings report a refusal without its type.
        refusal if matches!(refusal, E::PermissionDenied { .. } | E::Unauthenticated { .. }) || is_refusal(&text) => {
            let problem = format!(
                "check the credentials in the environment and the bucket's policy; the store says: {}",
                brief(&text)
            );
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => address(text, e),
        _ if text.contains("redirect without LOCATION") => {
            address("the bucket lies in another region: set AWS_REGION".into(), e)
        }
        _ if text.contains("URL scheme is not allowed") => {
            address("the endpoint is plain http: set AWS_ALLOW_HTTP=true if that is meant".into(), e)
        }
        _ => {
            let problem = given_up.unwrap_or_else(|| brief(&text));
            Error::Unreachable { location, problem, source: Some(e.into()) }
        }
    }
}

fn is_refusal(text: &str) -> bool {
    ["status code: 403", "status code: 401"].iter().any(|code| text.contains(code))
}

/// A store's error while writing: refusals mean that writing is impossible there.
pub(crate) fn write_error(url: &str, e: object_store::Error) -> Error {
    match read_error(url, e) {
        Error::Denied { location, problem, source } => Error::CannotWrite { location, problem, source },
        Error::NotFound { location, source, .. } => {
            Error::CannotWrite { location, problem: "the target does not exist".into(), source }
        }
        other => other,
    }
}

/// What a store said, in a line of bounded length: of its XML document, where it answered with one, the code and the message.
fn brief(text: &str) -> String {
    let inside = |tag: &str| {
        let (_, after) = text.split_once(&format!("<{tag}>"))?;
        Some(after.split_once(&format!("</{tag}>"))?.0)
    };
    let said = match (inside("Code"), inside("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => text.to_owned(),
    };
    let line: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > 400 { format!("{}…", line.chars().take(400).collect::<String>()) } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_document_the_code_and_the_message_are_said() {
        let xml = "status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code><Message>Access\nDenied</Message><HostId>x</HostId></Error>";
        assert_eq!(brief(xml), "AccessDenied: Access Denied");
        assert_eq!(brief("status code: 403 Forbidden:\n no"), "status code: 403 Forbidden: no");
        assert_eq!(brief(&"x".repeat(500)).chars().count(), 401);
    }

    #[test]
    fn a_refusal_without_a_reason_is_no_outage() {
        let mute = "Server returned non-2xx status code: 400 Bad Request: ";
        let of = |url: &str, text: &str| {
            read_error(url, object_store::Error::Generic { store: "S3", source: text.to_owned().into() })
        };
        let refused = of("s3://bucket/x", mute);
        assert!(matches!(refused, Error::Denied { .. }) && refused.to_string().contains("have expired"), "{refused}");
        let refused = of("gs://bucket/x", mute);
        assert!(matches!(refused, Error::Denied { .. }) && !refused.to_string().contains("AWS_REGION"), "{refused}");
        assert!(matches!(of("s3://bucket/x", &format!("{mute}no")), Error::Unreachable { .. }));
    }
}
