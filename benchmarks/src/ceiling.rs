//! The fastest that the GPU was seen to copy and to multiply: what times are held against.
//!
//! A copy of 1 GiB on the GPU, and cuBLAS on the batch and the weights that are measured, which are random: on zeros a GPU draws
//! less power and is faster. cuBLAS is what is found on the machine, and what PyTorch has measured with its own (`gemm.py`, whose
//! lines come with `--ceilings`); the faster one counts. Where there is neither, GEMMs have no ceiling, and that is said.

use std::fs;
use std::path::Path;

use kernels::cuda::Cuda;
use kernels::cuda::cublas::Cublas;
use kernels::{Device, Dictionary};
use serde_json::{Value, json};

use crate::asked::{Asked, Lines};
use crate::planted::Run;

/// Rates of a GPU, at a shape and in a precision.
#[derive(Clone, Debug)]
pub struct Ceiling {
    /// 10⁹ bytes a second, read and written.
    pub copy_gbs: f64,
    /// Of the encoder's GEMM; `None` where nothing could measure it.
    pub gemm: Option<Gemm>,
}

/// The rate of a GEMM.
#[derive(Clone, Debug)]
pub struct Gemm {
    /// 10⁹ multiplications and additions a second.
    pub gflops: f64,
    /// What reached it.
    pub by: String,
}

impl Ceiling {
    /// Measures with the batch and the weights of `run`, prints what was found, and adds it to `lines`.
    ///
    /// # Errors
    /// When the GPU fails, a line cannot be written, or the file of `--ceilings` cannot be read.
    pub fn measure(
        device: &Cuda,
        run: &mut Run<'_, Cuda>,
        asked: &Asked,
        lines: &mut Lines,
    ) -> Result<Ceiling, String> {
        let copy_gbs = device.copy_gbs(asked.small).map_err(|error| error.to_string())?;
        let (shape, rows) = (run.dictionary.shape(), run.rows());
        let key = (shape.width, shape.features, rows);
        let theirs = asked.ceilings.as_deref().map(|file| read(file, key, device.gemm_dtype())).transpose()?;
        let (dictionary, x) = run.parts();
        let own = Cublas::find(device).and_then(|cublas| {
            let gflops = cublas.gemm_gflops(device, dictionary, x, asked.small)?;
            Ok(Gemm { gflops, by: format!("cuBLAS, {}", cublas.place().display()) })
        });
        device.wait().map_err(|error| error.to_string())?;
        let measured = [theirs.flatten(), own.as_ref().ok().cloned()].into_iter().flatten();
        let gemm = measured.max_by(|a, b| a.gflops.total_cmp(&b.gflops));
        match (&gemm, own) {
            (Some(Gemm { gflops, by }), _) => {
                println!("ceiling: copy {copy_gbs:.0} GB/s, GEMM {:.1} TFLOP/s ({by})", gflops / 1e3);
            }
            (None, Err(why)) => {
                println!("ceiling: copy {copy_gbs:.0} GB/s; no ceiling of GEMMs was measured: {why}")
            }
            (None, Ok(_)) => {}
        }
        lines.add(&json!({
            "what": "ceiling", "device": device.describe(), "width": shape.width, "features": shape.features, "batch": rows,
            "copy_gbs": copy_gbs, "gemm_tflops": gemm.as_ref().map(|gemm| gemm.gflops / 1e3),
            "gemm_by": gemm.as_ref().map(|gemm| &gemm.by),
        }))?;
        Ok(Ceiling { copy_gbs, gemm })
    }
}

/// The GEMM of this shape and format among the lines of gemm.py.
fn read(file: &Path, (width, features, rows): (usize, usize, usize), dtype: &str) -> Result<Option<Gemm>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    // A part that was cut off ends within a line.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_shape = lines.filter(|line| {
        (line["what"].as_str(), line["dtype"].as_str()) == (Some("gemm"), Some(dtype))
            && [("width", width), ("features", features), ("batch", rows)]
                .iter()
                .all(|(key, value)| line[key].as_u64() == Some(*value as u64))
    });
    let rate = of_shape.filter_map(|line| line["tflops"].as_f64()).max_by(f64::total_cmp);
    Ok(rate.map(|tflops| Gemm { gflops: tflops * 1e3, by: "cuBLAS, PyTorch".to_owned() }))
}
