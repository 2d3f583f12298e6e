//! Rows that hold a NaN or an infinite number. They come over as they are, since a filter can leave them out later, and are counted on the way.

use half::bf16;
use loader::Dtype;
use serde::{Deserialize, Serialize};

/// Rows with a NaN or an infinite number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonFinite {
    /// How many there are.
    pub rows: u64,
    /// What the first of them is called; empty where there is none.
    pub first: String,
}

impl NonFinite {
    /// Looks at stored rows of so many bytes; `name` says what one of them is called, by its place among these.
    pub(crate) fn look_at(&mut self, rows: &[u8], row_bytes: usize, dtype: Dtype, name: impl Fn(usize) -> String) {
        let is_bad = |(_, row): &(usize, &[u8])| !is_finite(row, dtype);
        for (at, _) in rows.chunks_exact(row_bytes.max(1)).enumerate().filter(is_bad) {
            if self.rows == 0 {
                self.first = name(at);
            }
            self.rows += 1;
        }
    }

    /// The same with rows that come behind.
    pub(crate) fn and(mut self, later: NonFinite) -> Self {
        if self.rows == 0 {
            self.first = later.first;
        }
        self.rows += later.rows;
        self
    }
}

/// Whether all numbers of a row are. Without its sign a number's bits are the larger the larger it is, and infinity and NaNs are above all others: one
/// maximum over the row, which a processor takes of many numbers at once.
fn is_finite(row: &[u8], dtype: Dtype) -> bool {
    let most_of_two = || row.as_chunks().0.iter().fold(0, |most, &bits| most.max(i16::from_le_bytes(bits) & i16::MAX));
    match dtype {
        Dtype::F32 => {
            let most = row.as_chunks().0.iter().fold(0, |most, &bits| most.max(i32::from_le_bytes(bits) & i32::MAX));
            most < 0x7f80_0000
        }
        Dtype::F16 => most_of_two() < 0x7c00,
        Dtype::Bf16 => most_of_two() < 0x7f80,
    }
}

/// What to do about a finite number that a format does not hold.
pub(crate) fn remedy(number: f64) -> &'static str {
    // A number that bf16 holds is one of f32 too.
    match ((number as f32).is_finite(), bf16::from_f64(number).is_finite()) {
        (true, true) => "store bf16 or f32, which do",
        (true, false) => "store f32, which does",
        (false, _) => "no format of a shard does: scale the rows of the source, or leave this one out of it",
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn of(values: &[f32], dtype: Dtype) -> NonFinite {
        let mut bytes = vec![0; values.len() * dtype.size()];
        dtype.from_f32(values, &mut bytes);
        let mut found = NonFinite::default();
        found.look_at(&bytes, 3 * dtype.size(), dtype, |row| format!("row {row}"));
        found
    }

    #[test]
    fn rows_that_are_not_finite_are_counted_in_every_format() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let largest = if dtype == Dtype::F16 { f16::MAX.to_f32() } else { bf16::MAX.to_f32() };
            let finite = [0.0, -0.0, largest, -largest, f32::MIN_POSITIVE, -1e-41];
            assert_eq!(of(&finite, dtype), NonFinite::default(), "{dtype}");
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let rows = [&finite[..], &[1.0, bad, 2.0], &finite[..3], &[bad, bad, bad]].concat();
                assert_eq!(of(&rows, dtype), NonFinite { rows: 2, first: "row 2".into() }, "{dtype} {bad}");
            }
        }
        let (none, some) = (NonFinite::default(), NonFinite { rows: 1, first: "a".into() });
        assert_eq!(none.clone().and(some.clone()), some);
        assert_eq!(some.clone().and(none), some);
        assert_eq!(some.and(NonFinite { rows: 2, first: "b".into() }), NonFinite { rows: 3, first: "a".into() });
    }

    #[test]
    fn a_format_that_holds_a_number_is_named_where_there_is_one() {
        assert!(remedy(70_000.0).starts_with("store bf16 or f32"));
        assert!(remedy(f64::from(f32::MAX)).starts_with("store f32"));
        assert!(remedy(-1e39).starts_with("no format of a shard"));
    }
}
