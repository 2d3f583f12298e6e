//! Keys of other trainers that people bring along in a recipe, and what does the same here. Looked up where a key is unknown, at the
//! top as in any section.

/// Whose keys they are, the keys, and what to use instead.
type Counterparts = (&'static str, &'static [(&'static [&'static str], &'static str)]);

const SAELENS: Counterparts = (
    "SAELens",
    &[
        (&["d_sae"], "sae.features"),
        (&["l1_coefficient", "l0_coefficient"], "train.l1 (the same λ means the same only at the same data.scale)"),
        (&["l1_warm_up_steps", "l0_warm_up_steps"], "train.l1_warmup, as a share of the steps"),
        (&["lr_warm_up_steps"], "nothing: Adam begins at train.lr, and λ rises over train.l1_warmup"),
        (&["lr_decay_steps", "lr_scheduler_name", "lr_end"], "train.lr_decay, the share of the steps at the end"),
        (&["train_batch_size_tokens", "train_batch_size"], "train.batch"),
        (&["training_tokens", "total_training_tokens", "total_training_steps"], "train.tokens, in rows"),
        (&["normalize_activations"], "data.scale, which is \"auto\" by default: E‖x‖² = D"),
        (&["decoder_init_norm", "decoder_heuristic_init", "decoder_heuristic_init_norm"], "sae.decoder_norm"),
        (&["apply_b_dec_to_input", "b_dec_init_method"], "nothing: the encoder sees x itself, and b_dec begins at 0"),
        (
            &["normalize_sae_decoder"],
            "nothing while training: decoder norms are free; sae export --unit-norm scales them",
        ),
        (
            &["d_in", "architecture", "activation_fn", "activation_fn_str"],
            "nothing: ReLU dictionaries of the data's width are trained",
        ),
        (
            &[
                "hook_name",
                "hook_point",
                "hook_layer",
                "hook_head_index",
                "model_name",
                "model_class_name",
                "prepend_bos",
            ],
            "nothing: shards hold activations already; sae export has flags for what other tools want to know",
        ),
        (
            &["context_size", "dataset_path", "streaming", "cached_activations_path"],
            "data.train, the shards of activations",
        ),
        (&["n_batches_in_buffer", "store_batch_size_prompts", "activations_mixing_fraction"], "data.window_bytes"),
        (&["dead_feature_window", "feature_sampling_window", "dead_feature_threshold"], "train.dead_window, in rows"),
        (&["from_pretrained_path"], "train.init_from"),
        (&["resume_from_checkpoint", "resume"], "sae train --resume"),
        (&["checkpoint_path", "output_path"], "run.dir"),
        (&["n_checkpoints", "save_final_checkpoint"], "checkpoint.every; the last step always makes one"),
        (&["eval_every_n_wandb_logs"], "eval.every, in steps"),
        (&["n_eval_batches", "eval_batch_size_prompts"], "eval.rows"),
        (&["wandb_log_frequency"], "log.every"),
        (
            &["log_to_wandb", "wandb_project", "wandb_entity"],
            "nothing: metrics.jsonl and TensorBoard events lie in run.dir",
        ),
        (&["adam_beta1", "adam_beta2"], "nothing: Adam has β = (0.9, 0.999)"),
        (&["autocast", "autocast_lm"], "train.precision"),
    ],
);

const DICTIONARY_LEARNING: Counterparts = (
    "dictionary_learning",
    &[
        (&["dict_size"], "sae.features"),
        (&["activation_dim"], "nothing: the width is that of the data"),
        (&["l1_penalty", "sparsity_penalty"], "train.l1"),
        (&["warmup_steps"], "nothing: Adam begins at train.lr, and λ rises over train.l1_warmup"),
        (&["sparsity_warmup_steps"], "train.l1_warmup, as a share of the steps"),
        (&["decay_start"], "train.lr_decay, the share of the steps at the end"),
        (&["steps", "num_tokens"], "train.tokens, in rows: steps times train.batch"),
        (&["out_batch_size", "sae_batch_size"], "train.batch"),
        (&["n_ctxs", "refresh_batch_size"], "data.window_bytes"),
        (&["resample_steps"], "nothing: dead features are not resampled"),
        (&["save_steps"], "checkpoint.every"),
        (&["save_dir"], "run.dir"),
        (&["log_steps"], "log.every"),
        (&["lm_name", "submodule_name", "layer", "ctx_len", "dict_class"], "nothing: shards hold activations already"),
        (&["device"], "the flag --device of sae train: what a run uses of a machine is not in its recipe"),
    ],
);

const SPARSIFY: Counterparts = (
    "sparsify",
    &[
        (&["num_latents"], "sae.features"),
        (&["expansion_factor"], "sae.features, which is the factor times the data's width"),
        (
            &["k", "multi_topk", "auxk_alpha"],
            "nothing: there is no top-k; train.l1 decides how many features are active",
        ),
        (&["batch_size"], "train.batch"),
        (
            &["micro_acc_steps", "grad_acc_steps"],
            "nothing: train.batch is one step, and memory does not grow with the batch times features",
        ),
        (&["lr_warmup_steps"], "nothing: Adam begins at train.lr, and λ rises over train.l1_warmup"),
        (&["save_every"], "checkpoint.every"),
        (&["save_best"], "eval.every: the best of those evaluated is kept"),
        (&["finetune"], "train.init_from"),
        (&["init_seeds"], "train.seed"),
        (&["run_name"], "run.dir"),
        (&["hookpoints", "layers", "layer_stride"], "data.train, the shards of one layer"),
        (&["distribute_modules"], "sae launch --ranks, with --mesh"),
        (&["normalize_decoder"], "nothing while training: decoder norms are free; sae export --unit-norm scales them"),
    ],
);

/// Who has a key of this name, and what does the same here.
pub fn of(key: &str) -> Option<(&'static str, &'static str)> {
    [SAELENS, DICTIONARY_LEARNING, SPARSIFY]
        .into_iter()
        .find_map(|(whose, keys)| keys.iter().find(|(theirs, _)| theirs.contains(&key)).map(|(_, ours)| (whose, *ours)))
}
