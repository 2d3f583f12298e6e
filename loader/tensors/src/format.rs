//! The formats, by which a file's tensors are read.

use loader::Result;

use crate::{File, Tensors, safetensors, torch};

/// How tensors lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A header in JSON, then the tensors' bytes.
    Safetensors,
    /// An archive of `torch.save`.
    Torch,
}

impl Format {
    /// Looks at a file's head. A tensor whose bytes are known, a transposed one among them, lies inside of the
    /// file with all of them.
    ///
    /// # Errors
    /// [`loader::Error::Data`] where the file is none of this format, is damaged or cut off; those of the store.
    pub fn read(self, file: &File) -> Result<Tensors> {
        match self {
            Format::Safetensors => safetensors::tensors(file),
            Format::Torch => torch::tensors(file),
        }
    }
}
