//! Names of files in the folders of other tools, which are written by an export and read by what starts from one.

/// The file that says what the weights mean.
pub const CONFIG: &str = "cfg.json";

/// The file of weights.
pub const WEIGHTS: &str = "sae_weights.safetensors";

/// The file that says in which files the weights lie, where there are several.
pub const INDEX: &str = "sae_weights.safetensors.index.json";

/// In a folder of dictionary_learning, what the weights mean.
pub const CONFIG_OF_DICTIONARY_LEARNING: &str = "config.json";

/// In a folder of dictionary_learning, the weights.
pub const WEIGHTS_OF_DICTIONARY_LEARNING: &str = "ae.safetensors";

/// What dictionary_learning itself calls its file of weights: an archive of `torch.save`. It is read where the other is not there, and never written.
pub(super) const ARCHIVE_OF_DICTIONARY_LEARNING: &str = "ae.pt";
