//! NumPy's `.npy`: a header of a few fixed words, then the array.
//!
//! Versions 1 to 3, in C order. bfloat16 is what `ml_dtypes` writes, bare bytes of two (`<V2`): NumPy has no name for it.

use loader::Result;
use tensors::{File, Number, Tensor};

use crate::tensor::{self, Three};
use crate::unit::{Choice, Contents};

/// Longest header that is believed.
const MAX_HEADER: u64 = 1 << 20;

pub(crate) fn contents(file: &File) -> Result<Contents> {
    tensor::contents(file, vec![(String::new(), header(file)?)], Choice::default(), Three::Contexts)
}

/// Reads the header and holds it against the size of the file.
fn header(file: &File) -> Result<Tensor> {
    let head = file.head(12)?;
    if head.len() < 10 || head[..6] != *b"\x93NUMPY" {
        return Err(file.flaw("is no .npy file (or cut off): it does not begin as one"));
    }
    let (start, length) = match head[6] {
        1 => (10, u64::from(u16::from_le_bytes([head[8], head[9]]))),
        2 | 3 if head.len() == 12 => (12, u64::from(u32::from_le_bytes([head[8], head[9], head[10], head[11]]))),
        version => {
            return Err(
                file.flaw(format!("is .npy of version {version}: 1 to 3 are read: save it again by numpy.save"))
            );
        }
    };
    if length > MAX_HEADER {
        return Err(file.flaw(format!("damaged: claims a header of {length} bytes")));
    }
    let text = file.read_at(start, length)?;
    let text = std::str::from_utf8(&text).map_err(|_| file.flaw("damaged: its header is no text"))?;
    let parsed = parse(text).map_err(|problem| file.flaw(problem))?;
    let tensor = Tensor { offset: start + length, number: parsed.number, transposed: None, shape: parsed.shape };
    let Some(bytes) = tensor.bytes() else {
        let what = tensor.number.err().unwrap_or_else(|| "more bytes than can be counted".into());
        return Err(file.flaw(format!("holds {what}: float16, bfloat16, float32 or float64 are activations")));
    };
    let there = file.size() - tensor.offset;
    if bytes != there {
        let what = if there < bytes { "cut off" } else { "more than one array" };
        return Err(file.flaw(format!("{what}: {:?} takes {bytes} bytes, and {there} follow the header", tensor.shape)));
    }
    Ok(tensor)
}

#[derive(Debug, PartialEq)]
struct Parsed {
    number: std::result::Result<Number, String>,
    shape: Vec<u64>,
}

/// Reads the header's dictionary, of which nothing but its three keys is known.
fn parse(text: &str) -> std::result::Result<Parsed, String> {
    let damaged = || format!("damaged: its header says {:?}", text.chars().take(200).collect::<String>());
    let value = |key: &str| {
        let (_, after) = text.split_once(&format!("'{key}'"))?;
        Some(after.trim_start().strip_prefix(':')?.trim_start())
    };
    let descr = value("descr").ok_or_else(damaged)?;
    if descr.starts_with('[') {
        return Err("holds records of several fields: save the field of activations alone".into());
    }
    let descr = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).ok_or_else(damaged)?.0;
    match value("fortran_order").ok_or_else(damaged)? {
        order if order.starts_with("False") => {}
        order if order.starts_with("True") => {
            return Err(
                "is in Fortran order, where a row's numbers lie apart: save numpy.ascontiguousarray(array)".into()
            );
        }
        _ => return Err(damaged()),
    }
    let shape = value("shape").and_then(|s| s.strip_prefix('(')?.split_once(')')).ok_or_else(damaged)?.0;
    let number = |n: &str| n.trim().trim_end_matches('L').parse::<u64>().map_err(|_| damaged());
    let shape = shape.split(',').filter(|n| !n.trim().is_empty()).map(number).collect::<std::result::Result<_, _>>()?;
    Ok(Parsed { number: of_descr(descr)?, shape })
}

fn of_descr(descr: &str) -> std::result::Result<std::result::Result<Number, String>, String> {
    let (order, kind) = descr.split_at_checked(1).unwrap_or(("", descr));
    if order == ">" {
        return Err(format!("is big-endian ({descr}): save array.astype(array.dtype.newbyteorder('<'))"));
    }
    Ok(match kind {
        "f2" => Ok(Number::F16),
        "f4" => Ok(Number::F32),
        "f8" => Ok(Number::F64),
        "V2" => Ok(Number::Bf16),
        "i1" => Ok(Number::I8),
        "i2" => Ok(Number::I16),
        "i4" => Ok(Number::I32),
        "i8" => Ok(Number::I64),
        "u1" => Ok(Number::U8),
        "u2" => Ok(Number::U16),
        "u4" => Ok(Number::U32),
        "u8" => Ok(Number::U64),
        _ => Err(format!("numbers of type {descr}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_numpy_writes_them() {
        let read = |text| parse(text).map(|p| (p.number, p.shape));
        let plain = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }          \n";
        assert_eq!(read(plain), Ok((Ok(Number::F32), vec![3, 4])));
        let old = "{'shape': (3L, 4L, 5L), 'fortran_order': False, 'descr': '<V2'}";
        assert_eq!(read(old), Ok((Ok(Number::Bf16), vec![3, 4, 5])));
        assert_eq!(read("{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }"), Ok((Ok(Number::U8), vec![7])));
        assert_eq!(
            read("{'descr': '<c8', 'fortran_order': False, 'shape': (), }").unwrap().0,
            Err("numbers of type <c8".into())
        );
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, says) in [
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }", "ascontiguousarray"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (3, 4), }", "big-endian"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4), }", "several fields"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4), }", "damaged"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4), }", "damaged"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (3, 4), }", "damaged"),
            ("{'descr': '<f4'", "damaged"),
            ("", "damaged"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
