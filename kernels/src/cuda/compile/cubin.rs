//! Cubins as files: one line that says what it is and what it was made from, then the image as the compiler gave it.
//!
//! The cache and the cubins of a release are such files. `head -1` shows the line. The build script compiles this file too.

use std::fmt::Display;

use xxhash_rust::xxh3::xxh3_128;

use super::sources::KernelSource;

/// The first word of a file. Another layout gets another number.
const MAGIC: &str = "sae-cubin-1";

/// What a cubin was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name of the source.
    pub name: String,
    /// Architecture.
    pub arch: String,
    /// Version of the compiler.
    pub nvrtc: String,
    /// Of the source, its headers and the flags.
    pub hash: u128,
}

impl Label {
    /// Of a source, compiled for an architecture by a version of the compiler.
    pub fn new(source: &KernelSource, arch: impl Display, nvrtc: impl Display) -> Self {
        Label { name: source.name().to_owned(), arch: arch.to_string(), nvrtc: nvrtc.to_string(), hash: source.hash() }
    }

    /// A file name that tells apart whatever the label does.
    pub fn file_name(&self) -> String {
        format!("{}-nvrtc{}.cubin", self.prefix(), self.nvrtc)
    }

    /// What such names begin with, whatever the version of the compiler.
    pub fn prefix(&self) -> String {
        format!("{}-{}-{:032x}", self.name, self.arch, self.hash)
    }

    /// The content of a file.
    pub fn wrap(&self, image: &[u8]) -> Vec<u8> {
        let Label { name, arch, nvrtc, hash } = self;
        let line =
            format!("{MAGIC} {name} {arch} nvrtc {nvrtc} made-from {hash:032x} image {:032x}\n", xxh3_128(image));
        [line.as_bytes(), image].concat()
    }

    /// Label and image of a file's content.
    ///
    /// # Errors
    /// Says how it is damaged.
    pub fn unwrap(file: &[u8]) -> Result<(Label, &[u8]), String> {
        let end = file.iter().take(1000).position(|&byte| byte == b'\n').ok_or("it has no first line")?;
        let line = std::str::from_utf8(&file[..end]).map_err(|_| "its first line is no text")?;
        let image = &file[end + 1..];
        let words: Vec<&str> = line.split(' ').collect();
        let [MAGIC, name, arch, "nvrtc", nvrtc, "made-from", hash, "image", sum] = words[..] else {
            return Err(format!("it does not begin with {MAGIC} and what belongs to it"));
        };
        let number = |word: &str| u128::from_str_radix(word, 16).map_err(|_| format!("{word:?} is no hash"));
        if number(sum)? != xxh3_128(image) {
            return Err("its image does not have the checksum that its first line names".to_owned());
        }
        let label = Label { name: name.into(), arch: arch.into(), nvrtc: nvrtc.into(), hash: number(hash)? };
        Ok((label, image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_back_and_damage_is_seen() {
        let label = Label { name: "encode".into(), arch: "sm_90a".into(), nvrtc: "13.2".into(), hash: 7 };
        let file = label.wrap(b"\x7fELF and more\n");
        assert_eq!(Label::unwrap(&file), Ok((label, b"\x7fELF and more\n".as_slice())));
        for cut in 0..file.len() {
            assert!(Label::unwrap(&file[..cut]).is_err(), "cut to {cut}");
        }
        let mut flipped = file.clone();
        *flipped.last_mut().expect("it has bytes") ^= 1;
        assert!(Label::unwrap(&flipped).is_err());
        assert!(Label::unwrap(b"\x7fELF").is_err());
    }
}
