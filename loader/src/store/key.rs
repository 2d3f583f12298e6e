//! Keys of object stores, from text and back: the only place that turns one into the other.
//!
//! A key is text, and parts of it lie between `/`. `object_store` names every key but those with an empty part (`a//b`), a part `.` or
//! `..`, or an ASCII control character. It also offers to percent-encode a part: that would be another key, and nothing here does it.
//! In the text of a URL keys stand as they are, as `aws s3` takes them, unless the scheme's own rules are those of the web: `file://`
//! and `http(s)://` are percent-encoded, and only they.
//!
//! A listing fails as a whole, in `object_store`, on one key that it cannot name: `listing.rs` has what is done about that. Text is a
//! pattern only from the part on that names nothing: asking the store costs a request or two for each part with a wildcard.

use object_store::path::{Error as PathError, Path as Key};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::{Error, Result};

/// What has a meaning in a percent-encoded URL, or in a pattern.
const MEANT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'*')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'`');

/// The key that a text names below a prefix. `url` is what messages call it.
pub(crate) fn below(prefix: &Key, text: &str, url: impl FnOnce() -> String) -> Result<Key> {
    if text.is_empty() {
        return Ok(prefix.clone());
    }
    let whole = if prefix.is_root() { text.to_string() } else { format!("{prefix}/{text}") };
    match bad_part(&whole) {
        None => Key::parse(&whole).map_err(|e| Error::Arguments(format!("{}: {e}", url()))),
        Some((_, problem)) => Err(Error::Arguments(format!("{}: {problem}: {REMEDY}", url().escape_debug()))),
    }
}

/// The text of a key below a prefix, if it lies there.
pub(crate) fn relative(prefix: &Key, key: &Key) -> Option<String> {
    let below = key.as_ref().strip_prefix(prefix.as_ref())?;
    let below = if prefix.is_root() { below } else { below.strip_prefix('/')? };
    (!below.is_empty()).then(|| below.to_string())
}

/// What to do about a key that cannot be named.
const REMEDY: &str =
    "no object is read or written by such a key: choose another, and move what has it, as with `aws s3 mv`";
/// The same about keys that a listing met.
pub(crate) const CANNOT_BE_NAMED: &str = "an empty part (`//`), a part `.` or `..` or a control character is in these keys, by which no \
    object can be read: if they belong to the data, move them to other keys, as with `aws s3 mv`";

/// The first part of a key that `object_store` cannot name: where it ends in the text, and what is wrong with it.
fn bad_part(key: &str) -> Option<(usize, &'static str)> {
    let mut end = 0;
    for part in key.split('/') {
        end += part.len();
        if part.is_empty() {
            return Some((end, "a part of the key is empty (`//`)"));
        } else if part == "." || part == ".." {
            return Some((end, "a part of the key is `.` or `..`"));
        } else if part.contains(|c: char| c.is_ascii_control()) {
            return Some((end, "a control character is in the key"));
        }
        end += 1;
    }
    None
}

/// Of a key that a listing met and cannot name: the key or, where a folder's name is what cannot be named, that folder with its `/`.
pub(crate) fn unnamed(e: &object_store::Error) -> Option<String> {
    let object_store::Error::InvalidPath { source } = e else { return None };
    let (PathError::EmptySegment { path } | PathError::BadSegment { path, .. }) = source else { return None };
    // A key may begin with `/`, and a prefix ends with it: `object_store` cuts both off.
    let cut = usize::from(path.starts_with('/'));
    let (end, _) = bad_part(&path[cut..])?;
    Some(path[..path.len().min(cut + end + 1)].to_string())
}

/// Whether the text of a URL is percent-encoded.
pub(crate) fn is_encoded(url: &str) -> bool {
    url.split_once("://")
        .is_some_and(|(scheme, _)| ["file", "http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s)))
}

/// A key as it is typed below a URL.
pub(crate) fn typed(url: &str, key: &str) -> String {
    if !is_encoded(url) {
        return key.to_string();
    }
    // What is not ASCII stays: people read it, and it means itself there too.
    let plain = |c: char| {
        if c.is_ascii() { utf8_percent_encode(c.encode_utf8(&mut [0; 4]), MEANT).to_string() } else { c.to_string() }
    };
    key.chars().map(plain).collect()
}

/// What a part of a percent-encoded URL means.
pub(crate) fn decode(part: &str, url: &str) -> Result<String> {
    let text = percent_decode_str(part).decode_utf8();
    text.map(String::from).map_err(|e| Error::address(url, format!("{part} is not percent-encoded UTF-8"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<Key> {
        below(&Key::ROOT, text, || format!("memory://{text}"))
    }

    #[test]
    fn keys_are_what_is_typed() {
        for text in ["a%3Ab/c~/x[0]#?* ü層", "%", "%zz", "a\\b", "...", ".a/_b", "a:b@c&d=e+f", " a /b", "\u{85}"] {
            let whole = key(text).unwrap();
            assert_eq!(whole.as_ref(), text);
            let prefix = key("p%20q~/r").unwrap();
            let inside = below(&prefix, text, String::new).unwrap();
            assert_eq!(relative(&prefix, &inside).unwrap(), text);
            assert_eq!(relative(&key("p%20q~").unwrap(), &inside).unwrap(), format!("r/{text}"));
            assert_eq!(relative(&key("p%20q").unwrap(), &inside), None, "a prefix ends where a part does");
        }
        assert_eq!(below(&key("a").unwrap(), "", String::new).unwrap(), key("a").unwrap());
    }

    #[test]
    fn what_cannot_be_named_is_told() {
        for (text, word) in [
            ("a//b", "empty"),
            ("/a", "empty"),
            ("a/", "empty"),
            ("a/../b", ".."),
            ("a/./b", ".."),
            ("a\nb/c", "control"),
        ] {
            let error = key(text).unwrap_err();
            assert!(matches!(error, Error::Arguments(_)), "{error:?}");
            let said = error.to_string();
            assert!(said.contains(word) && said.contains(REMEDY) && !said.contains('\n'), "{said}");
        }
        for (text, name) in
            [("d/a//b/c", "d/a//"), ("d/a//", "d/a//"), ("d/../x", "d/../"), ("d/x\u{1}y", "d/x\u{1}y"), ("//a", "//")]
        {
            assert_eq!(unnamed(&Key::parse(text).unwrap_err().into()).as_deref(), Some(name));
        }
    }

    #[test]
    fn urls_of_the_web_are_encoded_and_others_are_not() {
        let text = "a b%3A[0]#?*\\ü層~{}";
        assert_eq!(typed("s3://b", text), text);
        assert_eq!(typed("/folder", text), text);
        let encoded = typed("HTTP://h", text);
        assert_eq!(encoded, "a%20b%253A%5B0%5D%23%3F%2A%5Cü層~{}");
        assert_eq!(decode(&encoded, "").unwrap(), text);
    }
}
