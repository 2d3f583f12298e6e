//! From numbers to places on a chart.

use crate::chart::Axis;
use crate::ticks::{self, Tick};

/// Larger numbers are no measurements, and their differences are not finite.
const LARGEST: f64 = 1e150;

/// One axis of a chart, with its ends.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    logarithmic: bool,
    /// Ends of the axis; logarithms where it is logarithmic.
    low: f64,
    high: f64,
    /// Where these lie.
    start: f64,
    end: f64,
}

impl Scale {
    /// An axis that has room for `numbers`, from `start` to `end` on the chart. Those that it cannot show are left out.
    pub(crate) fn over(axis: &Axis, numbers: impl Iterator<Item = f64>, (start, end): (f64, f64)) -> Scale {
        let mut scale =
            Scale { logarithmic: axis.logarithmic, low: f64::INFINITY, high: f64::NEG_INFINITY, start, end };
        for number in numbers.chain(axis.includes) {
            let inside = axis.within.map_or(number, |(low, high)| number.clamp(low, high));
            if let Some(place) = scale.inner(inside).filter(|_| !number.is_nan()) {
                scale.low = scale.low.min(place);
                scale.high = scale.high.max(place);
            }
        }
        if scale.low > scale.high {
            (scale.low, scale.high) = (0.0, 1.0);
        }
        // One number stands in the middle.
        let width = scale.high - scale.low;
        let narrow = width <= 1e-9 * scale.high.abs().max(scale.low.abs());
        let room = match (narrow, axis.logarithmic) {
            (true, true) => 0.3,
            (true, false) if scale.low == 0.0 => 1.0,
            (true, false) => 0.1 * scale.low.abs(),
            (false, _) => 0.04 * width,
        };
        // An end that was asked for stays where it is.
        let fixed = |end: f64| {
            axis.includes
                .into_iter()
                .chain(axis.within.into_iter().flat_map(|(a, b)| [a, b]))
                .any(|number| scale.inner(number) == Some(end))
        };
        // One number on such an end has its room on the other side.
        let low = if fixed(scale.low) { scale.low } else { scale.low - room };
        let high = if fixed(scale.high) && !narrow { scale.high } else { scale.high + room };
        Scale { low, high, ..scale }
    }

    /// Where a number lies, outside the ends too; `None` for what has no place.
    pub(crate) fn place(&self, number: f64) -> Option<f64> {
        let share = (self.inner(number)? - self.low) / (self.high - self.low);
        // Far outside is outside: drawing programs lose their precision there.
        Some(self.start + share.clamp(-2.0, 3.0) * (self.end - self.start))
    }

    /// Whether a number lies between the ends.
    pub(crate) fn holds(&self, number: f64) -> bool {
        self.inner(number).is_some_and(|inner| (self.low..=self.high).contains(&inner))
    }

    pub(crate) fn ticks(&self, most: usize) -> Vec<Tick> {
        if self.logarithmic {
            ticks::logarithmic(10f64.powf(self.low), 10f64.powf(self.high), most)
        } else {
            ticks::linear(self.low, self.high, most)
        }
    }

    fn inner(&self, number: f64) -> Option<f64> {
        let shown = number.abs() < LARGEST && (!self.logarithmic || number > 1.0 / LARGEST);
        shown.then(|| if self.logarithmic { number.log10() } else { number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_place_takes_none() {
        let axis = Axis::logarithmic("x");
        let scale =
            Scale::over(&axis, [1.0, f64::NAN, -3.0, 0.0, 100.0, f64::INFINITY, 1e300].into_iter(), (0.0, 108.0));
        assert_eq!([scale.place(f64::NAN), scale.place(0.0), scale.place(f64::INFINITY)], [None; 3]);
        let middle = scale.place(10.0).expect("a place");
        assert!((middle - 54.0).abs() < 1e-9, "{middle}");
        assert!((scale.place(1.0).expect("a place") - 4.0).abs() < 1e-9);
        assert!(!scale.holds(1e3) && scale.holds(2.0));
    }

    #[test]
    fn no_number_and_one_number_have_an_axis_too() {
        for numbers in [vec![], vec![f64::NAN], vec![5.0], vec![0.0], vec![-2.0, -2.0]] {
            for axis in [Axis::linear("x"), Axis::logarithmic("x"), Axis::linear("x").from(0.0)] {
                let scale = Scale::over(&axis, numbers.iter().copied(), (0.0, 100.0));
                assert!(scale.low < scale.high, "{numbers:?} {axis:?} {scale:?}");
                assert!(!scale.ticks(5).is_empty(), "{numbers:?} {axis:?}");
            }
        }
    }

    #[test]
    fn an_end_that_is_asked_for_is_exact() {
        let scale = Scale::over(&Axis::linear("share").from(0.0), [0.2, 0.4].into_iter(), (0.0, 10.0));
        assert_eq!(scale.place(0.0), Some(0.0));
        let scale = Scale::over(&Axis::linear("share").from(0.0), [0.0, 0.0].into_iter(), (0.0, 10.0));
        assert_eq!((scale.low, scale.high), (0.0, 1.0));
        let scale = Scale::over(&Axis::linear("share").within(0.0, 1.0), [-50.0, 0.4, 0.9].into_iter(), (0.0, 10.0));
        assert_eq!(scale.place(0.0), Some(0.0));
        assert!(scale.place(-50.0).is_some_and(|place| place < 0.0));
    }
}
