//! The recipe in plain double precision: the reference that golden losses are made with. Dense, one loop for each formula,
//! nothing shared with the kernels.

use std::path::PathBuf;

use trainer::recipe::{InitSpace, Order, Recipe, Scale};

use crate::fixture::{Fixture, Numbers, json, json_lines, plain_rows, write_shards};
use crate::sae;

/// A small training run, the same on every machine.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name of the golden file.
    pub name: &'static str,
    /// Encoder biases at the start: 0 fires half of the features, −0.2 some of a hundred.
    pub bias: f32,
}

/// All cases.
pub const CASES: [Case; 2] = [Case { name: "dense", bias: 0.0 }, Case { name: "sparse", bias: -0.2 }];

/// D.
pub const WIDTH: usize = 64;
/// F.
pub const FEATURES: usize = 512;
/// B.
pub const BATCH: usize = 64;
/// 20 steps, the last one short.
pub const ROWS: usize = 19 * BATCH + 40;
/// Factor on rows: a power of two, which rounds nothing.
pub const SCALE: f32 = 0.5;
/// Learning rate.
pub const LR: f64 = 1e-3;
/// λ.
pub const L1: f64 = 2.0;
/// Share of the steps over which λ rises: five steps, so that a wrong index shows.
pub const L1_WARMUP: f64 = 0.25;
/// Share of the steps over which the learning rate falls.
pub const LR_DECAY: f64 = 0.2;
/// Greatest norm of the gradient.
pub const CLIP: f64 = 1.0;

/// Means over the rows of a step, before its update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// `mse + λ·l1`.
    pub loss: f64,
    /// Mean squared error, summed over D.
    pub mse: f64,
    /// Mean of `Σ a ‖W_dec‖`.
    pub l1: f64,
    /// Mean number of active features.
    pub l0: f64,
}

/// The rows of every case.
pub fn rows() -> Vec<f32> {
    plain_rows(ROWS, WIDTH, 1)
}

/// The four tensors of a weight file: `W_enc [D,F]`, `b_enc [F]`, `W_dec [F,D]`, `b_dec [D]`.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `W_enc`, `[D, F]`.
    pub w_enc_df: Vec<f32>,
    /// `b_enc`, `[F]`.
    pub b_enc_f: Vec<f32>,
    /// `W_dec`, `[F, D]`.
    pub w_dec_fd: Vec<f32>,
    /// `b_dec`, `[D]`.
    pub b_dec_d: Vec<f32>,
}

impl Weights {
    /// Random directions of norm 0.1, the encoder their transpose.
    pub fn start(width: usize, features: usize, bias: f32) -> Weights {
        let mut numbers = Numbers::new(2);
        let mut w_dec_fd: Vec<f32> = (0..features * width).map(|_| numbers.unit()).collect();
        for row_d in w_dec_fd.chunks_exact_mut(width) {
            let norm = row_d.iter().map(|w| w * w).sum::<f32>().sqrt();
            row_d.iter_mut().for_each(|w| *w *= 0.1 / norm);
        }
        let mut w_enc_df = vec![0.0; width * features];
        for (f, row_d) in w_dec_fd.chunks_exact(width).enumerate() {
            row_d.iter().enumerate().for_each(|(d, w)| w_enc_df[d * features + f] = *w);
        }
        Weights { w_enc_df, b_enc_f: vec![bias; features], w_dec_fd, b_dec_d: vec![0.0; width] }
    }

    /// As a safetensors file for `train.init_from`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &std::path::Path) {
        use safetensors::tensor::{Dtype, TensorView};
        let (width, features) = (self.b_dec_d.len(), self.b_enc_f.len());
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let tensors = [
            ("W_enc", vec![width, features], bytes(&self.w_enc_df)),
            ("b_enc", vec![features], bytes(&self.b_enc_f)),
            ("W_dec", vec![features, width], bytes(&self.w_dec_fd)),
            ("b_dec", vec![width], bytes(&self.b_dec_d)),
        ];
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes fit the shape"))
        });
        std::fs::write(path, safetensors::serialize(views, None).expect("serialised")).expect("weights are written");
    }
}

/// Gradients of W_enc, b_enc, W_dec and b_dec.
struct Gradients([Vec<f64>; 4]);

/// A dictionary in double precision with Adam's moments; matrices are feature-major.
struct Reference {
    w_enc_fd: Vec<f64>,
    b_enc_f: Vec<f64>,
    w_dec_fd: Vec<f64>,
    b_dec_d: Vec<f64>,
    moments: [Vec<(f64, f64)>; 4],
}

/// Where the losses of a case are committed.
pub fn file(case: Case) -> PathBuf {
    crate::root().join(format!("tests/golden/{}.json", case.name))
}

/// The committed losses of a case.
///
/// # Panics
/// When there are none.
pub fn committed(case: Case) -> Vec<Measured> {
    json(&file(case)).as_array().expect("a list").iter().map(read).collect()
}

/// What `sae train` measures at each step of a case.
///
/// # Panics
/// When the run fails.
pub fn measure(case: Case, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<Measured> {
    measure_by(&["train"], case, arguments, environment)
}

/// The same of another command that trains, as `sae launch local` does with several ranks.
///
/// # Panics
/// When the run fails.
pub fn measure_by(command: &[&str], case: Case, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<Measured> {
    let fixture = Fixture::new();
    let path = fixture.save("recipe", &recipe(&fixture, case));
    sae::run_with(&[command, &[&path], arguments].concat(), environment).exits(0);
    json_lines(&fixture.path("run/metrics.jsonl")).iter().map(read).collect()
}

/// Writes the rows and weights of a case to a fixture, and gives the recipe of its run there.
///
/// # Panics
/// When they cannot be written.
pub fn recipe(fixture: &Fixture, case: Case) -> Recipe {
    write_shards(&fixture.path("train"), WIDTH, &rows(), loader::Dtype::F32, 500);
    Weights::start(WIDTH, FEATURES, case.bias).write(&fixture.path("start.safetensors"));
    let mut recipe = fixture.recipe("run");
    recipe.data.order = Order::Sequential;
    recipe.data.scale = Scale::Fixed(f64::from(SCALE));
    recipe.sae.features = FEATURES;
    recipe.train.batch = BATCH;
    recipe.train.lr = LR;
    recipe.train.l1 = L1;
    recipe.train.l1_warmup = L1_WARMUP;
    recipe.train.lr_decay = LR_DECAY;
    recipe.train.clip = CLIP;
    recipe.train.init_from = Some(fixture.text("start.safetensors"));
    recipe.train.init_space = Some(InitSpace::Normalized);
    recipe.log.every = 1;
    recipe
}

fn read(line: &serde_json::Value) -> Measured {
    let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
    Measured { loss: number("loss"), mse: number("mse"), l1: number("l1_norm"), l0: number("l0") }
}

/// What the reference measures at each step of a case.
pub fn train(case: Case) -> Vec<Measured> {
    train_clipped(case, CLIP).into_iter().map(|(measured, _)| measured).collect()
}

/// The same with another [`CLIP`], and the norm of each step's gradient before it is clipped.
pub fn train_clipped(case: Case, clip: f64) -> Vec<(Measured, f64)> {
    let x_nd: Vec<f64> = rows().iter().map(|&x| f64::from(x * SCALE)).collect();
    let mut sae = Reference::start(&Weights::start(WIDTH, FEATURES, case.bias));
    let steps = ROWS.div_ceil(BATCH);
    let warmup = (L1_WARMUP * steps as f64).round().max(1.0);
    let batches = x_nd.chunks(BATCH * WIDTH);
    batches
        .enumerate()
        .map(|(step, x_bd)| {
            let lambda = L1 * ((step + 1) as f64 / warmup).min(1.0);
            let (s, all) = (step as f64, steps as f64);
            let decay_from = (1.0 - LR_DECAY) * all;
            let lr = if s < decay_from { LR } else { LR * (all - s) / (all - decay_from) };
            let (measured, gradients) = sae.forward_backward(x_bd, lambda);
            let norm = sae.update(&gradients, (step, lr), clip);
            (measured, norm)
        })
        .collect()
}

impl Reference {
    fn start(weights: &Weights) -> Self {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let mut w_enc_fd = vec![0.0; FEATURES * WIDTH];
        for (d, row_f) in weights.w_enc_df.chunks_exact(FEATURES).enumerate() {
            row_f.iter().enumerate().for_each(|(f, w)| w_enc_fd[f * WIDTH + d] = f64::from(*w));
        }
        let lengths = [FEATURES * WIDTH, FEATURES, FEATURES * WIDTH, WIDTH];
        Reference {
            w_enc_fd,
            b_enc_f: wide(&weights.b_enc_f),
            w_dec_fd: wide(&weights.w_dec_fd),
            b_dec_d: wide(&weights.b_dec_d),
            moments: lengths.map(|n| vec![(0.0, 0.0); n]),
        }
    }

    fn forward_backward(&self, x_bd: &[f64], lambda: f64) -> (Measured, Gradients) {
        let b = (x_bd.len() / WIDTH) as f64;
        let norm_f: Vec<f64> = self.w_dec_fd.chunks_exact(WIDTH).map(|w_d| dot(w_d, w_d).sqrt()).collect();
        let mut gradients = Gradients([FEATURES * WIDTH, FEATURES, FEATURES * WIDTH, WIDTH].map(|n| vec![0.0; n]));
        let [w_enc, b_enc, w_dec, b_dec] = &mut gradients.0;
        let (mut squared_error, mut l1, mut active) = (0.0, 0.0, 0usize);
        for x_d in x_bd.chunks_exact(WIDTH) {
            let rows = self.w_enc_fd.chunks_exact(WIDTH).zip(&self.b_enc_f);
            let a_f: Vec<f64> = rows.map(|(w_d, bias)| (dot(w_d, x_d) + bias).max(0.0)).collect();
            let fired: Vec<usize> = (0..FEATURES).filter(|&f| a_f[f] > 0.0).collect();
            let mut error_d: Vec<f64> = self.b_dec_d.iter().zip(x_d).map(|(bias, x)| bias - x).collect();
            for &f in &fired {
                add_scaled(&mut error_d, a_f[f], &self.w_dec_fd[f * WIDTH..][..WIDTH]);
                l1 += a_f[f] * norm_f[f];
            }
            squared_error += dot(&error_d, &error_d);
            active += fired.len();
            let g_d: Vec<f64> = error_d.iter().map(|error| 2.0 * error / b).collect();
            add_scaled(b_dec, 1.0, &g_d);
            for f in fired {
                let row = f * WIDTH..(f + 1) * WIDTH;
                let w_d = &self.w_dec_fd[row.clone()];
                let da = dot(&g_d, w_d) + lambda / b * norm_f[f];
                add_scaled(&mut w_dec[row.clone()], a_f[f], &g_d);
                add_scaled(&mut w_dec[row.clone()], lambda / b * a_f[f] / norm_f[f], w_d);
                add_scaled(&mut w_enc[row], da, x_d);
                b_enc[f] += da;
            }
        }
        let (mse, l1) = (squared_error / b, l1 / b);
        (Measured { loss: mse + lambda * l1, mse, l1, l0: active as f64 / b }, gradients)
    }

    /// Makes a step, and gives the norm of the gradient.
    fn update(&mut self, gradients: &Gradients, (step, lr): (usize, f64), clip: f64) -> f64 {
        let norm = gradients.0.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let factor = (clip / (norm + 1e-6)).min(1.0);
        let t = (step + 1) as i32;
        let (correct_m, correct_v) = (1.0 - 0.9f64.powi(t), 1.0 - 0.999f64.powi(t));
        let parameters = [&mut self.w_enc_fd, &mut self.b_enc_f, &mut self.w_dec_fd, &mut self.b_dec_d];
        for ((values, moments), gradients) in parameters.into_iter().zip(&mut self.moments).zip(&gradients.0) {
            for ((value, (m, v)), gradient) in values.iter_mut().zip(moments).zip(gradients) {
                let g = factor * gradient;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                *value -= lr * (*m / correct_m) / ((*v / correct_v).sqrt() + 1e-8);
            }
        }
        norm
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], factor: f64, values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += factor * value);
}
