//! The memory of a thread between GEMMs, kept from one batch to the next: fresh memory for each would be zeroed by the system page by page.

use super::turns::Turns;

/// Buffers, grown to what the largest batch needs.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(super) x: Vec<f32>,
    pub(super) normed: Vec<f32>,
    /// Queries, keys and values beside each other; gate and up.
    pub(super) wide: Vec<f32>,
    pub(super) mixed: Vec<f32>,
    pub(super) scores: Vec<f32>,
    pub(super) turns: Turns,
}

/// The first `length` numbers of a buffer, which hold anything.
pub(super) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}
