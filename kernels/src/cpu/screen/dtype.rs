//! In what dtype the encoder looks for pairs that may be active.

/// The dtype in which the encoder looks for pairs that may be active. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScreenDtype {
    /// Eight bits with one scale a row (AVX-512 VNNI). Goes over to `Bf16` when too many pairs are marked in vain.
    Int8,
    /// The upper half of f32 (AVX-512 BF16).
    Bf16,
    /// f32 GEMMs of crate `gemm`: everywhere.
    F32,
}

impl ScreenDtype {
    /// The fastest that this machine has.
    pub fn detect() -> ScreenDtype {
        [ScreenDtype::Int8, ScreenDtype::Bf16].into_iter().find(|screen| screen.available()).unwrap_or(ScreenDtype::F32)
    }

    /// Whether this machine has the instructions.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            ScreenDtype::Int8 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            ScreenDtype::Bf16 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            ScreenDtype::Int8 | ScreenDtype::Bf16 => false,
            ScreenDtype::F32 => true,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            ScreenDtype::Int8 => "int8",
            ScreenDtype::Bf16 => "bf16",
            ScreenDtype::F32 => "f32",
        }
    }

    /// Words of four bytes in a narrow row.
    pub(super) fn words(self, stride: usize) -> usize {
        match self {
            ScreenDtype::Int8 => stride / 4,
            ScreenDtype::Bf16 => stride / 2,
            ScreenDtype::F32 => 0,
        }
    }
}
