//! Every operation of a training step, behind one seam.
//!
//! [`Device`], [`Dictionary`] and [`Training`] are what the trainer sees; [`cpu`] is the implementation that runs everywhere, [`cuda`]
//! finds GPUs and makes kernels for them, [`ranks`] is how the parts of a job reach each other, and [`mesh`] says who does what. The
//! mathematics is written once per operation, in the file that carries its name.
//!
//! Shape letters used throughout: `B` rows (tokens) in a batch at most, `n` those that there are, `D` width of a row, `F` features.
//!
//! Two rows through a dictionary on the processor. All weights are 0 at first, so nothing is active and x̂ = 0:
//!
//! ```
//! use kernels::{Device, Dictionary, Path, RowDtype, Shape, cpu::Cpu};
//!
//! let cpu = Cpu::new(Some(1))?;
//! let mut dictionary = cpu.dictionary(Shape { width: 4, features: 128, batch: 2, dense_bytes: 0 })?;
//! let mut staged = cpu.staging(2 * 4 * 4)?;
//! staged.as_mut().copy_from_slice(bytemuck::cast_slice(&[1.0f32, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0]));
//! let mut x_bd = cpu.rows(2, 4)?;
//! cpu.normalize(&staged, RowDtype::F32, 2, 2, 1.0, &mut x_bd);
//!
//! dictionary.encode(&x_bd, Path::Sparse);
//! dictionary.decode(&x_bd);
//! dictionary.residual(&x_bd);
//! let report = dictionary.report(0)?;
//! assert_eq!((report.rows, report.active, report.squared_error), (2, 0, 5.0));
//! # Ok::<(), kernels::Error>(())
//! ```
//!
//! A step that trains: the only feature that fires is moved along its gradient, and the clock that says so is read back:
//!
//! ```
//! use kernels::{AdamMode, AdamUpdate, Clock, Device, Dictionary, LearningRate, Path, RowDtype, Shape, Tensor, Training, cpu::Cpu};
//!
//! let cpu = Cpu::new(Some(1))?;
//! let shape = Shape { width: 2, features: 128, batch: 1, dense_bytes: 0 };
//! let mut dictionary = cpu.training(shape, AdamMode::Touched)?;
//! dictionary.write(Tensor::EncoderWeight, 5..6, &[1.0, 0.0]);
//! dictionary.write(Tensor::DecoderWeight, 5..6, &[0.5, 0.0]);
//! let (mut staged, mut x_bd, mut tally) = (cpu.staging(8)?, cpu.rows(1, 2)?, cpu.tally(2, 128)?);
//! staged.as_mut().copy_from_slice(bytemuck::cast_slice(&[1.0f32, 0.0]));
//! cpu.normalize(&staged, RowDtype::F32, 1, 1, 1.0, &mut x_bd);
//!
//! dictionary.encode(&x_bd, Path::Sparse);
//! dictionary.decode(&x_bd);
//! dictionary.residual(&x_bd);
//! dictionary.backward(&x_bd, 0.0);
//! dictionary.count(&x_bd, &mut tally, 0..1);
//! let lr = LearningRate::constant(0.1);
//! dictionary.adam(&x_bd, &AdamUpdate { step: 0, lr, clip: 1.0, tokens: 1, seed: 0 });
//!
//! let mut w_dec = [0.0; 2];
//! dictionary.read(Tensor::DecoderWeight, 5..6, &mut w_dec)?;
//! assert!((w_dec[0] - 0.6).abs() < 1e-3 && w_dec[1] == 0.0, "x̂ was 0.5 of 1: {w_dec:?}");
//! let mut last_fired = [0; 2];
//! dictionary.read_clock(Clock::LastFired, 4..6, &mut last_fired)?;
//! assert_eq!(last_fired, [0, 1]);
//! # Ok::<(), kernels::Error>(())
//! ```

pub mod cpu;
pub mod cuda;
mod device;
mod error;
mod first_error;
pub mod mesh;
pub mod ranks;
mod sums;

pub use device::{
    ActivePairs, AdamMode, AdamUpdate, Bytes, Clock, Device, Dictionary, Formats, LearningRate, Moment, Path, Purpose,
    Report, RowDtype, Shape, Tensor, Training,
};
pub use error::{Error, System};
pub use sums::Sums;
