//! What the environment says about object stores: `AWS_*`, `GOOGLE_*`, `AZURE_*`. It is looked at before a client is made of it, since
//! clients panic at some values, or say in the middle of a request what was wrong from the start. Values are never told, but for addresses
//! and regions.

use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use crate::store::redact::redact;
use crate::{Error, Result};

/// Ends of names whose values are paths or documents, and go into no header.
const ANY_TEXT: [&str; 6] =
    ["_FILE", "_PATH", "_APPLICATION_CREDENTIALS", "_SERVICE_ACCOUNT", "_SERVICE_ACCOUNT_KEY", "_CERTIFICATE"];

/// Ends of names whose values are addresses.
const ADDRESSES: [&str; 9] = [
    "_ENDPOINT",
    "_ENDPOINT_URL",
    "_ENDPOINT_URL_S3",
    "_ENDPOINT_URL_STS",
    "_BASE_URL",
    "_PROXY_URL",
    "_FULL_URI",
    "_AUTHORITY_HOST",
    "_SERVICE_URL",
];

/// The variables with this prefix that a client knows and that are set to something, as its keys and values. An empty one counts as
/// not set.
///
/// # Errors
/// [`Error::Arguments`] naming a variable that no client could use.
pub(crate) fn settings<K: FromStr>(prefix: &str) -> Result<Vec<(K, String)>> {
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let known = variables.filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
    let known = known.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, name, value)));
    known
        .map(|(key, name, value)| {
            let value = value.into_string().map_err(|_| refused(&name, "it is no text"))?;
            check(&name, &value).map(|()| (key, value))
        })
        .collect()
}

fn refused(name: &str, problem: &str) -> Error {
    Error::Arguments(format!("{name} in the environment cannot be used: {problem}"))
}

/// Refuses what cannot be part of a request.
fn check(name: &str, value: &str) -> Result<()> {
    let ends = |names: &[&str]| names.iter().any(|end| name.ends_with(end));
    if ends(&ANY_TEXT) {
        return Ok(());
    }
    if value.trim() != value {
        return Err(refused(name, "it begins or ends with a space or a line break, as secrets made with echo do"));
    }
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(refused(name, "it holds a line break, or a character that is not plain ASCII"));
    }
    if name.ends_with("_REGION") && !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        return Err(refused(name, &format!("{value:?} is no region: write one such as us-east-1")));
    }
    if name.ends_with("_RELATIVE_URI") && !(value.starts_with('/') && may_be_in_a_url(value)) {
        return Err(refused(name, "it is no path of a URL, such as /v2/credentials"));
    }
    if ends(&ADDRESSES) && !name.contains("_USE_") { check_address(name, value) } else { Ok(()) }
}

/// Whether a URL may hold these characters as they are: what it encodes by itself, clients read in two ways.
fn may_be_in_a_url(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte))
}

/// Refuses an address that is no URL of a server.
fn check_address(name: &str, value: &str) -> Result<()> {
    // Without a scheme nothing says where credentials end.
    let shown = redact(value);
    let shown = shown.rsplit('@').next().unwrap_or_default();
    let schemes: &[&str] = if name.ends_with("_PROXY_URL") {
        &["http", "https", "socks4", "socks5", "socks5h"]
    } else {
        &["http", "https"]
    };
    let url = Url::parse(value).ok().filter(|url| schemes.contains(&url.scheme()) && may_be_in_a_url(value));
    let Some(url) = url.filter(Url::has_host) else {
        // `host:port` is a URL by its letters, with the host as its scheme.
        let host = shown.rsplit("://").next().unwrap_or_default().trim_start_matches('/');
        let host = if host.is_empty() || !may_be_in_a_url(host) { "HOST:PORT" } else { host };
        return Err(refused(name, &format!("{shown:?} is no address: write https://{host}, or http://{host}")));
    };
    let plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if !plain && !name.ends_with("_PROXY_URL") {
        return Err(refused(
            name,
            &format!("{shown:?} carries credentials or a query, which belong in variables of their own"),
        ));
    }
    Ok(())
}

/// The variable that names a proxy for requests by https or by http.
pub(crate) fn proxy(https: bool) -> Option<&'static str> {
    let own = if https { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let names = own.into_iter().chain(["ALL_PROXY", "all_proxy"]);
    names.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// What to do without credentials for the store at `url`.
pub(crate) fn no_credentials(url: &str) -> String {
    match url.split("://").next() {
        Some("gs") => {
            "no credentials: set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT to the file that holds them, or \
             GOOGLE_SKIP_SIGNATURE=true for public data"
                .to_owned()
        }
        Some("s3" | "s3a") => without_any_for_s3(),
        _ => "no credentials: set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_TENANT_ID, AZURE_CLIENT_ID and \
              AZURE_CLIENT_SECRET, or AZURE_SKIP_SIGNATURE=true for public data"
            .to_owned(),
    }
}

fn without_any_for_s3() -> String {
    let mut said =
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT, AWS_REGION where needed), \
                    or AWS_SKIP_SIGNATURE=true for public data"
            .to_owned();
    if let Some(profile) = profile() {
        let plain = profile.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let profile = if plain { profile } else { format!("'{}'", profile.replace('\'', r"'\''")) };
        said += &format!(
            ". Profiles, credential_process and SSO are not read; this command puts them into the environment: eval \"$(aws configure \
             export-credentials --profile {profile} --format env)\" (after aws sso login --profile {profile} where they come by SSO)"
        );
    }
    said + ". On a cloud machine with a role they come from 169.254.169.254, which gives none here"
}

/// The profile of AWS's tools that is asked for by name.
pub(crate) fn named_profile() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    set("AWS_PROFILE").or_else(|| set("AWS_DEFAULT_PROFILE"))
}

/// The profile that AWS's tools would use here.
fn profile() -> Option<String> {
    let file = |name: &str, default: &str| {
        let home = std::env::home_dir().map(|home| home.join(".aws").join(default));
        std::env::var_os(name).map(PathBuf::from).or(home).is_some_and(|file| file.exists())
    };
    let has_files = file("AWS_SHARED_CREDENTIALS_FILE", "credentials") || file("AWS_CONFIG_FILE", "config");
    named_profile().or_else(|| has_files.then(|| "default".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_client_could_use_is_refused_by_name_and_without_its_value() {
        for (name, value, said) in [
            ("AWS_ENDPOINT", "minio:9000", "write https://minio:9000, or http://minio:9000"),
            ("AWS_ENDPOINT_URL_S3", "ftp://minio", "write https://minio"),
            ("AWS_ENDPOINT", "http://key:c4n4ry@minio", "carries credentials"),
            ("AWS_ENDPOINT", "key:c4n4ry@minio:9000", "write https://minio:9000"),
            ("AWS_REGION", "us east 1", "no region"),
            ("AWS_ACCESS_KEY_ID", "c4n4ry\n", "begins or ends with"),
            ("AWS_SESSION_TOKEN", "c4n4ry\u{e9}", "not plain ASCII"),
            ("GOOGLE_BASE_URL", "storage", "is no address"),
            ("GOOGLE_PROXY_URL", "proxy:3128", "write https://proxy:3128"),
            ("AZURE_STORAGE_ENDPOINT", "nonsense", "is no address"),
            ("AWS_ENDPOINT", "http://minio:9000/a b", "is no address"),
            ("AWS_ENDPOINT", "http://minio:9000#a", "carries"),
            ("AZURE_AUTHORITY_HOST", "a host", "is no address"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "c4n4ry", "no path of a URL"),
        ] {
            let error = check(name, value).expect_err(value).to_string();
            assert!(error.starts_with(name) && error.contains(said) && !error.contains("c4n4ry"), "{error}");
        }
        for (name, value) in [
            ("AWS_ENDPOINT", "http://minio:9000/"),
            ("AWS_ENDPOINT", "https://[::1]:9000"),
            ("AWS_REGION", "us-gov-west-1"),
            ("AZURE_USE_FABRIC_ENDPOINT", "true"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/sécrets/token"),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", "{\n \"private_key\": \"\"\n}\n"),
            ("AWS_PROXY_URL", "http://user:password@proxy:3128"),
        ] {
            check(name, value).expect(name);
        }
    }
}
