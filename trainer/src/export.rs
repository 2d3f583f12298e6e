//! Export for other tools.
//!
//! `saelens`: the folder that sae-lens 6 loads with `SAE.load_from_disk`: `cfg.json` and `sae_weights.safetensors` with
//! W_enc [D,F], b_enc [F], W_dec [F,D], b_dec [D]. The scale of the data is folded into the weights, so that the SAE
//! takes raw activations and gives raw reconstructions with the same feature activations:
//! `a = ReLU(x·(s·W_enc) + b_enc)`, `x̂ = a·(W_dec/s) + b_dec/s`.

use kernels::{Dictionary, Slot, Tensor};
use loader::Store;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use crate::Error;
use crate::init::transpose;

/// Where the activations came from; goes into the metadata of the export.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Name of the model, as other tools know it.
    pub model: String,
    /// Name of the hook, such as `blocks.12.hook_resid_post`.
    pub hook: String,
    /// Name or path of the data set.
    pub dataset: String,
    /// Tokens in a context.
    pub context_size: usize,
}

#[derive(Serialize)]
struct Config<'a> {
    architecture: &'static str,
    d_in: usize,
    d_sae: usize,
    dtype: &'static str,
    device: &'static str,
    /// sae-lens takes `true` when this is left out; our encoder sees x itself.
    apply_b_dec_to_input: bool,
    normalize_activations: &'static str,
    reshape_activations: &'static str,
    metadata: ConfigMetadata<'a>,
}

#[derive(Serialize)]
struct ConfigMetadata<'a> {
    sae_lens_version: &'static str,
    sae_lens_training_version: Option<&'static str>,
    trained_with: &'static str,
    model_name: &'a str,
    model_class_name: &'static str,
    hook_name: &'a str,
    hook_head_index: Option<usize>,
    prepend_bos: bool,
    context_size: usize,
    dataset_path: &'a str,
    /// Features of the trained dictionary that the exported ones are, when not all were exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<&'a [usize]>,
}

/// Writes `features` of `sae` (all when `None`) to `out`.
///
/// # Errors
/// Those of the store.
pub fn saelens(
    out: &Store,
    sae: &impl Dictionary,
    scale: f32,
    features: Option<&[usize]>,
    source: &Source,
) -> Result<(), Error> {
    let (width, all) = (sae.shape().width, sae.shape().features);
    let count = features.map_or(all, <[usize]>::len);
    let (mut w_enc_fd, mut w_dec_fd) = (vec![0.0f32; count * width], vec![0.0f32; count * width]);
    let mut b_enc_f = vec![0.0f32; count];
    let mut b_dec_d = vec![0.0f32; width];
    for row in 0..count {
        let feature = features.map_or(row, |chosen| chosen[row]);
        let at = row * width..(row + 1) * width;
        sae.read(Tensor::EncoderWeight, Slot::Value, feature..feature + 1, &mut w_enc_fd[at.clone()])?;
        sae.read(Tensor::DecoderWeight, Slot::Value, feature..feature + 1, &mut w_dec_fd[at])?;
        sae.read(Tensor::EncoderBias, Slot::Value, feature..feature + 1, &mut b_enc_f[row..row + 1])?;
    }
    sae.read(Tensor::DecoderBias, Slot::Value, 0..1, &mut b_dec_d)?;
    w_enc_fd.iter_mut().for_each(|w| *w *= scale);
    w_dec_fd.iter_mut().chain(&mut b_dec_d).for_each(|w| *w /= scale);
    let w_enc_df = transpose(&w_enc_fd, count, width);

    let internal = |error: safetensors::SafeTensorError| Error::Internal(error.to_string());
    let view =
        |shape: Vec<usize>, values| TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values)).map_err(internal);
    let tensors = [
        ("W_enc", view(vec![width, count], &w_enc_df)?),
        ("b_enc", view(vec![count], &b_enc_f)?),
        ("W_dec", view(vec![count, width], &w_dec_fd)?),
        ("b_dec", view(vec![width], &b_dec_d)?),
    ];
    out.put("sae_weights.safetensors", safetensors::serialize(tensors, None).map_err(internal)?)?;
    let config = Config {
        architecture: "standard",
        d_in: width,
        d_sae: count,
        dtype: "float32",
        device: "cpu",
        apply_b_dec_to_input: false,
        normalize_activations: "none",
        reshape_activations: "none",
        metadata: ConfigMetadata {
            sae_lens_version: "6.0.0",
            sae_lens_training_version: None,
            trained_with: concat!("sae ", env!("CARGO_PKG_VERSION")),
            model_name: &source.model,
            model_class_name: "HookedTransformer",
            hook_name: &source.hook,
            hook_head_index: None,
            prepend_bos: true,
            context_size: source.context_size,
            dataset_path: &source.dataset,
            features,
        },
    };
    let json = serde_json::to_vec_pretty(&config).map_err(|error| Error::Internal(error.to_string()))?;
    out.put("cfg.json", json)?;
    Ok(())
}
