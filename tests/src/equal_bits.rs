//! The same steps twice on a device, and the same bits in all that a checkpoint holds: at a size at which a GPU has more blocks to
//! run than fit on it at once, which places in lists and the order of sums must not show.

use std::ops::Range;

use kernels::{AdamMode, Device, Dictionary, Moment, Path, Report, RowDtype, Shape, Tensor, Training};
use trainer::step::{StepInput, step};
use xxhash_rust::xxh3::Xxh3;

use crate::cases::{TENSORS, update};
use crate::fixture::Numbers;

/// Steps of a run.
pub const STEPS: u64 = 20;

/// Every so many steps one takes the dense path.
const DENSE_EVERY: u64 = 10;

/// Values of an array that are on the host at once.
const BLOCK: usize = 1 << 22;

/// A dictionary and how often its features fire at first.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// D.
    pub width: usize,
    /// F.
    pub features: usize,
    /// B.
    pub batch: usize,
    /// All of b_enc, where a pre-activation is about normal: −3.1 lets a feature fire on a thousandth of the rows.
    pub bias: f32,
}

/// One as trained on one GPU: 1024 × 64 tiles of the encoder's GEMM in bf16.
pub const FULL: Size = Size { width: 768, features: 131_072, batch: 8192, bias: -3.1 };

/// One that crosses a tile in each direction, for the emulator.
pub const SMALL: Size = Size { width: 72, features: 264, batch: 140, bias: -1.5 };

/// Values in rows of `columns`, uniform, with a square of 1 in the mean when `scale` is 1.
fn rows(seed: u64, rows: usize, columns: usize, scale: f32) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    (0..rows * columns).map(|_| scale * 3f32.sqrt() * numbers.unit()).collect()
}

/// What a run leaves.
#[derive(PartialEq)]
struct Left {
    reports: Vec<Report>,
    /// Of each array: its name, and a hash of its bits.
    arrays: Vec<(String, u128)>,
}

/// How many rows of an array are moved at once.
fn block(columns: usize) -> usize {
    (BLOCK / columns).max(1)
}

fn arrays(size: &Size) -> [(Tensor, usize, usize); 4] {
    let Size { width, features, .. } = *size;
    TENSORS.map(|tensor| match tensor {
        Tensor::EncoderWeight | Tensor::DecoderWeight => (tensor, features, width),
        Tensor::EncoderBias => (tensor, features, 1),
        Tensor::DecoderBias => (tensor, 1, width),
    })
}

fn run<D: Device>(device: &D, size: &Size) -> Left {
    let Size { width, features, batch, bias } = *size;
    let shape = Shape { width, features, batch, dense_bytes: 1 << 30 };
    let mut dictionary = device.training(shape, AdamMode::Dense).expect("memory");
    for (tensor, rows_all, columns) in arrays(size) {
        for first in (0..rows_all).step_by(block(columns)) {
            let some = first..(first + block(columns)).min(rows_all);
            let values = match tensor {
                Tensor::EncoderBias => vec![bias; some.len()],
                _ => rows(tensor as u64 + 10 * first as u64, some.len(), columns, 1.0 / (width as f32).sqrt()),
            };
            dictionary.write(tensor, some, &values);
        }
    }
    let mut staging = device.staging(4 * batch * width).expect("memory");
    let (mut x, mut tally) =
        (device.rows(batch, width).expect("memory"), device.tally(width, features).expect("memory"));
    let mut reports = Vec::new();
    for number in 0..STEPS {
        let values = rows(1000 + number, batch, width, 1.0);
        let bytes = staging.as_mut().chunks_exact_mut(4).zip(values);
        bytes.for_each(|(bytes, value)| bytes.copy_from_slice(&value.to_le_bytes()));
        device.normalize(&staging, RowDtype::F32, batch, batch, 1.0, &mut x);
        let path = if number % DENSE_EVERY == DENSE_EVERY - 1 { Path::Dense } else { Path::Sparse };
        let input = StepInput { path, lambda: 0.1, update: update(number), counted: 0..batch };
        step(&mut dictionary, &x, &mut tally, &input);
        reports.push(dictionary.report(0).expect("a device that works"));
    }
    let each = arrays(size).into_iter().flat_map(|(tensor, rows, columns)| {
        let value = hash((rows, columns), |some, out| dictionary.read(tensor, some, out));
        let moments = [Moment::First, Moment::Second].map(|moment| {
            let read = |some, out: &mut [f32]| dictionary.read_moment(tensor, moment, some, out);
            (format!("{tensor:?} {moment:?}"), hash((rows, columns), read))
        });
        [(format!("{tensor:?}"), value)].into_iter().chain(moments)
    });
    Left { reports, arrays: each.collect() }
}

/// Of an array of so many rows and columns.
fn hash(
    (rows, columns): (usize, usize),
    read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), kernels::Error>,
) -> u128 {
    let mut hash = Xxh3::new();
    for first in (0..rows).step_by(block(columns)) {
        let some = first..(first + block(columns)).min(rows);
        let mut values = vec![f32::NAN; some.len() * columns];
        read(some, &mut values).expect("a device that works");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
        hash.update(&bytes);
    }
    hash.digest128()
}

/// Makes the steps twice.
///
/// # Panics
/// When a step is refused, hardly anything or nearly all of the dictionary fires, or a number differs: the first step whose report
/// does, or else the arrays.
pub fn check<D: Device>(device: &D, size: &Size) {
    let (one, other) = (run(device, size), run(device, size));
    for (number, (report, again)) in one.reports.iter().zip(&other.reports).enumerate() {
        assert!(report.ok, "step {number} at {size:?} is refused: {report:?}");
        assert!(report == again, "step {number} at {size:?} is {report:?}, and then {again:?}");
    }
    let all = (size.features * size.batch) as u64;
    let active = one.reports[0].active;
    assert!((all / 10_000..all / 5).contains(&active), "{active} of {all} pairs are active");
    let differing = one.arrays.iter().zip(&other.arrays).filter(|(one, other)| one != other);
    let differing: Vec<&str> = differing.map(|((name, _), _)| name.as_str()).collect();
    assert_eq!(differing, [""; 0], "arrays whose bits differ at {size:?}");
}
