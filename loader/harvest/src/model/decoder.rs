//! Blocks of Llama-class models.
//!
//! ```text
//! h = rms_norm(x)·w₁    q, k, v = h·Wᵀ (+ b)    q, k: normed per head (Qwen3), rotated by position
//! x += softmax(q·kᵀ/√n, causal)·v·W_oᵀ
//! h = rms_norm(x)·w₂    x += (silu(h·W_gateᵀ) ⊙ h·W_upᵀ)·W_downᵀ
//! ```
//! Three matrices are one GEMM for q, k and v, and two one for gate and up; both sums into x are made by the GEMM.

use kernels::cpu::gemm::{Matrix, multiply};

use super::attention::{Heads, attention};
use super::config::Shape;
use super::math::{add_bias, rms_norm, rms_norm_in_place, rotate, silu_product};
use super::scratch::{Scratch, sized};
use super::turns::Turns;
use super::weights::{Weights, transposed};
use crate::error::Result;

/// The weights of a block; matrices are [in, out].
pub(super) struct Block {
    norm_attention: Vec<f32>,
    norm_mlp: Vec<f32>,
    query_key_value: Vec<f32>,
    query_key_value_bias: Option<Vec<f32>>,
    norm_heads: Option<(Vec<f32>, Vec<f32>)>,
    output: Vec<f32>,
    output_bias: Option<Vec<f32>>,
    gate_up: Vec<f32>,
    gate_up_bias: Option<Vec<f32>>,
    down: Vec<f32>,
    down_bias: Option<Vec<f32>>,
}

impl Block {
    /// Reads block `at`.
    pub(super) fn read(weights: &Weights, shape: &Shape, at: usize) -> Result<Block> {
        let Shape { width, hidden, head_width, .. } = *shape;
        let (queries, keys) = (shape.heads * head_width, shape.kv_heads * head_width);
        let name = |part: &str| format!("layers.{at}.{part}");
        let projections = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        let (mut query_key_value, mut gate_up) = (Vec::new(), Vec::new());
        for (part, rows) in projections {
            weights.append(&name(&format!("self_attn.{part}.weight")), &[rows, width], &mut query_key_value)?;
        }
        for part in ["gate_proj", "up_proj"] {
            weights.append(&name(&format!("mlp.{part}.weight")), &[hidden, width], &mut gate_up)?;
        }
        let mut query_key_value_bias = None;
        if weights.has(&name("self_attn.q_proj.bias")) {
            let bias = query_key_value_bias.insert(Vec::new());
            for (part, rows) in projections {
                weights.append(&name(&format!("self_attn.{part}.bias")), &[rows], bias)?;
            }
        }
        let mut gate_up_bias = None;
        if weights.has(&name("mlp.gate_proj.bias")) {
            let bias = gate_up_bias.insert(Vec::new());
            for part in ["gate_proj", "up_proj"] {
                weights.append(&name(&format!("mlp.{part}.bias")), &[hidden], bias)?;
            }
        }
        let norm_heads = match weights.optional(&name("self_attn.q_norm.weight"), &[head_width])? {
            Some(queries) => Some((queries, weights.read(&name("self_attn.k_norm.weight"), &[head_width])?)),
            None => None,
        };
        Ok(Block {
            norm_attention: weights.read(&name("input_layernorm.weight"), &[width])?,
            norm_mlp: weights.read(&name("post_attention_layernorm.weight"), &[width])?,
            query_key_value: transposed(&query_key_value, queries + 2 * keys, width),
            query_key_value_bias,
            norm_heads,
            output: weights.matrix(&name("self_attn.o_proj.weight"), width, queries)?,
            output_bias: weights.optional(&name("self_attn.o_proj.bias"), &[width])?,
            gate_up: transposed(&gate_up, 2 * hidden, width),
            gate_up_bias,
            down: weights.matrix(&name("mlp.down_proj.weight"), width, hidden)?,
            down_bias: weights.optional(&name("mlp.down_proj.bias"), &[width])?,
        })
    }

    /// Takes x [N, D] through the block; `lengths` are those of the contexts in it.
    pub(super) fn forward(&self, shape: &Shape, x: &mut [f32], lengths: &[usize], scratch: &mut Scratch) {
        let Shape { width, hidden, head_width, heads, kv_heads, epsilon, .. } = *shape;
        let rows = x.len() / width;
        let (queries, all) = (heads * head_width, (heads + 2 * kv_heads) * head_width);
        let normed = sized(&mut scratch.normed, rows * width);
        rms_norm(x, &self.norm_attention, epsilon, normed);
        let projected = sized(&mut scratch.wide, rows * all);
        let input = Matrix::new(normed, rows, width, width);
        multiply(projected, all, false, input, Matrix::new(&self.query_key_value, width, all, all));
        if let Some(bias) = &self.query_key_value_bias {
            add_bias(projected, bias);
        }
        self.place(shape, projected, lengths, &scratch.turns);
        let mixed = sized(&mut scratch.mixed, rows * queries);
        attention(
            Heads { heads, kv_heads, width: head_width, causal: true },
            projected,
            lengths,
            mixed,
            &mut scratch.scores,
        );
        let input = Matrix::new(mixed, rows, queries, queries);
        multiply(x, width, true, input, Matrix::new(&self.output, queries, width, width));
        if let Some(bias) = &self.output_bias {
            add_bias(x, bias);
        }

        rms_norm(x, &self.norm_mlp, epsilon, normed);
        let both = sized(&mut scratch.wide, rows * 2 * hidden);
        let input = Matrix::new(normed, rows, width, width);
        multiply(both, 2 * hidden, false, input, Matrix::new(&self.gate_up, width, 2 * hidden, 2 * hidden));
        if let Some(bias) = &self.gate_up_bias {
            add_bias(both, bias);
        }
        let gated = sized(&mut scratch.mixed, rows * hidden);
        silu_product(both, hidden, gated);
        let input = Matrix::new(gated, rows, hidden, hidden);
        multiply(x, width, true, input, Matrix::new(&self.down, hidden, width, width));
        if let Some(bias) = &self.down_bias {
            add_bias(x, bias);
        }
    }

    /// Gives queries and keys their positions.
    fn place(&self, shape: &Shape, projected: &mut [f32], lengths: &[usize], turns: &Turns) {
        let Shape { head_width, heads, kv_heads, epsilon, halves, .. } = *shape;
        let all = (heads + 2 * kv_heads) * head_width;
        let mut rows = projected.chunks_exact_mut(all);
        for &length in lengths {
            for (position, row) in (0..length).zip(&mut rows) {
                let (cos, sin) = turns.at(position);
                for (at, head) in row.chunks_exact_mut(head_width).take(heads + kv_heads).enumerate() {
                    if let Some((queries, keys)) = &self.norm_heads {
                        rms_norm_in_place(head, if at < heads { queries } else { keys }, epsilon);
                    }
                    rotate(head, cos, sin, halves);
                }
            }
        }
    }
}
