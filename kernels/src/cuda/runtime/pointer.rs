//! Places in a GPU's memory.

/// A place in the GPU's memory, as kernels take it.
pub type Pointer = u64;

/// Bytes on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub at: Pointer,
    pub bytes: usize,
}
