//! Numbers as people write them: counts as `1000000`, `1_000_000` or `1e6`, bytes also as `512MiB` or `2GB`. Recipes read them by
//! serde, the command line by [`parse_count`] and [`parse_bytes`]. Three counts have names, those of the dictionaries of Scaling
//! Monosemanticity: `1M` is 2^20, `4M` 2^22, `34M` 2^25. Since other names would mean millions to most readers, there are no others.

use std::fmt;

use serde::Deserializer;
use serde::de::{self, Unexpected};

/// What may stand behind a number of bytes, with or without a space between.
const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Above it not every whole number is a floating-point one, so `1e17` may not be what was meant.
const LARGEST_EXACT: f64 = (1_u64 << 53) as f64;

/// Counts that have names.
const NAMED: [(&str, u64); 3] = [("1M", 1 << 20), ("4M", 1 << 22), ("34M", 1 << 25)];

/// What a count may be, for messages.
pub const COUNT: &str = "a whole number, at least 0, such as 1_000_000 or 1e6 (above 2^53 in digits; of names only \"1M\", \"4M\" and \
                         \"34M\" are known, which are 2^20, 2^22 and 2^25)";

/// A count; `None` when the text is none.
pub fn parse_count(text: &str) -> Option<u64> {
    let named = NAMED.iter().find(|(name, _)| *name == text).map(|(_, count)| *count);
    named.or_else(|| parse_digits(text))
}

fn parse_digits(text: &str) -> Option<u64> {
    let digits: String = text.chars().filter(|&c| c != '_').collect();
    digits.parse().ok().or_else(|| whole(digits.parse().ok()?))
}

/// A number of bytes; `None` when the text is none.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let Some((number, unit)) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit))) else {
        return parse_digits(text);
    };
    let digits: String = number.trim_end().chars().filter(|&c| c != '_').collect();
    times(&digits, *unit)
}

/// A decimal number of units, where that is a whole number of bytes: in binary fractions 4.1 GB is none.
fn times(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let parts = 10_u128.checked_pow(fraction.len() as u32)?;
    let bytes = format!("{whole}{fraction}").parse::<u128>().ok()?.checked_mul(unit.into())?;
    if bytes.is_multiple_of(parts) { u64::try_from(bytes / parts).ok() } else { None }
}

fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=LARGEST_EXACT).contains(&number)).then_some(number as u64)
}

/// Reads a count of a recipe.
///
/// # Errors
/// Those of the format, for anything that is none.
pub fn count<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
    read(deserializer, Written { what: COUNT, parse: parse_count })
}

/// As [`count`], for a key that may be absent.
///
/// # Errors
/// Those of [`count`].
pub fn some_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    count(deserializer).map(Some)
}

/// Reads a number of bytes of a recipe.
///
/// # Errors
/// Those of the format, for anything that is none.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    read(deserializer, Written { what: "a whole number of bytes, or one such as \"512MiB\"", parse: parse_bytes })
}

/// As [`bytes`], for a key that may be absent.
///
/// # Errors
/// Those of [`bytes`].
pub fn some_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bytes(deserializer).map(Some)
}

fn read<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D, written: Written) -> Result<T, D::Error> {
    let number = deserializer.deserialize_any(written)?;
    T::try_from(number).map_err(|_| de::Error::custom(format!("{number} is more than this machine counts")))
}

/// How a kind of number may be written.
struct Written {
    what: &'static str,
    parse: fn(&str) -> Option<u64>,
}

impl de::Visitor<'_> for Written {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<u64, E> {
        whole(number).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        (self.parse)(text.trim()).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::Error;

    use super::*;

    /// A number of a recipe, as each kind of key reads it.
    fn read_by_all<'de, T: IntoDeserializer<'de, Error> + Copy>(value: T) -> [Result<u64, String>; 4] {
        let of = || value.into_deserializer();
        let some = |number: Option<u64>| number.expect("a key that is there");
        let all = [count(of()), some_count(of()).map(some), bytes(of()), some_bytes(of()).map(some)];
        all.map(|number| number.map_err(|error| error.to_string()))
    }

    /// The paper's names, and no others; of bytes there are units.
    #[test]
    fn the_papers_sizes_have_names() {
        let counts = ["1M", "4M", "34M"].map(parse_count);
        assert_eq!(counts, [Some(1_048_576), Some(4_194_304), Some(33_554_432)]);
        for other in ["2M", "34m", "16M", "1.0M", "1 M", "1K", "1G", "M"] {
            assert_eq!(parse_count(other), None, "{other}");
            assert_eq!(parse_bytes(other), None, "{other}");
        }
        assert_eq!(parse_bytes("34M"), None);
        let [of_count, ..] = read_by_all("2M");
        let said = of_count.expect_err("no name");
        assert!(said.contains("\"2M\"") && said.contains("34M") && said.contains("2^25"), "{said}");
        assert_eq!(read_by_all("34M")[0], Ok(1 << 25));
    }

    #[test]
    fn recipes_hold_numbers_of_every_kind() {
        for found in [read_by_all(2000_u64), read_by_all(2000_i64), read_by_all(2e3), read_by_all(" 2_000 ")] {
            assert_eq!(found, [const { Ok(2000) }; 4]);
        }
        let [count_of, _, bytes_of, some_bytes_of] = read_by_all("2kB");
        assert_eq!((bytes_of, some_bytes_of), (Ok(2000), Ok(2000)));
        assert!(count_of.is_err_and(|error| error.contains("\"2kB\", expected a whole number, at least 0")));
        for (found, says) in [(read_by_all(-1_i64), "`-1`"), (read_by_all(1.5), "`1.5`"), (read_by_all("x"), "\"x\"")] {
            for error in found.map(|number| number.expect_err(says)) {
                assert!(error.contains(says) && error.contains("expected a whole number"), "{error}");
            }
        }
        let small: Result<u8, Error> = count(256_u64.into_deserializer());
        assert!(small.is_err_and(|error| error.to_string() == "256 is more than this machine counts"));
    }

    #[test]
    fn counts_are_read_as_people_write_them() {
        for (text, count) in [("1000000", 1_000_000), ("1_000_000", 1_000_000), ("1e9", 1_000_000_000), ("1.5e3", 1500)]
        {
            assert_eq!(parse_count(text), Some(count), "{text}");
        }
        // Exact as digits, which a floating-point number would not be.
        assert_eq!(parse_count("18446744073709551615"), Some(u64::MAX));
        for text in ["", "-1", "1.5", "1e17", "inf", "nan", "2GiB", "1k", "0x10"] {
            assert_eq!(parse_count(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_may_have_a_unit() {
        for (text, bytes) in [
            ("1e6", 1_000_000),
            ("512MiB", 512 << 20),
            ("2 GiB", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("1_000kB", 1_000_000),
            ("4.1GB", 4_100_000_000),
            ("2.01GB", 2_010_000_000),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["GiB", "2GX", "2 gib", "-1GiB", "0.3KiB", "infGiB", "1e30TiB", "99999999TiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
