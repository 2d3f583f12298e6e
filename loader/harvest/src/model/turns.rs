//! Rotary positions: how far each pair of a head is turned.

/// Cosines and sines of the rotary angles of each position.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    /// Those of positions below `length`.
    pub(super) fn reach(&mut self, length: usize, frequencies: &[f32]) {
        self.pairs = frequencies.len();
        if self.pairs == 0 {
            return;
        }
        for position in self.cos.len() / self.pairs..length {
            // As transformers has it: the angle is rounded to f32 first.
            self.cos.extend(frequencies.iter().map(|&frequency| (position as f32 * frequency).cos()));
            self.sin.extend(frequencies.iter().map(|&frequency| (position as f32 * frequency).sin()));
        }
    }

    /// Those of a position.
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.pairs..(position + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
