//! safetensors: a header in JSON with the place of each tensor, then their bytes.

use loader::Result;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::file::flaw_of;
use crate::{File, Number, Tensor, Tensors};

/// The longest header that the format has.
const MAX_HEADER: u64 = 100_000_000;

/// All tensors by name, held against the size of the file.
pub(crate) fn tensors(file: &File) -> Result<Tensors> {
    let head = file.head(8)?;
    let Ok(length) = <[u8; 8]>::try_from(&head[..]).map(u64::from_le_bytes) else {
        return Err(file.flaw(format!("is no safetensors file (or cut off): it has {} bytes", file.size())));
    };
    if length > MAX_HEADER || length > file.size() - 8 {
        return Err(file.flaw(format!(
            "is no safetensors file, or damaged: claims a header of {length} bytes in a file of {}",
            file.size()
        )));
    }
    let header = file.read(8..8 + length)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| flaw_of(file.url(), format!("is no safetensors file, or damaged: {e}"), e))?;
    let (start, listed) = (8 + length, metadata.tensors());
    let mut named = Vec::new();
    let mut end = 0;
    for (name, info) in listed {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let shape = info.shape.iter().map(|&n| n as u64).collect();
        let tensor = Tensor { offset: start.saturating_add(from), number: number(info.dtype), transposed: None, shape };
        if tensor.number.is_ok() && tensor.bytes() != to.checked_sub(from) {
            return Err(file.flaw(format!("damaged: tensor {name:?} does not take the bytes that it claims")));
        }
        end = end.max(to);
        named.push((name, tensor));
    }
    if start.checked_add(end) != Some(file.size()) {
        let problem = format!(
            "cut off or damaged: its tensors end at byte {end} behind the header, and {} follow it",
            file.size() - start
        );
        return Err(file.flaw(problem));
    }
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Tensors { named, lists: Vec::new(), head: header })
}

fn number(dtype: Dtype) -> std::result::Result<Number, String> {
    Ok(match dtype {
        Dtype::BOOL => Number::Bool,
        Dtype::F16 => Number::F16,
        Dtype::BF16 => Number::Bf16,
        Dtype::F32 => Number::F32,
        Dtype::F64 => Number::F64,
        Dtype::I8 => Number::I8,
        Dtype::I16 => Number::I16,
        Dtype::I32 => Number::I32,
        Dtype::I64 => Number::I64,
        Dtype::U8 => Number::U8,
        Dtype::U16 => Number::U16,
        Dtype::U32 => Number::U32,
        Dtype::U64 => Number::U64,
        other => return Err(format!("{other:?}")),
    })
}
