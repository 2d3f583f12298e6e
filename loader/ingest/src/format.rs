//! Which formats there are, and which one a source is in.

use std::collections::BTreeMap;
use std::str::FromStr;

use loader::{Error, Result};
use tensors::{File, flaw};

use crate::files::{self, Found};
use crate::{arrow, parquet, safetensors};

/// A form in which other tools keep activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// NumPy's arrays.
    Npy,
    /// safetensors.
    Safetensors,
    /// Arrow's IPC files, as `datasets` and SAELens' activation cache save them.
    Arrow,
    /// Parquet, with rows or contexts as records.
    Parquet,
    /// A store of BioNeMo's.
    Bionemo,
    /// Hidden states that vLLM extracted.
    Vllm,
    /// Archives of `torch.save`.
    Torch,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 7] = [
        Format::Npy,
        Format::Safetensors,
        Format::Arrow,
        Format::Parquet,
        Format::Bionemo,
        Format::Vllm,
        Format::Torch,
    ];

    /// Its name, by which it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Format::Npy => "npy",
            Format::Safetensors => "safetensors",
            Format::Arrow => "arrow",
            Format::Parquet => "parquet",
            Format::Bionemo => "bionemo",
            Format::Vllm => "vllm",
            Format::Torch => "torch",
        }
    }

    /// What it is, in a line for people who choose one.
    pub fn about(self) -> &'static str {
        match self {
            Format::Npy => "NumPy's .npy: [rows, width] or [contexts, positions, width]",
            Format::Safetensors => "safetensors, with tensors of these shapes",
            Format::Arrow => {
                "A data set saved by Hugging Face's datasets (save_to_disk), SAELens' activation cache, other Arrow files"
            }
            Format::Parquet => "Parquet, with a row or a context in a record",
            Format::Bionemo => "A store of BioNeMo's",
            Format::Vllm => "Hidden states that vLLM extracted, a file for each request",
            Format::Torch => "Archives of torch.save, of which tensors alone are read: no pickle is executed",
        }
    }

    /// Extensions of its files.
    fn extensions(self) -> &'static [&'static str] {
        match self {
            Format::Npy => &["npy"],
            Format::Safetensors | Format::Vllm => &["safetensors"],
            Format::Arrow => &["arrow", "ipc"],
            Format::Parquet | Format::Bionemo => &["parquet", "pq"],
            Format::Torch => &["pt", "pth"],
        }
    }

    pub(crate) fn has(self, extension: &str) -> bool {
        self.extensions().contains(&extension)
    }
}

/// Reads a format's name.
impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = Format::ALL.into_iter().find(|format| format.name() == name);
        named.ok_or_else(|| Error::Arguments(format!("{name:?} is no format that is read")))
    }
}

/// Refuses a source of NumPy's archives, which look like PyTorch's from outside. Among files of a format they are other files.
pub(crate) fn refuse_archives(found: &Found) -> Result<()> {
    let is_known = |file: &File| Format::ALL.iter().any(|format| format.has(&files::extension(file)));
    match found.files.iter().find(|file| files::extension(file) == "npz") {
        Some(file) if !found.files.iter().any(is_known) => Err(file.flaw(
            "is a zip of NumPy's arrays, of which one has to be taken out: a = numpy.load(\"….npz\"), a.files are its names, \
             numpy.save(\"acts.npy\", a[\"NAME\"])",
        )),
        _ => Ok(()),
    }
}

/// The format that a source of this name is in, or why that cannot be said.
pub(crate) fn guess(found: &Found, url: &str) -> Result<std::result::Result<Format, String>> {
    let has = |key: &str| found.files.iter().any(|file| file.key() == key);
    let counted = |format: Format| found.files.iter().filter(|file| format.has(&files::extension(file))).count();
    if counted(Format::Parquet) > 0 && parquet::bionemo(found)?.is_some() {
        return Ok(Ok(Format::Bionemo));
    }
    if has("state.json") || has("dataset_dict.json") {
        // Whether the data set can be read is found out later.
        return arrow::data_files(found).map(|_| Ok(Format::Arrow));
    }
    let known = [Format::Npy, Format::Safetensors, Format::Arrow, Format::Parquet, Format::Torch];
    let there: Vec<Format> = known.into_iter().filter(|&format| counted(format) > 0).collect();
    match there.as_slice() {
        [Format::Safetensors] => {
            let first = found.files.iter().find(|file| Format::Safetensors.has(&files::extension(file)));
            let is_vllm = first.map(safetensors::looks_like_vllm).transpose()?.unwrap_or(false);
            Ok(Ok(if is_vllm { Format::Vllm } else { Format::Safetensors }))
        }
        [format] => Ok(Ok(*format)),
        [] => by_content(found, url),
        several => {
            let counts = several.iter().map(|&format| format!("{} of {}", counted(format), format.name()));
            Ok(Err(format!("{url} holds files of several formats: {}", counts.collect::<Vec<_>>().join(", "))))
        }
    }
}

/// By the first bytes of a file whose name says nothing.
fn by_content(found: &Found, url: &str) -> Result<std::result::Result<Format, String>> {
    if found.files.is_empty() {
        return Err(flaw(url, "holds nothing but files and folders whose names begin with . or _, which are not read"));
    }
    if let [file] = found.files.as_slice() {
        if file.size() == 0 {
            return Err(file.flaw("is empty: copy it again"));
        }
        let head = file.head(8)?;
        let begins = |magic: &[u8]| head.starts_with(magic);
        for (format, magic) in [
            (Format::Npy, &b"\x93NUMPY"[..]),
            (Format::Torch, b"PK\x03\x04"),
            (Format::Arrow, b"ARROW1"),
            (Format::Arrow, b"\xff\xff\xff\xff"),
            (Format::Parquet, b"PAR1"),
        ] {
            if begins(magic) {
                return Ok(Ok(format));
            }
        }
    }
    let mut extensions: BTreeMap<String, usize> = BTreeMap::new();
    found.files.iter().for_each(|file| *extensions.entry(files::extension(file)).or_default() += 1);
    let shown = extensions
        .iter()
        .take(8)
        .map(|(extension, count)| format!("{count} of .{extension}"))
        .collect::<Vec<_>>()
        .join(", ");
    let zst = if extensions.contains_key("zst") { " (decompress them first: zstd -d)" } else { "" };
    Ok(Err(format!("{url} holds no files of a known format: {shown}{zst}")))
}
