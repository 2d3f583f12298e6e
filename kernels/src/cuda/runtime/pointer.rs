//! Places in a card's memory.

/// A place in the card's memory, as kernels take it.
pub type Pointer = u64;

/// Bytes on a card.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub at: Pointer,
    pub bytes: usize,
}
