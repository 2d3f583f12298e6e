//! The style sheets, and how what is drawn is named in them.

use crate::chart::Colour;

/// Colours in light and dark, and everything inside a chart: part of each page and of each SVG file.
pub(crate) const CHART: &str = include_str!("chart.css");

/// What stands around charts on a page.
pub(crate) const PAGE: &str = include_str!("page.css");

/// Kinds that have a colour, a shape and a stroke of their own; further ones begin again.
const KINDS: usize = 6;

/// Steps of the ramp.
const STEPS: usize = 8;

/// The class of a colour.
pub(crate) fn class(colour: Colour) -> String {
    match colour {
        Colour::Kind(kind) => format!("kind-{}", kind % KINDS),
        Colour::Step(share) => format!("step-{}", (share.clamp(0.0, 1.0) * (STEPS - 1) as f64).round()),
        Colour::Muted => "muted".to_owned(),
    }
}

/// The shape of a point of a colour around (x, y), as a path.
pub(crate) fn shape(colour: Colour, x: f64, y: f64) -> String {
    let kind = match colour {
        Colour::Kind(kind) => kind % KINDS,
        Colour::Step(_) | Colour::Muted => 0,
    };
    let outline = |corners: &[(f64, f64)]| {
        let corners: Vec<String> = corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("M{}Z", corners.join("L"))
    };
    match kind {
        0 => format!("M{:.1},{y:.1}a3.2,3.2 0 1 0 6.4,0a3.2,3.2 0 1 0 -6.4,0Z", x - 3.2),
        1 => outline(&[(-3.0, -3.0), (3.0, -3.0), (3.0, 3.0), (-3.0, 3.0)]),
        2 => outline(&[(0.0, -4.0), (3.8, 3.0), (-3.8, 3.0)]),
        3 => outline(&[(0.0, -4.2), (4.2, 0.0), (0.0, 4.2), (-4.2, 0.0)]),
        4 => outline(&[(0.0, 4.0), (3.8, -3.0), (-3.8, -3.0)]),
        _ => outline(&[(-4.0, -1.2), (4.0, -1.2), (4.0, 1.2), (-4.0, 1.2)]),
    }
}
