//! Numbers as people read them.

/// Units of large counts, as the field writes them: 34M features, 8B tokens.
pub(crate) const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];

/// About four digits, with k, M, B, T from 10,000 up; powers of ten for what is larger or smaller than these.
pub fn compact(number: f64) -> String {
    let size = number.abs();
    if !number.is_finite() {
        "not a number".to_owned()
    } else if size != 0.0 && !(1e-4..1e15).contains(&size) {
        scientific(number)
    } else if size < 1e4 {
        short(number, if size < 1.0 { 4 } else { 3 - size.log10().floor() as usize })
    } else {
        let (unit, letter) = UNITS.into_iter().find(|(unit, _)| size >= *unit).unwrap_or((1.0, ""));
        let scaled = number / unit;
        format!("{}{letter}", short(scaled, 2_usize.saturating_sub(scaled.abs().log10().floor() as usize)))
    }
}

/// Every digit that it takes to read the same number back.
pub fn exact(number: f64) -> String {
    if number == 0.0 || (1e-5..1e16).contains(&number.abs()) { format!("{number}") } else { format!("{number:e}") }
}

/// As `2.5×10⁻⁷`, and `10⁶` for whole powers.
pub fn scientific(number: f64) -> String {
    let digits = format!("{number:.2e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let raised: String = exponent.chars().map(superscript).collect();
    match trimmed(mantissa) {
        "1" => format!("10{raised}"),
        "-1" => format!("−10{raised}"),
        mantissa => format!("{}×10{raised}", mantissa.replace('-', "−")),
    }
}

/// With at most so many decimals.
pub(crate) fn short(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    match trimmed(&text) {
        "-0" => "0".to_owned(),
        trimmed => trimmed.replace('-', "−"),
    }
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

fn superscript(character: char) -> char {
    match character {
        '-' => '⁻',
        '0' => '⁰',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit @ '4'..='9' => char::from_u32(0x2070 + digit as u32 - '0' as u32).unwrap_or(digit),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_for_people_and_exact_for_tables() {
        let of = |number: f64| compact(number);
        assert_eq!([of(0.0), of(12.3456), of(1234.0), of(0.12345)], ["0", "12.35", "1234", "0.1235"]);
        assert_eq!([of(16384.0), of(33_554_432.0), of(8e9), of(1e21)], ["16.4k", "33.6M", "8B", "10²¹"]);
        assert_eq!(
            [of(-2.5e-7), of(3e-4), of(f64::NAN), of(-0.00001)],
            ["−2.5×10⁻⁷", "0.0003", "not a number", "−10⁻⁵"]
        );
        assert_eq!(of(999_999.0), "1000k");
        for number in [0.1 + 0.2, 1e300, -5e-324, 123_456_789.123_456_78, 0.0] {
            assert_eq!(exact(number).parse(), Ok(number));
        }
    }
}
