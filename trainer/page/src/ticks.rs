//! Where an axis is marked: round numbers, few enough to be read.

use crate::number::{UNITS, scientific, short};

/// A mark, with its text where there is room.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) at: f64,
    pub(crate) label: Option<String>,
}

/// Multiples of 1, 2 or 5 times a power of ten in `low ..= high`, at most about `most`.
pub(crate) fn linear(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let raw = (high - low) / most.max(1) as f64;
    // What is below is too narrow for doubles to tell its marks apart.
    if !(raw > 1e-12 * low.abs().max(high.abs()) && raw > 1e-300) {
        return vec![Tick { at: low, label: Some(crate::number::compact(low)) }];
    }
    let mut exponent = raw.log10().floor() as i32;
    // A third more is better than half of what there is room for.
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * 10f64.powi(exponent) >= 0.75 * raw);
    let factor = factor.unwrap_or_else(|| {
        exponent += 1;
        1.0
    });
    // A quotient of whole numbers is the nearest double to what the label says; a product with 0.1 is not.
    let at = |index: f64| {
        if exponent < 0 { index * factor / 10f64.powi(-exponent) } else { index * factor * 10f64.powi(exponent) }
    };
    let step = at(1.0);
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    let label = linear_label(low.abs().max(high.abs()), step);
    let marks = (0..=(last - first).clamp(0.0, 1e3) as u32).map(|index| at(first + f64::from(index)));
    marks.map(|at| Tick { at, label: Some(label(at)) }).collect()
}

/// All marks of an axis have one unit and as many decimals.
fn linear_label(largest: f64, step: f64) -> impl Fn(f64) -> String {
    let by_powers = !(1e-3..1e15).contains(&largest);
    let (unit, letter) = UNITS.into_iter().find(|(unit, _)| largest >= *unit && largest >= 1e4).unwrap_or((1.0, ""));
    let decimals = (-(step / unit).log10() - 1e-9).ceil().max(0.0) as usize;
    move |at| {
        if at == 0.0 {
            "0".to_owned()
        } else if by_powers {
            scientific(at)
        } else {
            format!("{:.decimals$}{letter}", at / unit).replace('-', "−")
        }
    }
}

/// Powers of ten in `low ..= high`, at most about `most` with text; of less than two decades also 2 and 5 times these, and of less
/// than that round numbers as on a linear axis. Both ends are greater than 0.
pub(crate) fn logarithmic(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let decades = (high / low).log10();
    if decades < 0.7 {
        return linear(low, high, most);
    }
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let every = (decades / most as f64).ceil().max(1.0) as i32;
    let by_powers = low < 1e-3 || high > 1e6;
    let mut ticks = Vec::new();
    for exponent in first..=last {
        for digit in 1..=9 {
            // The nearest double to what the label says.
            let Ok(at) = format!("{digit}e{exponent}").parse::<f64>() else { continue };
            let inside = at > low * (1.0 - 1e-9) && at < high * (1.0 + 1e-9);
            if !inside || (every > 1 && digit > 1) {
                continue;
            }
            let few = (decades * 3.0 <= most as f64 && [2, 5].contains(&digit)) || (decades < 1.0 && digit == 3);
            let labelled = (digit == 1 && exponent.rem_euclid(every) == 0) || few;
            let text = || if by_powers { scientific(at) } else { crate::number::compact(at) };
            ticks.push(Tick { at, label: labelled.then(text) });
        }
    }
    // An axis without a number says nothing: one decade may hold no power of ten inside.
    if ticks.iter().filter(|tick| tick.label.is_some()).count() < 2 {
        for tick in &mut ticks {
            let digit = 10f64.powf(tick.at.log10().rem_euclid(1.0)).round();
            if [2.0, 5.0].contains(&digit) {
                tick.label = Some(if by_powers { scientific(tick.at) } else { short(tick.at, 3) });
            }
        }
    }
    ticks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().filter_map(|tick| tick.label.as_deref()).collect()
    }

    #[test]
    fn linear_marks_are_round_numbers() {
        assert_eq!(labels(&linear(0.0, 1.0, 6)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&linear(1.9, 2.3, 5)), ["1.9", "2.0", "2.1", "2.2", "2.3"]);
        assert_eq!(labels(&linear(0.0, 1_048_576.0, 6)), ["0", "0.2M", "0.4M", "0.6M", "0.8M", "1.0M"]);
        assert_eq!(labels(&linear(-3e-4, 2e-4, 3)), ["−2×10⁻⁴", "0", "2×10⁻⁴"]);
        assert_eq!(linear(0.1, 0.37, 6)[2].at, 0.2);
        assert_eq!(labels(&linear(5.0, 5.0, 6)), ["5"]);
    }

    #[test]
    fn logarithmic_marks_are_powers_of_ten_and_less_where_few_fit() {
        assert_eq!(labels(&logarithmic(1e5, 1e12, 8)), ["10⁵", "10⁶", "10⁷", "10⁸", "10⁹", "10¹⁰", "10¹¹", "10¹²"]);
        assert_eq!(labels(&logarithmic(1e-30, 1e30, 6)), ["10⁻³⁰", "10⁻²⁰", "10⁻¹⁰", "10⁰", "10¹⁰", "10²⁰", "10³⁰"]);
        assert_eq!(labels(&logarithmic(2.0, 7.0, 5)), ["2", "3", "4", "5", "6", "7"]);
        assert_eq!(labels(&logarithmic(1.1, 9.0, 5)), ["2", "3", "5"]);
        assert_eq!(labels(&logarithmic(512.0, 16384.0, 6)), ["1000", "2000", "5000", "10k"]);
        assert_eq!(labels(&logarithmic(0.09, 0.2, 5)), ["0.10", "0.12", "0.14", "0.16", "0.18", "0.20"]);
        let unlabelled = logarithmic(1.0, 1000.0, 4);
        assert_eq!(labels(&unlabelled), ["1", "10", "100", "1000"]);
        assert_eq!(unlabelled.len(), 28, "and 2 to 9 of each decade between");
    }

    proptest! {
        #[test]
        fn marks_are_few_and_inside(low in -1e9f64..1e9, width in 1e-6f64..1e9, most in 3usize..9) {
            let ticks = linear(low, low + width, most);
            prop_assert!(!ticks.is_empty() && ticks.len() <= most * 4 / 3 + 1);
            let slack = width * 1e-6;
            prop_assert!(ticks.iter().all(|tick| tick.at >= low - slack && tick.at <= low + width + slack));
        }

        #[test]
        fn logarithmic_marks_are_inside_and_some_have_text(low in -200f64..200.0, decades in 0.05f64..90.0, most in 4usize..9) {
            let (low, high) = (10f64.powf(low), 10f64.powf(low + decades));
            let ticks = logarithmic(low, high, most);
            let slack = 1.0 + 1e-9;
            prop_assert!(ticks.iter().all(|tick| tick.at >= low / slack && tick.at <= high * slack));
            let texts = labels(&ticks).len();
            prop_assert!((1..=most + 4).contains(&texts), "{texts} of {most}");
        }
    }
}
