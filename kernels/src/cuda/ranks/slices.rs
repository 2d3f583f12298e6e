//! A batch in slices, where ranks share the features: x̂ of one slice is made and summed over the ranks while the next is encoded.
//!
//! The main stream encodes slice after slice. The stream of sums waits for the lists of a slice, makes its x̂ and exchanges it, and
//! the main stream goes on with the residual behind the last of them. So the link is busy while the GPU multiplies, and all but
//! the last slice's exchange may hide. Nothing waits for the host.
//!
//! What keeps the streams apart: lists, x̂ and Σ a ‖W_dec‖ belong to tokens, and decode touches a slice's behind its event; weights
//! stand still; the parts that ranks send lie in one place for all slices, which follow each other on one stream; messages have an
//! order of their own ([`super::communicator`]). Counters of features and the flag of an overflow are written by the main stream alone, and
//! read by it alone: `decode` asks the token's own counter whether its list had room. The flag might be set by a later slice
//! while it runs, and threads of a block that saw two values of it would part at a barrier. A batch that has overflowed is therefore
//! refused as a whole by what follows on the main stream, behind the event where the flag has its last value. What decode has left
//! of it in x̂ is nobody's, and goes to the other ranks all the same: what is exchanged never depends on what became of a batch.
//!
//! Bits do not depend on slices: a list is sorted whatever the tile that made it, and a sum over ranks has their order, whichever rank
//! makes it.
//!
//! A slice is whole tiles of the encoder's GEMM, and reads W_enc once. Its GEMM does as many operations for a byte of W_enc
//! in bf16 as it has tokens, and GPUs multiply 156 to 295 times as fast as they read (`forecast.rs` has their data sheets): hence
//! [`LEAST`]. More slices hide more, but make messages smaller: at 512 ranks, a batch of 8192 and D = 4096 one of [`MOST`] sends
//! 64 KiB to each rank. Neither number has been measured.
//!
//! Why: on 512 GPUs with 34M features the sum of x̂ would take longer than the encoder (5.4 ms and 4.5 ms of a step, estimated by `sae
//! plan`), and one stream would leave the GPU idle for it. Not overlapped: stored rows, which the first GEMM needs; gradient rows and
//! weights on the data axis; and the dense path, whose tiles of features each add to all of x̂.

use std::ops::Range;

use cudarc::driver::CudaEvent;

use crate::Error;
use crate::cuda::runtime::engine::Engine;
use crate::cuda::runtime::memory::GpuMemory;

/// Slices of a large batch.
const MOST: usize = 4;
/// Tokens of a slice at the least, where there are several.
const LEAST: usize = 512;

/// The environment variable that says how many slices there are, whatever the batch.
const SLICES: &str = "SAE_SLICES";
/// And it may say at most so many.
const MOST_ASKED: usize = 64;

/// In how many slices a batch of `n` tokens is taken where ranks share the features.
pub fn slices(n: usize) -> usize {
    (n / LEAST).clamp(1, MOST)
}

/// Tokens of each of `slices` slices of `n`: whole tiles of `side` tokens, but for the end. Fewer slices where there are fewer tiles.
fn cut(n: usize, side: usize, slices: usize) -> Vec<Range<usize>> {
    let tiles = n.div_ceil(side);
    let slices = slices.clamp(1, tiles.max(1));
    let edge = |slice: usize| (tiles * slice / slices * side).min(n);
    (0..slices).map(|slice| edge(slice)..edge(slice + 1)).collect()
}

/// Takes batches in slices; in one where there is nothing to sum.
pub struct Slices(Option<SumStream>);

/// Where x̂ is made and summed.
struct SumStream {
    /// With the stream of sums.
    engine: Engine,
    /// As [`SLICES`] says; what is no number says nothing.
    asked: Option<usize>,
    /// Tokens of each slice of the batch that was encoded; none where it is decoded as a whole.
    tokens: Vec<Range<usize>>,
    /// Behind the lists of each slice.
    encoded: Vec<CudaEvent>,
    /// Behind the sums of the last.
    summed: CudaEvent,
}

impl Slices {
    /// Exchanges what the ranks of the feature axis were asked for: all do as the first of them.
    ///
    /// # Errors
    /// [`Error::Cuda`] and [`Error::Peer`].
    pub fn new(memory: &GpuMemory) -> Result<Self, Error> {
        let Some(engine) = memory.engine().and_then(|engine| engine.of_sums()) else { return Ok(Slices(None)) };
        let asked = std::env::var(SLICES).ok().and_then(|slices| slices.parse::<u32>().ok()).unwrap_or(0);
        let asked = engine.axes.feature.gather(&asked.to_le_bytes())?.swap_remove(0);
        let asked = asked.first_chunk().map(|asked| u32::from_le_bytes(*asked) as usize).filter(|&asked| asked > 0);
        let asked = asked.map(|asked| asked.min(MOST_ASKED));
        let encoded = (0..asked.unwrap_or(MOST)).map(|_| engine.event()).collect::<Result<_, _>>()?;
        Ok(Slices(Some(SumStream { summed: engine.event()?, asked, tokens: Vec::new(), encoded, engine })))
    }

    /// Enqueues `encode` for the tokens of each slice of `n`.
    pub fn encode(&mut self, engine: &Engine, n: usize, mut encode: impl FnMut(Range<usize>)) {
        let Some(sums) = &mut self.0 else { return encode(0..n) };
        sums.tokens = cut(n, engine.precision.tile().side, sums.asked.unwrap_or(slices(n)));
        for (tokens, encoded) in sums.tokens.iter().zip(&sums.encoded) {
            encode(tokens.clone());
            engine.note("an event", encoded.record(&engine.stream));
        }
        if sums.tokens.len() == 1 {
            // There is nothing to go on beside.
            sums.tokens.clear();
        }
    }

    /// Enqueues `decode` for the tokens of each slice of the `n` that were encoded, on the engine that it is given: behind the
    /// lists of that slice, and before whatever is enqueued next on `engine`.
    pub fn decode(&mut self, engine: &Engine, n: usize, mut decode: impl FnMut(&Engine, Range<usize>)) {
        let Some(sums) = self.0.as_mut().filter(|sums| !sums.tokens.is_empty()) else { return decode(engine, 0..n) };
        // Taken: the same lists decoded again belong behind what reads x̂, so on the main stream.
        for (tokens, encoded) in sums.tokens.drain(..).zip(&sums.encoded) {
            engine.note("waiting for lists", sums.engine.stream.wait(encoded));
            decode(&sums.engine, tokens);
        }
        engine.note("an event", sums.summed.record(&sums.engine.stream));
        engine.note("waiting for sums", engine.stream.wait(&sums.summed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_whole_tiles_that_follow_each_other() {
        assert_eq!([1, 1023, 1024, 1536, 2048, 8192].map(slices), [1, 1, 2, 3, 4, 4]);
        assert_eq!(cut(8192, 128, 4), [0..2048, 2048..4096, 4096..6144, 6144..8192]);
        assert_eq!(cut(300, 128, 3), [0..128, 128..256, 256..300]);
        assert_eq!(cut(300, 128, 2), [0..128, 128..300]);
        for n in [0, 100, 128] {
            let whole = 0..n;
            assert_eq!(cut(n, 128, 4), [whole]);
        }
    }
}
