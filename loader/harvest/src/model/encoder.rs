//! Blocks of BERT, with attention both ways and norms behind each sum.
//!
//! ```text
//! x = norm(word + position + type of the first segment)
//! x = norm(x + softmax(q·kᵀ/√n)·v·W_oᵀ + b_o)
//! x = norm(x + gelu(x·W₁ᵀ + b₁)·W₂ᵀ + b₂)
//! ```

use kernels::cpu::gemm::{Matrix, multiply};

use super::attention::{Heads, attention};
use super::config::Shape;
use super::math::{add_bias, gelu, layer_norm};
use super::scratch::{Scratch, sized};
use super::weights::{Weights, transposed};
use crate::error::Result;

/// What is added to a word, and the norm behind.
pub(super) struct Places {
    /// [positions, D], with the vector of the first segment added.
    positions: Vec<f32>,
    norm: Norm,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn read(weights: &Weights, name: &str, width: usize) -> Result<Norm> {
        // Checkpoints that came from TensorFlow have kept its names.
        let old = format!("{name}.gamma");
        let is_old = weights.has(&old) && !weights.has(&format!("{name}.weight"));
        let [weight, bias] = if is_old { ["gamma", "beta"] } else { ["weight", "bias"] };
        Ok(Norm {
            weight: weights.read(&format!("{name}.{weight}"), &[width])?,
            bias: weights.read(&format!("{name}.{bias}"), &[width])?,
        })
    }

    fn apply(&self, x: &mut [f32], epsilon: f32) {
        layer_norm(x, &self.weight, &self.bias, epsilon);
    }
}

impl Places {
    /// Reads them; `segments` is how many types of them there are.
    pub(super) fn read(weights: &Weights, shape: &Shape, segments: usize) -> Result<Places> {
        let (width, most) = (shape.width, shape.most_tokens.unwrap_or(0));
        let mut positions = weights.read("embeddings.position_embeddings.weight", &[most, width])?;
        let types = weights.read("embeddings.token_type_embeddings.weight", &[segments, width])?;
        add_bias(&mut positions, &types[..width]);
        Ok(Places { positions, norm: Norm::read(weights, "embeddings.LayerNorm", width)? })
    }

    /// Adds positions to words and norms.
    pub(super) fn apply(&self, shape: &Shape, x: &mut [f32], lengths: &[usize]) {
        let mut start = 0;
        for &length in lengths {
            let context = &mut x[start * shape.width..(start + length) * shape.width];
            context.iter_mut().zip(&self.positions).for_each(|(value, &position)| *value += position);
            start += length;
        }
        self.norm.apply(x, shape.epsilon);
    }
}

/// The weights of a block; matrices are [in, out].
pub(super) struct Block {
    query_key_value: Vec<f32>,
    query_key_value_bias: Vec<f32>,
    output: Vec<f32>,
    output_bias: Vec<f32>,
    norm_attention: Norm,
    up: Vec<f32>,
    up_bias: Vec<f32>,
    down: Vec<f32>,
    down_bias: Vec<f32>,
    norm_mlp: Norm,
}

impl Block {
    /// Reads block `at`.
    pub(super) fn read(weights: &Weights, shape: &Shape, at: usize) -> Result<Block> {
        let Shape { width, hidden, .. } = *shape;
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        let (mut query_key_value, mut query_key_value_bias) = (Vec::new(), Vec::new());
        for part in ["query", "key", "value"] {
            let part = name(&format!("attention.self.{part}"));
            weights.append(&format!("{part}.weight"), &[width, width], &mut query_key_value)?;
            weights.append(&format!("{part}.bias"), &[width], &mut query_key_value_bias)?;
        }
        Ok(Block {
            query_key_value: transposed(&query_key_value, 3 * width, width),
            query_key_value_bias,
            output: weights.matrix(&name("attention.output.dense.weight"), width, width)?,
            output_bias: weights.read(&name("attention.output.dense.bias"), &[width])?,
            norm_attention: Norm::read(weights, &name("attention.output.LayerNorm"), width)?,
            up: weights.matrix(&name("intermediate.dense.weight"), hidden, width)?,
            up_bias: weights.read(&name("intermediate.dense.bias"), &[hidden])?,
            down: weights.matrix(&name("output.dense.weight"), width, hidden)?,
            down_bias: weights.read(&name("output.dense.bias"), &[width])?,
            norm_mlp: Norm::read(weights, &name("output.LayerNorm"), width)?,
        })
    }

    /// Takes x [N, D] through the block; `lengths` are those of the contexts in it.
    pub(super) fn forward(&self, shape: &Shape, x: &mut [f32], lengths: &[usize], scratch: &mut Scratch) {
        let Shape { width, hidden, heads, head_width, epsilon, .. } = *shape;
        let rows = x.len() / width;
        let projected = sized(&mut scratch.wide, rows * 3 * width);
        let input = Matrix::new(x, rows, width, width);
        multiply(projected, 3 * width, false, input, Matrix::new(&self.query_key_value, width, 3 * width, 3 * width));
        add_bias(projected, &self.query_key_value_bias);
        let mixed = sized(&mut scratch.mixed, rows * width);
        let form = Heads { heads, kv_heads: heads, width: head_width, causal: false };
        attention(form, projected, lengths, mixed, &mut scratch.scores);
        let input = Matrix::new(mixed, rows, width, width);
        multiply(x, width, true, input, Matrix::new(&self.output, width, width, width));
        add_bias(x, &self.output_bias);
        self.norm_attention.apply(x, epsilon);

        let inner = sized(&mut scratch.wide, rows * hidden);
        let input = Matrix::new(x, rows, width, width);
        multiply(inner, hidden, false, input, Matrix::new(&self.up, width, hidden, hidden));
        add_bias(inner, &self.up_bias);
        gelu(inner);
        let input = Matrix::new(inner, rows, hidden, hidden);
        multiply(x, width, true, input, Matrix::new(&self.down, hidden, width, width));
        add_bias(x, &self.down_bias);
        self.norm_mlp.apply(x, epsilon);
    }
}
