//! What a dictionary takes: as much as [`Device::bytes`] says, at the start and never again, and no page before its use.

use kernels::cpu::Cpu;
use kernels::{
    AdamMode, AdamUpdate, Bytes, Device, Dictionary, LearningRate, Path, Purpose, RowDtype, Shape, Tensor, Training,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes asked for and not given back.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The most that were held at once.
static MOST: AtomicUsize = AtomicUsize::new(0);

fn hold(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(held, Ordering::Relaxed);
}

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `run` gives, and how many bytes more are held after it.
fn taken_by<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = HELD.load(Ordering::Relaxed);
    let given = run();
    (given, HELD.load(Ordering::Relaxed).saturating_sub(before) as u64)
}

/// Bytes of this process in memory, where the system says so.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse::<u64>().ok()?;
    Some(pages * 4096)
}

// One test: it watches the whole process.
#[test]
fn memory_is_taken_at_the_start_as_announced() {
    let device = Cpu::new(Some(2)).expect("threads");
    // What is far too large is measured like anything else, and in no time.
    let (before, beyond) =
        (HELD.load(Ordering::Relaxed), Shape { width: 512, features: 1 << 31, batch: 64, dense_bytes: 0 });
    assert!(device.bytes(beyond, Purpose::Training).weights > 12 << 40);
    assert!(MOST.load(Ordering::Relaxed) < before + (1 << 20), "measuring takes memory");
    // The lists and the dense path's activations are far from 5 % of the rest, so that a buffer left out is noticed.
    let large = Shape { width: 512, features: 1 << 16, batch: 4096, dense_bytes: 1 << 30 };
    let again = Shape { dense_bytes: 0, ..large };
    // Kept: what is given back would come again with pages that were used.
    let (mut trained, mut evaluated, mut batches) = (Vec::new(), Vec::new(), Vec::new());
    for (shape, purpose) in [(large, Purpose::Training), (again, Purpose::Training), (large, Purpose::Evaluation)] {
        let said = device.bytes(shape, purpose);
        let before = resident();
        let ((), taken) = taken_by(|| {
            let (rows, tally) = (device.rows(shape.batch, shape.width), device.tally(shape.width, shape.features));
            batches.push((rows.expect("memory"), tally.expect("memory")));
            match purpose {
                Purpose::Training => trained.push(device.training(shape, AdamMode::Dense).expect("memory")),
                Purpose::Evaluation => evaluated.push(device.dictionary(shape).expect("memory")),
            }
        });
        // Buffers take up to 2 MiB more, to begin on a huge page.
        let all = said.weights + said.step;
        assert!(taken >= all && taken < all + all / 10, "{shape:?}: {taken} bytes, {said:?}");
        if let (Some(before), Some(after)) = (before, resident()) {
            assert!(after - before < all / 10, "{shape:?}: {} of {all} bytes are in memory unused", after - before);
        }
    }
    let [trains, again] = [large, again].map(|shape| device.bytes(shape, Purpose::Training));
    let settled = device.bytes(large, Purpose::Evaluation);
    let values = 2 * 512 * (1_u64 << 16);
    assert!(trains.step - again.step == (4 * 4096) << 16, "dense_bytes keep the activations: {trains:?} {again:?}");
    assert!(trains.weights - settled.weights > 2 * 4 * values, "no moments: {settled:?}");
    assert!(again.step - settled.step > 4 * values, "no gradient: {settled:?}");

    let shape = Shape { width: 64, features: 4096, batch: 512, dense_bytes: 1 << 30 };
    let Bytes { weights, step, .. } = device.bytes(shape, Purpose::Training);
    let mut dictionary = device.training(shape, AdamMode::Catchup).expect("memory");
    let mut settled = device.dictionary(shape).expect("memory");
    let (mut x, mut tally) = (device.rows(512, 64).expect("memory"), device.tally(64, 4096).expect("memory"));
    let mut staging = device.staging(4 * 512 * 64).expect("memory");
    let noise: Vec<f32> =
        (0..4096 * 64_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e8 - 0.08).collect();
    let bytes = noise[..512 * 64].iter().flat_map(|v| v.to_le_bytes());
    staging.as_mut().iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    for tensor in [Tensor::EncoderWeight, Tensor::DecoderWeight] {
        dictionary.write(tensor, 0..4096, &noise);
    }
    for number in 0..4 {
        let (report, taken) = taken_by(|| {
            let update =
                AdamUpdate { step: number, lr: LearningRate::constant(0.0), clip: 1.0, tokens: number, seed: 0 };
            device.normalize(&staging, RowDtype::F32, 512, 512, 1.0, &mut x);
            dictionary.encode(&x, if number < 2 { Path::Sparse } else { Path::Dense });
            dictionary.decode(&x);
            dictionary.residual(&x);
            dictionary.backward(&x, 1e-3);
            dictionary.count(&x, &mut tally, 3..500);
            dictionary.adam(&x, &update);
            dictionary.settle_into(&update, &mut settled);
            dictionary.report(0).expect("a processor")
        });
        assert!(report.ok && report.active > 512 * 4096 / 4, "{report:?}");
        // Each path's second step: the first has made the lists, or the scratch that crate gemm keeps.
        assert!(number % 2 == 0 || taken < (weights + step) / 100, "step {number} takes {taken} bytes");
    }
}
