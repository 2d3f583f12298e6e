//! Named tensors in the files of other tools: safetensors, and the archives of `torch.save`, of which nothing is executed.
//!
//! [`Format::read`] says where each lies, without reading its values: what a file claims is held against its size first, so that no file makes
//! anybody take memory for what it does not hold. Activations, models and dictionaries come out of the same two readers.

mod file;
mod format;
mod number;
mod pickle;
mod safetensors;
mod tensor;
mod torch;

pub use file::{File, flaw, flaw_of};
pub use format::Format;
pub use number::Number;
pub use tensor::{Tensor, Tensors};
