//! A curve of any length in a bounded number of points, as it comes.

/// Keeps the lowest and the highest point of each of so many stretches of equal numbers of points, and both ends: what stands out
/// is never lost. Memory does not grow with the curve.
#[derive(Clone, Debug)]
pub struct Thinned {
    /// Most stretches; a stretch is halved away when there would be more.
    most: usize,
    /// Points in a whole stretch.
    length: usize,
    stretches: Vec<Stretch>,
    /// Both ends.
    ends: Option<[(f64, f64); 2]>,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    points: usize,
    lowest: (f64, f64),
    highest: (f64, f64),
}

impl Stretch {
    fn with(self, other: Stretch) -> Stretch {
        let lower = |a: (f64, f64), b: (f64, f64)| if b.1 < a.1 { b } else { a };
        let higher = |a: (f64, f64), b: (f64, f64)| if b.1 > a.1 { b } else { a };
        Stretch {
            points: self.points + other.points,
            lowest: lower(self.lowest, other.lowest),
            highest: higher(self.highest, other.highest),
        }
    }
}

impl Thinned {
    /// At most about `2 · most + 2` points are kept.
    pub fn new(most: usize) -> Thinned {
        Thinned { most: most.max(2), length: 1, stretches: Vec::new(), ends: None }
    }

    /// Adds a point behind the others. One that is not finite is left out.
    pub fn push(&mut self, x: f64, y: f64) {
        if !(x.is_finite() && y.is_finite()) {
            return;
        }
        self.ends = Some([self.ends.map_or((x, y), |[first, _]| first), (x, y)]);
        let point = Stretch { points: 1, lowest: (x, y), highest: (x, y) };
        match self.stretches.last_mut().filter(|last| last.points < self.length) {
            Some(last) => *last = last.with(point),
            None => self.stretches.push(point),
        }
        if self.stretches.len() > self.most {
            self.length *= 2;
            let halved = self.stretches.chunks(2).map(|pair| pair.iter().copied().reduce(Stretch::with));
            self.stretches = halved.flatten().collect();
        }
    }

    /// The points that were kept, in order; all of them while there are no more than were asked for.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let Some([first, last]) = self.ends else { return Vec::new() };
        let mut points = vec![first];
        for stretch in &self.stretches {
            let (a, b) = (stretch.lowest, stretch.highest);
            let pair = if a.0 <= b.0 { [a, b] } else { [b, a] };
            for point in pair {
                if points.last() != Some(&point) {
                    points.push(point);
                }
            }
        }
        if points.last() != Some(&last) {
            points.push(last);
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_curve_is_kept_whole() {
        let mut curve = Thinned::new(100);
        assert!(curve.points().is_empty());
        let all: Vec<(f64, f64)> = (0..100).map(|at| (f64::from(at), f64::from(at % 7))).collect();
        all.iter().for_each(|&(x, y)| curve.push(x, y));
        curve.push(f64::NAN, 1.0);
        curve.push(1000.0, f64::INFINITY);
        assert_eq!(curve.points(), all);
    }

    #[test]
    fn a_long_curve_keeps_its_ends_and_its_extremes_in_order() {
        let mut curve = Thinned::new(100);
        for at in 0..1_000_000 {
            let y = match at {
                0 => 5.0,
                333_333 => 50.0,
                777_777 => -50.0,
                _ => f64::from(at % 10),
            };
            curve.push(f64::from(at), y);
        }
        let points = curve.points();
        assert!((100..=202).contains(&points.len()), "{}", points.len());
        assert!(points.contains(&(333_333.0, 50.0)) && points.contains(&(777_777.0, -50.0)));
        assert_eq!(points.last(), Some(&(999_999.0, 9.0)));
        assert_eq!(points[0], (0.0, 5.0));
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
