//! All objects below a prefix of an object store, past those whose keys cannot be named.
//!
//! One such key fails the page that it is on. The page is then asked for in halves until the key comes alone; its name is in the error,
//! and the listing goes on behind it, or behind the folder that cannot be named.

use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, Result};

use crate::store::key;

/// Keys on a page, as stores give them unless they are asked for fewer.
const PAGE: usize = 1000;
/// The last character: behind all others.
const LAST: char = char::MAX;

/// What lies below a prefix.
#[derive(Default)]
pub(crate) struct Listing {
    /// Objects whose keys can be named.
    pub(crate) objects: Vec<ObjectMeta>,
    /// The other keys, and folders of such, which end with `/`.
    pub(crate) unnamed: Vec<String>,
}

/// Where the next page begins.
enum From {
    Start,
    Page(String),
    Behind(String),
}

/// Lists what is below a folder: all of it, or the pages in which `most` objects come.
pub(crate) async fn list(pages: &dyn PaginatedListStore, folder: &Key, most: usize) -> Result<Listing> {
    if !folder.is_root() {
        return below(pages, Some(&format!("{folder}/")), most).await;
    }
    // The client cuts a `/` at the beginning of a key off, so that it would pass for another.
    let slashed = below(pages, Some("/"), most).await?;
    let mut all = below(pages, None, most).await?;
    if !(slashed.objects.is_empty() && slashed.unnamed.is_empty()) {
        for other in slashed.objects {
            if let Some(at) = all.objects.iter().position(|o| o.location == other.location && o.e_tag == other.e_tag) {
                all.objects.swap_remove(at);
            }
        }
        all.unnamed.retain(|name| !name.starts_with('/'));
        all.unnamed.insert(0, "/".into());
    }
    Ok(all)
}

/// Whether something lies below a folder.
pub(crate) async fn is_empty(pages: &dyn PaginatedListStore, folder: &Key) -> Result<bool> {
    let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
    match pages.list_paginated(Some(&format!("{folder}/")), options).await {
        Ok(page) => Ok(page.result.objects.is_empty()),
        Err(e) if key::unnamed(&e).is_some() => Ok(false),
        Err(e) => Err(e),
    }
}

async fn below(pages: &dyn PaginatedListStore, prefix: Option<&str>, most: usize) -> Result<Listing> {
    let mut listing = Listing::default();
    let (mut from, mut size) = (From::Start, PAGE);
    loop {
        let (offset, page_token) = match &from {
            From::Start => (None, None),
            From::Page(token) => (None, Some(token.clone())),
            From::Behind(key) => (Some(key.clone()), None),
        };
        let max_keys = (size < PAGE).then_some(size);
        let options = PaginatedListOptions { offset, page_token, max_keys, ..Default::default() };
        match pages.list_paginated(prefix, options).await {
            Ok(page) => {
                listing.objects.extend(page.result.objects);
                match page.page_token.filter(|token| !token.is_empty()) {
                    Some(_) if listing.objects.len() >= most => return Ok(listing),
                    Some(token) => from = From::Page(token),
                    None => return Ok(listing),
                }
                size = (2 * size).min(PAGE);
            }
            Err(e) => match key::unnamed(&e) {
                Some(_) if size > 1 => size /= 2,
                // A store that begins at the key and not behind it would answer so for ever.
                Some(name) if listing.unnamed.last() != Some(&name) => {
                    from = From::Behind(if name.ends_with('/') { format!("{name}{LAST}") } else { name.clone() });
                    listing.unnamed.push(name);
                }
                _ => return Err(e),
            },
        }
    }
}
