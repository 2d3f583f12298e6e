//! What a chart says, before it is drawn.

/// A chart: axes, and what is drawn between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Tells it from the others of its page, and names its file: letters, digits and `-`.
    pub name: String,
    /// What it shows, in a few words.
    pub title: String,
    /// What it shows, in a sentence or two, for those who do not know it or do not see it.
    pub note: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Drawn in this order, the last on top.
    pub series: Vec<Series>,
    /// How points are asked for their numbers.
    pub hover: Hover,
}

/// How the numbers behind a chart are shown to who points at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hover {
    /// Each point says its own text.
    Points,
    /// Any place says the numbers of all lines there: for curves over the same axis.
    Along,
}

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it measures, with its unit.
    pub label: String,
    /// Whether equal distances are equal ratios; numbers up to 0 have no place then.
    pub logarithmic: bool,
    /// A number that the axis reaches, whatever the data.
    pub includes: Option<f64>,
    /// What it never goes beyond, whatever the data.
    pub within: Option<(f64, f64)>,
}

impl Axis {
    /// Equal distances are equal differences.
    pub fn linear(label: &str) -> Axis {
        Axis { label: label.to_owned(), logarithmic: false, includes: None, within: None }
    }

    /// Equal distances are equal ratios.
    pub fn logarithmic(label: &str) -> Axis {
        Axis { logarithmic: true, ..Axis::linear(label) }
    }

    /// The same axis, reaching `number`.
    pub fn from(self, number: f64) -> Axis {
        Axis { includes: Some(number), ..self }
    }

    /// The same axis, at most from `low` to `high`. What lies outside is cut off.
    pub fn within(self, low: f64, high: f64) -> Axis {
        Axis { within: Some((low, high)), ..self }
    }
}

/// What is drawn in one colour, under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// As the legend calls it; empty for none.
    pub name: String,
    /// In which colour.
    pub colour: Colour,
    /// What is drawn.
    pub marks: Marks,
    /// Whether the name stands at the right end of a line, and not in the legend.
    pub named_at_end: bool,
}

impl Series {
    /// A series that the legend names.
    pub fn new(name: &str, colour: Colour, marks: Marks) -> Series {
        Series { name: name.to_owned(), colour, marks, named_at_end: false }
    }

    /// The same series with its name at the end of its line.
    pub fn named_at_end(self) -> Series {
        Series { named_at_end: true, ..self }
    }
}

/// A colour by what it means; the style sheet says which it is in light and in dark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Colour {
    /// One of a few kinds. Each has a shape and a stroke of its own too, for those who do not see colours apart.
    Kind(usize),
    /// One of many steps of a quantity, from 0 to 1: lightness grows or falls all the way.
    Step(f64),
    /// What others are compared with.
    Muted,
}

/// What is drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Marks {
    /// A line through the points; it is broken where one has no place.
    Line(Vec<(f64, f64)>),
    /// The same, thin and dashed: what is computed rather than measured.
    Dashed(Vec<(f64, f64)>),
    /// Points, with intervals where they have them.
    Points(Vec<Point>),
    /// What lies between two curves: x, low, high.
    Band(Vec<(f64, f64, f64)>),
    /// Bars from 0.
    Bars(Vec<Bar>),
}

/// A point.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical axis.
    pub y: f64,
    /// Its interval along the vertical axis.
    pub interval: Option<(f64, f64)>,
    /// What it says to who points at it, in at most two lines.
    pub text: Vec<String>,
}

/// A bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Where it begins on the horizontal axis.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// Its height.
    pub height: f64,
    /// What it says to who points at it.
    pub text: Vec<String>,
}

impl Chart {
    /// The numbers that decide how far the axes reach: along x, and along y.
    pub(crate) fn reach(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for series in &self.series {
            match &series.marks {
                Marks::Line(points) | Marks::Dashed(points) => {
                    for point in points {
                        x.push(point.0);
                        y.push(point.1);
                    }
                }
                Marks::Points(points) => {
                    for point in points {
                        x.push(point.x);
                        y.extend([point.y].into_iter().chain(point.interval.into_iter().flat_map(|(a, b)| [a, b])));
                    }
                }
                Marks::Band(points) => {
                    for &(at, low, high) in points {
                        x.push(at);
                        y.extend([low, high]);
                    }
                }
                Marks::Bars(bars) => {
                    for bar in bars {
                        x.extend([bar.from, bar.to]);
                        y.extend([0.0, bar.height]);
                    }
                }
            }
        }
        (x, y)
    }
}
