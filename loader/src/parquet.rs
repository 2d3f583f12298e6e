//! Inside a file: footers that can be trusted, where the rows lie, and the rows.

pub(crate) mod chunks;
pub(crate) mod column;
pub(crate) mod decode;
pub(crate) mod footer;
pub(crate) mod footers;
mod inflate;
pub(crate) mod metadata;
pub(crate) mod nested;
pub(crate) mod pages;
pub(crate) mod records;
pub(crate) mod texts;
pub(crate) mod thrift;
