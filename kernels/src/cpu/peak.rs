//! What this machine can do at best, measured: benchmarks report their rates as a share of these.

use super::device::Cpu;
use super::gemm::{Matrix, multiply};
use super::memory::Buffer;
use super::screen::{ScreenDtype, busy_products};
use super::simd::{CHAINS, Kernel, LANES, Lanes};
use std::hint::black_box;
use std::time::Instant;

/// Rates of all threads of a device together; the best of several tries.
#[derive(Clone, Debug)]
pub struct Peaks {
    /// f32 fused multiply-add, GFLOP/s.
    pub fma_gflops: f64,
    /// bf16 products, GFLOP/s, where the machine has them.
    pub bf16_gflops: Option<f64>,
    /// int8 products, Gop/s, where the machine has them.
    pub int8_gops: Option<f64>,
    /// Crate `gemm`, one GEMM of 512 × 1024 × 512 a thread, GFLOP/s.
    pub gemm_gflops: f64,
    /// Copying 64 MB a thread, bytes read plus bytes written, GB/s.
    pub copy_gbs: f64,
}

const TRIES: usize = 7;

impl Cpu {
    /// Measures for about a second.
    ///
    /// # Panics
    /// When there is no memory for 128 MB a thread.
    pub fn peaks(&self) -> Peaks {
        let steps = 2_000_000;
        let narrow = |screen: ScreenDtype, per_word: usize| {
            screen.available().then(|| {
                let ops = steps * CHAINS * LANES * 2 * per_word;
                self.rate(ops, || (), |()| busy_products(screen, steps))
            })
        };
        let isa = self.engine.isa;
        let square = || [vec![1.0_f32; 512 * 512], vec![1.0; 512 * 1024], vec![0.0; 512 * 1024]];
        let gemm = |[a, b, c]: &mut [Vec<f32>; 3]| {
            multiply(c, 1024, false, Matrix::new(a, 512, 512, 512), Matrix::new(b, 512, 1024, 1024));
        };
        let bytes = 64 << 20;
        let buffers = || {
            let mut buffers = [0; 2].map(|_: i32| Buffer::new(bytes, "copies").unwrap_or_else(|e| panic!("{e}")));
            // Pages that nobody has written are one page of zeros, which would be read from a cache.
            buffers.iter_mut().for_each(|buffer: &mut Buffer<u8>| buffer.fill(1));
            buffers
        };
        Peaks {
            fma_gflops: self.rate(steps * CHAINS * LANES * 2, || (), |()| isa.run(BusyFma { steps })),
            bf16_gflops: narrow(ScreenDtype::Bf16, 2),
            int8_gops: narrow(ScreenDtype::Int8, 4),
            gemm_gflops: self.rate(2 * 512 * 1024 * 512, square, gemm),
            copy_gbs: self.rate(2 * bytes, buffers, |[to, from]| to.copy_from_slice(from)),
        }
    }

    /// Billions of `work` a second when every thread does it at once.
    fn rate<S>(&self, work: usize, state: impl Fn() -> S + Sync, run: impl Fn(&mut S) + Sync) -> f64 {
        let seconds = self.engine.pool.broadcast(|_| {
            let mut state = state();
            run(&mut state);
            let tries = (0..TRIES).map(|_| {
                let start = Instant::now();
                run(black_box(&mut state));
                start.elapsed().as_secs_f64()
            });
            tries.fold(f64::INFINITY, f64::min)
        });
        seconds.into_iter().map(|seconds| work as f64 / seconds / 1e9).sum()
    }
}

struct BusyFma {
    steps: usize,
}

impl Kernel for BusyFma {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let x = l.splat(black_box(0.5));
        let mut sums = [l.splat(0.0); CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = l.fma(*sum, x, x);
            }
        }
        black_box(sums.map(|sum| l.sum(sum)));
    }
}
