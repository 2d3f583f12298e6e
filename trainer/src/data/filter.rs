//! `[data.filter]`: rows left out by what they hold. Bounds of the norm may be multiples of the median norm, which a run finds once
//! and keeps in its checkpoints.
//!
//! `norm_max = "10x"` stays a multiple in the recipe, and becomes a norm once, from a sample taken before the first step. So what is left
//! out cannot change when a run is resumed with more rows skipped, and evaluation elsewhere leaves out the same. The loader knows norms
//! alone.

use loader::RowFilter;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Error;

/// Rows that a recipe does not want. The default keeps every row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Leave out rows with a smaller norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_min: Option<Bound>,
    /// Leave out rows with a larger norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_max: Option<Bound>,
    /// Leave out rows with a NaN or an infinite value.
    pub finite: bool,
    /// Leave out these positions in the document (column `pos`), such as 0.
    pub positions: Vec<i32>,
    /// Leave out these tokens (column `token_id`).
    pub token_ids: Vec<i32>,
}

/// A bound of the norm of a stored row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// A norm.
    Norm(f32),
    /// So many times the median norm, written `"10x"`.
    Medians(f64),
}

impl Filter {
    /// Whether every row passes.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether it needs the median norm.
    pub fn is_relative(&self) -> bool {
        [self.norm_min, self.norm_max].into_iter().flatten().any(|bound| matches!(bound, Bound::Medians(_)))
    }

    /// What it leaves out whatever the median norm is: the rows that pass are those whose median it is.
    pub fn without_medians(&self) -> RowFilter {
        let norm = |bound| match bound {
            Some(Bound::Norm(norm)) => Some(norm),
            _ => None,
        };
        RowFilter {
            norm_min: norm(self.norm_min),
            norm_max: norm(self.norm_max),
            finite: self.finite,
            positions: self.positions.clone(),
            token_ids: self.token_ids.clone(),
        }
    }

    /// The filter in norms of stored rows; `median` is the run's median norm.
    ///
    /// # Errors
    /// [`Error::Recipe`] when a bound is a multiple and there is no median.
    pub fn resolve(&self, median: Option<f32>) -> Result<RowFilter, Error> {
        let norm = |bound: Option<Bound>| {
            match (bound, median) {
            (None, _) => Ok(None),
            (Some(Bound::Norm(norm)), _) => Ok(Some(norm)),
            (Some(Bound::Medians(times)), Some(median)) => Ok(Some((times * f64::from(median)) as f32)),
            (Some(Bound::Medians(_)), None) => Err(Error::Recipe(
                "data.filter has a multiple of the median norm, and the checkpoint does not say what that is: give a norm".into(),
            )),
        }
        };
        Ok(RowFilter { norm_min: norm(self.norm_min)?, norm_max: norm(self.norm_max)?, ..self.without_medians() })
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Recipe`] that names the key and what it may be.
    pub fn validate(&self) -> Result<(), Error> {
        for (key, bound) in [("norm_min", self.norm_min), ("norm_max", self.norm_max)] {
            let value = match bound {
                Some(Bound::Norm(norm)) => f64::from(norm),
                Some(Bound::Medians(times)) => times,
                None => continue,
            };
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Recipe(format!("data.filter.{key} must be {EXPECTED}, and is {value}")));
            }
        }
        let (min, max) = match (self.norm_min, self.norm_max) {
            (Some(Bound::Norm(min)), Some(Bound::Norm(max))) => (f64::from(min), f64::from(max)),
            (Some(Bound::Medians(min)), Some(Bound::Medians(max))) => (min, max),
            _ => return Ok(()),
        };
        if min > max {
            return Err(Error::Recipe(format!(
                "data.filter.norm_min must be at most data.filter.norm_max, and is {min}"
            )));
        }
        Ok(())
    }
}

/// What a bound may be.
const EXPECTED: &str = "a norm, at least 0, or a multiple of the median norm, such as \"10x\"";

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Bound::Norm(norm) => serializer.serialize_f32(*norm),
            Bound::Medians(times) => serializer.serialize_str(&format!("{times}x")),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyBound)
    }
}

/// A bound in any form.
struct AnyBound;

impl de::Visitor<'_> for AnyBound {
    type Value = Bound;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_f64<E: de::Error>(self, norm: f64) -> Result<Bound, E> {
        Ok(Bound::Norm(norm as f32))
    }

    fn visit_i64<E: de::Error>(self, norm: i64) -> Result<Bound, E> {
        Ok(Bound::Norm(norm as f32))
    }

    fn visit_u64<E: de::Error>(self, norm: u64) -> Result<Bound, E> {
        Ok(Bound::Norm(norm as f32))
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Bound, E> {
        let times = word.trim().strip_suffix('x').and_then(|number| number.trim().parse().ok());
        times.map(Bound::Medians).ok_or_else(|| E::invalid_value(de::Unexpected::Str(word), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Result<Filter, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn bounds_are_norms_or_multiples_of_the_median() {
        let read = filter("norm_min = 1\nnorm_max = \"10x\"\nfinite = true").expect("a filter");
        assert_eq!((read.norm_min, read.norm_max), (Some(Bound::Norm(1.0)), Some(Bound::Medians(10.0))));
        assert_eq!(toml::from_str::<Filter>(&toml::to_string(&read).expect("text")).expect("a filter"), read);
        let resolved = read.resolve(Some(160.0)).expect("a median");
        assert_eq!((resolved.norm_min, resolved.norm_max, resolved.finite), (Some(1.0), Some(1600.0), true));
        assert_eq!(read.without_medians().norm_max, None);
        assert!(read.is_relative() && read.resolve(None).is_err());
        let plain = filter("norm_max = 1.7").expect("a filter");
        assert!(!plain.is_relative() && plain.resolve(None).expect("no median is needed").norm_max == Some(1.7));
        for text in ["norm_max = \"10\"", "norm_max = \"ten x\"", "norm_max = true", "norm_max = \"x\""] {
            assert!(filter(text).expect_err(text).to_string().contains("such as \"10x\""), "{text}");
        }
        for text in ["norm_max = \"-1x\"", "norm_min = nan", "norm_max = \"infx\"", "norm_min = -1"] {
            assert!(filter(text).expect(text).validate().expect_err(text).to_string().contains("data.filter.norm_"));
        }
        assert!(filter("norm_min = \"3x\"\nnorm_max = \"2x\"").expect("a filter").validate().is_err());
        assert!(filter("norm_min = 3\nnorm_max = \"2x\"").expect("a filter").validate().is_ok());
    }
}
