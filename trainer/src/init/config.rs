//! cfg.json of a SAELens folder and config.json of dictionary_learning: what the weights beside them mean. Only what makes a ReLU
//! dictionary of raw activations is taken; all else is refused by its name, since the same four tensors would mean something different.

use serde_json::{Map, Value};

use crate::{Error, Message};

/// What of a cfg.json matters here.
#[derive(Debug)]
pub(super) struct Config {
    /// `d_in`.
    pub(super) width: Option<usize>,
    /// `d_sae`.
    pub(super) features: Option<usize>,
    /// `apply_b_dec_to_input`: the encoder sees x − b_dec.
    pub(super) subtracts_decoder_bias: bool,
}

/// Reads the config.json that lies at `place`, where it is that of a dictionary of dictionary_learning; `None` where it is another's.
///
/// # Errors
/// [`Error::Weights`] when its dictionary is not one of this program's.
pub(super) fn parse_dictionary_learning(json: &[u8], place: &str) -> Result<Option<Config>, Error> {
    let Ok(config) = serde_json::from_slice::<Value>(json) else { return Ok(None) };
    let trainer = &config["trainer"];
    let Some(class) = trainer["dict_class"].as_str() else { return Ok(None) };
    let number = |key: &str| trainer[key].as_u64().and_then(|number| usize::try_from(number).ok());
    let subtracts_decoder_bias = match class {
        "AutoEncoder" => true,
        "AutoEncoderNew" => false,
        other => {
            return Err(Error::Weights(
                format!(
                    "{place}: dict_class \"{other}\": only \"AutoEncoder\" and \"AutoEncoderNew\" (ReLU) can be gone on with"
                )
                .into(),
            ));
        }
    };
    Ok(Some(Config { width: number("activation_dim"), features: number("dict_size"), subtracts_decoder_bias }))
}

/// Reads the cfg.json that lies at `place`.
///
/// # Errors
/// [`Error::Weights`] when it is none, or of a dictionary that is not one of this program's.
pub(super) fn parse(json: &[u8], place: &str) -> Result<Config, Error> {
    let refuse = |what: String| Err(Error::Weights(format!("{place}: {what}").into()));
    let config: Map<String, Value> = match serde_json::from_slice(json) {
        Ok(config) => config,
        Err(error) => {
            let text = format!("{place}: not the cfg.json of SAELens: {error}");
            return Err(Error::Weights(Message::of(text, error)));
        }
    };
    let word = |key: &str| config.get(key).and_then(Value::as_str);
    let number = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    if !config.contains_key("d_sae") && ["num_latents", "expansion_factor"].iter().any(|key| config.contains_key(*key))
    {
        return refuse("a TopK dictionary of sparsify: only ReLU dictionaries can be gone on with".into());
    }
    // Files of the first versions name neither.
    let architecture = word("architecture").unwrap_or("standard");
    if architecture != "standard" {
        return refuse(format!("architecture \"{architecture}\": only \"standard\" (ReLU) can be gone on with"));
    }
    let activation = word("activation_fn").or(word("activation_fn_str")).unwrap_or("relu");
    if activation != "relu" {
        return refuse(format!("activation function \"{activation}\": only \"relu\" can be gone on with"));
    }
    if let (Some(d_in), Some(d_out)) = (number("d_in"), number("d_out"))
        && d_in != d_out
    {
        return refuse(format!(
            "d_in = {d_in} and d_out = {d_out}: a transcoder, which reconstructs other activations"
        ));
    }
    let normalized = match config.get("normalize_activations") {
        None | Some(Value::Null | Value::Bool(false)) => "none",
        // As the first versions wrote it.
        Some(Value::Bool(true)) => "expected_average_only_in",
        Some(Value::String(how)) => how,
        Some(_) => "(not a word)",
    };
    match normalized {
        "none" => {}
        "expected_average_only_in" => {
            return refuse(
                "normalize_activations = \"expected_average_only_in\": its activations were multiplied by a factor that no file \
                 keeps: fold that in with SAELens (fold_activation_norm_scaling_factor), save again, and start from that"
                    .into(),
            );
        }
        other => {
            return refuse(format!(
                "normalize_activations = \"{other}\": its encoder normalises every row by itself, which no weights can stand \
                 for; only \"none\" can be gone on with"
            ));
        }
    }
    // hook_z only lays the heads of a row side by side, which the rows of a shard are already.
    let reshaped = word("reshape_activations").unwrap_or("none");
    if !["none", "hook_z"].contains(&reshaped) {
        return refuse(format!("reshape_activations = \"{reshaped}\": only \"none\" and \"hook_z\" are known"));
    }
    // SAELens takes true where the key is left out.
    let subtracts_decoder_bias = match config.get("apply_b_dec_to_input") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(applied)) => *applied,
        Some(other) => return refuse(format!("apply_b_dec_to_input must be true or false, and is {other}")),
    };
    Ok(Config { width: number("d_in"), features: number("d_sae"), subtracts_decoder_bias })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Config, String> {
        parse(json.as_bytes(), "x/cfg.json").map_err(|error| error.to_string())
    }

    #[test]
    fn files_of_all_versions_are_read() {
        let now = r#"{"architecture": "standard", "d_in": 8, "d_sae": 16, "dtype": "float32", "apply_b_dec_to_input": false,
            "normalize_activations": "none", "reshape_activations": "none", "metadata": {"hook_head_index": null}}"#;
        let config = read(now).expect("of version 6");
        assert_eq!((config.width, config.features, config.subtracts_decoder_bias), (Some(8), Some(16), false));
        let before = r#"{"d_in": 8, "d_sae": 16, "dtype": "torch.float32", "activation_fn_str": "relu", "hook_head_index": 3,
            "finetuning_scaling_factor": false, "normalize_activations": false, "hook_point": "blocks.8.hook_resid_pre"}"#;
        assert!(read(before).expect("of version 3").subtracts_decoder_bias, "as SAELens takes it");
    }

    #[test]
    fn classes_of_dictionary_learning_are_told_apart() {
        let read = |class: &str| {
            let json = format!(r#"{{"trainer": {{"dict_class": "{class}", "activation_dim": 8, "dict_size": 16}}}}"#);
            parse_dictionary_learning(json.as_bytes(), "x/config.json")
        };
        for (class, subtracts) in [("AutoEncoder", true), ("AutoEncoderNew", false)] {
            let config = read(class).expect("a ReLU dictionary").expect("of dictionary_learning");
            assert_eq!(config.subtracts_decoder_bias, subtracts);
            assert_eq!((config.width, config.features), (Some(8), Some(16)));
        }
        let said = read("GatedAutoEncoder").expect_err("another function").to_string();
        assert!(said.starts_with("x/config.json: ") && said.contains("GatedAutoEncoder"), "{said}");
        let another = parse_dictionary_learning(br#"{"model_type": "llama"}"#, "x/config.json");
        assert!(another.expect("another's").is_none());
    }

    #[test]
    fn what_would_mean_something_else_is_refused_by_name() {
        for (json, part) in [
            (r#"{"architecture": "jumprelu", "d_sae": 16}"#, "\"jumprelu\""),
            (r#"{"architecture": "gated", "d_sae": 16}"#, "\"gated\""),
            (r#"{"architecture": "topk", "d_sae": 16}"#, "\"topk\""),
            (r#"{"activation_fn_str": "tanh-relu", "d_sae": 16}"#, "\"tanh-relu\""),
            (r#"{"d_in": 8, "d_out": 9, "d_sae": 16}"#, "transcoder"),
            (r#"{"d_sae": 16, "normalize_activations": "layer_norm"}"#, "\"layer_norm\""),
            (r#"{"d_sae": 16, "normalize_activations": "constant_norm_rescale"}"#, "\"constant_norm_rescale\""),
            (
                r#"{"d_sae": 16, "normalize_activations": "expected_average_only_in"}"#,
                "fold_activation_norm_scaling_factor",
            ),
            (r#"{"d_sae": 16, "normalize_activations": true}"#, "expected_average_only_in"),
            (r#"{"d_sae": 16, "reshape_activations": "other"}"#, "\"other\""),
            (r#"{"d_sae": 16, "apply_b_dec_to_input": "yes"}"#, "must be true or false"),
            (r#"{"d_in": 8, "expansion_factor": 32, "k": 32}"#, "sparsify"),
            ("[1]", "not the cfg.json of SAELens"),
        ] {
            let said = read(json).expect_err("it is another dictionary");
            assert!(said.starts_with("x/cfg.json: ") && said.contains(part), "{json}: {said}");
        }
    }
}
