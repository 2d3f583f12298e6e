//! A chart as SVG.
//!
//! What points say to who points at them is part of the drawing and shown by the style sheet, in the lines of the legend, where nothing
//! covers it; so it needs no script, and a finger does as well as a mouse. The same text is the `<title>` of the mark.

use maud::{Markup, PreEscaped, html};

use crate::chart::{Bar, Chart, Colour, Hover, Marks, Point, Series};
use crate::number::compact;
use crate::scale::Scale;
use crate::style;

/// Size of a chart in its own units: as wide as a phone, so that its text is of a size that one reads there.
const WIDTH: f64 = 400.0;
/// Height of what lies between the axes.
const PLOT: f64 = 212.0;
/// A line of text.
const LINE: f64 = 15.0;
/// Width of a letter, on average and generously: nothing here knows the fonts of the reader.
const LETTER: f64 = 6.8;
/// Longest name of a series.
const LONGEST_NAME: usize = 44;
/// Most places along a chart that say their numbers.
const PLACES: usize = 120;

/// Where things are on a chart.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

/// A chart that stands alone in a file, with its style inside.
pub(crate) fn file(chart: &Chart) -> String {
    let drawing = drawing(chart, true).into_string();
    // Not even escaped may these stand in XML.
    let refused = |letter: char| (letter.is_control() && letter != '\n') || ['\u{fffe}', '\u{ffff}'].contains(&letter);
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", drawing.replace(refused, "\u{fffd}"))
}

/// A chart inside of a page, which has the style.
pub(crate) fn inline(chart: &Chart) -> Markup {
    drawing(chart, false)
}

fn drawing(chart: &Chart, alone: bool) -> Markup {
    let legend = legend(chart);
    let rows = legend.iter().map(|entry| entry.row + 1).max().unwrap_or(0);
    let frame = frame(chart, 22.0 + LINE * rows.max(1) as f64 + 20.0);
    let height = frame.bottom + 36.0;
    let (title_id, note_id, clip_id) =
        (format!("{}-title", chart.name), format!("{}-note", chart.name), format!("{}-clip", chart.name));
    let class = if alone { "chart themed" } else { "chart" };
    // On a page the margin is the page's.
    let margin = if alone { 14.0 } else { 0.0 };
    let (wide, high) = (WIDTH + 2.0 * margin, height + 2.0 * margin);
    html! {
        svg xmlns="http://www.w3.org/2000/svg" class=(class) viewBox=(format!("{} {} {wide} {high}", -margin, -margin))
            width=[alone.then_some(2.0 * wide)] height=[alone.then_some(2.0 * high)]
            role="img" aria-labelledby=(format!("{title_id} {note_id}")) {
            title id=(title_id) { (chart.title) }
            desc id=(note_id) { (chart.note) }
            @if alone {
                style { (PreEscaped(style::CHART)) }
                rect class="paper" x=(-margin) y=(-margin) width=(wide) height=(high) {}
            }
            clipPath id=(clip_id) {
                rect x=(at(frame.left)) y=(at(frame.top - 4.0)) width=(at(frame.right - frame.left))
                    height=(at(frame.bottom - frame.top + 8.0)) {}
            }
            text class="title" x="0" y="14" { (chart.title) }
            @for entry in &legend { (entry.markup()) }
            text x="0" y=(at(frame.top - 8.0)) { (chart.y.label) }
            (axes(chart, &frame))
            @if is_empty(chart, &frame) {
                text class="middle" x=(at((frame.left + frame.right) / 2.0)) y=(at((frame.top + frame.bottom) / 2.0)) {
                    "nothing to show yet"
                }
            }
            g clip-path=(format!("url(#{clip_id})")) {
                @for series in &chart.series { (lines(series, &frame)) }
            }
            (names_at_ends(chart, &frame))
            @if chart.hover == Hover::Along { (along(chart, &frame)) }
            @for series in &chart.series { (points(series, &frame)) }
        }
    }
}

fn frame(chart: &Chart, top: f64) -> Frame {
    let (x, y) = chart.reach();
    let bottom = top + PLOT;
    let vertical = Scale::over(&chart.y, y.into_iter(), (bottom, top));
    let longest = vertical
        .ticks(5)
        .iter()
        .filter_map(|tick| tick.label.as_ref())
        .map(|label| width_of(label))
        .fold(0.0, f64::max);
    let names = chart.series.iter().filter(|series| series.named_at_end).map(|series| width_of(&cut(&series.name)));
    let (left, right) =
        ((longest + 10.0).clamp(30.0, 110.0), WIDTH - (names.fold(0.0, f64::max) + 8.0).clamp(14.0, 150.0));
    let horizontal = Scale::over(&chart.x, x.into_iter(), (left, right));
    Frame { left, right, top, bottom, x: horizontal, y: vertical }
}

fn axes(chart: &Chart, frame: &Frame) -> Markup {
    let middle = (frame.left + frame.right) / 2.0;
    let inside = |place: f64, low: f64, high: f64| (low - 0.5..=high + 0.5).contains(&place);
    html! {
        @for tick in frame.y.ticks(5) {
            @if let Some(y) = frame.y.place(tick.at).filter(|y| inside(*y, frame.top, frame.bottom)) {
                @if let Some(label) = &tick.label {
                    path class="grid" d=(format!("M{:.1},{y:.1}H{:.1}", frame.left, frame.right)) {}
                    text class="end" x=(at(frame.left - 6.0)) y=(at(y + 3.8)) { (label) }
                } @else {
                    path class="axis" d=(format!("M{:.1},{y:.1}h3", frame.left)) {}
                }
            }
        }
        @for tick in spaced(frame) {
            @if let Some(x) = frame.x.place(tick.at).filter(|x| inside(*x, frame.left, frame.right)) {
                path class="axis" d=(format!("M{x:.1},{:.1}v{}", frame.bottom, if tick.label.is_some() { 5 } else { 3 })) {}
                @if let Some(label) = &tick.label {
                    text class="middle" x=(at(x)) y=(at(frame.bottom + 17.0)) { (label) }
                }
            }
        }
        path class="axis" d=(format!("M{:.1},{:.1}V{:.1}H{:.1}", frame.left, frame.top, frame.bottom, frame.right)) {}
        text class="middle" x=(at(middle)) y=(at(frame.bottom + 32.0)) { (chart.x.label) }
    }
}

/// The marks of the horizontal axis, of whose texts none touches the next.
fn spaced(frame: &Frame) -> Vec<crate::ticks::Tick> {
    let mut ticks = frame.x.ticks(((frame.right - frame.left) / 58.0) as usize);
    let mut free = f64::NEG_INFINITY;
    for tick in &mut ticks {
        let Some((label, x)) = tick.label.as_ref().zip(frame.x.place(tick.at)) else { continue };
        let half = width_of(label) / 2.0;
        if x - half < free || x + half > WIDTH {
            tick.label = None;
        } else {
            free = x + half + 6.0;
        }
    }
    ticks
}

/// What is drawn below points.
fn lines(series: &Series, frame: &Frame) -> Markup {
    let place = |x: f64, y: f64| Some((frame.x.place(x)?, frame.y.place(y)?));
    let marks = match &series.marks {
        Marks::Line(points) | Marks::Dashed(points) => {
            let class = if matches!(series.marks, Marks::Dashed(_)) { "line dashed" } else { "line" };
            html! { path class=(class) d=(path(points.iter().map(|&(x, y)| place(x, y)))) {} }
        }
        Marks::Band(points) => {
            let whole = points.iter().filter_map(|&(x, low, high)| Some((place(x, low)?, place(x, high)?)));
            let (below, mut above): (Vec<_>, Vec<_>) = whole.unzip();
            above.reverse();
            html! { path class="band" d=(path(below.into_iter().chain(above).map(Some))) {} }
        }
        Marks::Points(_) | Marks::Bars(_) => html! {},
    };
    html! { g class=(style::class(series.colour)) { (marks) } }
}

fn points(series: &Series, frame: &Frame) -> Markup {
    html! {
        g class=(style::class(series.colour)) {
            @match &series.marks {
                Marks::Points(points) => { @for one in points { (point(series.colour, one, frame)) } }
                Marks::Bars(bars) => { @for one in bars { (bar(one, frame)) } }
                _ => {}
            }
        }
    }
}

fn point(colour: Colour, point: &Point, frame: &Frame) -> Markup {
    let visible = frame.x.holds(point.x) && frame.y.holds(point.y);
    let place = frame.x.place(point.x).zip(frame.y.place(point.y)).filter(|_| visible);
    let Some((x, y)) = place else { return html! {} };
    let interval = point.interval.and_then(|(low, high)| {
        let within = |end: f64| frame.y.place(end).map(|y| y.clamp(frame.top, frame.bottom));
        Some(format!("M{x:.1},{:.1}V{:.1}", within(low)?, within(high)?))
    });
    html! {
        g class="asked" {
            title { (point.text.join("\n")) }
            @if let Some(interval) = interval { path class="interval" d=(interval) {} }
            path class="mark" d=(style::shape(colour, x, y)) {}
            circle class="hit" cx=(at(x)) cy=(at(y)) r="8" {}
            (readout(&point.text, frame))
        }
    }
}

fn bar(bar: &Bar, frame: &Frame) -> Markup {
    let ends =
        frame.x.place(bar.from).zip(frame.x.place(bar.to)).zip(frame.y.place(0.0).zip(frame.y.place(bar.height)));
    let Some(((from, to), (foot, head))) = ends else { return html! {} };
    let (left, width) = (from.min(to) + 0.5, ((from - to).abs() - 1.0).max(0.5));
    html! {
        g class="asked" {
            title { (bar.text.join("\n")) }
            rect class="bar" x=(at(left)) y=(at(head.min(foot))) width=(at(width)) height=(at((foot - head).abs())) {}
            rect class="hit" x=(at(left)) y=(at(frame.top)) width=(at(width)) height=(at(frame.bottom - frame.top)) {}
            (readout(&bar.text, frame))
        }
    }
}

/// What all lines are at each of so many places.
fn along(chart: &Chart, frame: &Frame) -> Markup {
    let curves: Vec<(&Series, Vec<(f64, f64)>)> = chart
        .series
        .iter()
        .filter_map(|series| {
            let points: Vec<(f64, f64)> = match &series.marks {
                Marks::Line(points) | Marks::Dashed(points) => points.clone(),
                Marks::Points(points) => points.iter().map(|point| (point.x, point.y)).collect(),
                Marks::Band(_) | Marks::Bars(_) => return None,
            };
            Some((series, points.into_iter().filter(|(x, y)| frame.x.place(*x).is_some() && !y.is_nan()).collect()))
        })
        .collect();
    let Some((_, longest)) = curves.iter().max_by_key(|(_, points)| points.len()) else { return html! {} };
    let every = longest.len().div_ceil(PLACES).max(1);
    // The last place is the one that is asked for most.
    let mut places: Vec<f64> = longest.iter().rev().step_by(every).map(|point| point.0).collect();
    places.reverse();
    let at_px: Vec<f64> = places.iter().filter_map(|x| frame.x.place(*x)).collect();
    html! {
        @for (index, (x, px)) in places.iter().zip(&at_px).enumerate() {
            @let left = if index == 0 { frame.left } else { (at_px[index - 1] + px) / 2.0 };
            @let right = at_px.get(index + 1).map_or(frame.right, |next| (px + next) / 2.0);
            @let text = [heard(chart, *x), said(&curves, *x)];
            g class="asked" {
                title { (text.join("\n")) }
                rect class="hit" x=(at(left)) y=(at(frame.top)) width=(at((right - left).max(0.0))) height=(at(frame.bottom - frame.top)) {}
                path class="rule" d=(format!("M{px:.1},{:.1}V{:.1}", frame.top, frame.bottom)) {}
                (readout(&text, frame))
            }
        }
    }
}

fn heard(chart: &Chart, x: f64) -> String {
    format!("{}: {}", chart.x.label, compact(x))
}

/// The points of each curve nearest to a place.
fn said(curves: &[(&Series, Vec<(f64, f64)>)], x: f64) -> String {
    let parts = curves.iter().filter_map(|(series, points)| {
        let behind = points.partition_point(|point| point.0 < x);
        let near = points[behind.saturating_sub(1)..].iter().take(2);
        let nearest = near.min_by(|a, b| (a.0 - x).abs().total_cmp(&(b.0 - x).abs()))?;
        Some(format!("{} {}", cut(&series.name), compact(nearest.1)))
    });
    parts.collect::<Vec<_>>().join(" · ")
}

/// Text in the place of the legend, for as long as something is pointed at.
fn readout(text: &[String], frame: &Frame) -> Markup {
    html! {
        g class="readout" {
            rect class="paper" x="0" y="19" width=(WIDTH) height=(at(frame.top - 22.0)) {}
            @for (index, line) in text.iter().take(2).enumerate() {
                text x="0" y=(at(31.0 + LINE * index as f64)) { (line) }
            }
        }
    }
}

/// A name with its sample.
struct Entry<'a> {
    series: &'a Series,
    name: String,
    x: f64,
    row: usize,
}

impl Entry<'_> {
    fn markup(&self) -> Markup {
        let (x, y) = (self.x, 31.0 + LINE * self.row as f64);
        html! {
            g class=(style::class(self.series.colour)) {
                @match &self.series.marks {
                    Marks::Line(_) => { path class="line" d=(format!("M{x:.1},{:.1}h18", y - 3.8)) {} }
                    Marks::Dashed(_) => { path class="line dashed" d=(format!("M{x:.1},{:.1}h18", y - 3.8)) {} }
                    Marks::Points(_) => { path class="mark" d=(style::shape(self.series.colour, x + 9.0, y - 3.8)) {} }
                    Marks::Band(_) => { rect class="band" x=(at(x)) y=(at(y - 9.0)) width="18" height="10" {} }
                    Marks::Bars(_) => { rect class="bar" x=(at(x + 4.0)) y=(at(y - 9.0)) width="10" height="10" {} }
                }
                text x=(at(x + 23.0)) y=(at(y)) { (self.name) }
            }
        }
    }
}

fn legend(chart: &Chart) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    let (mut x, mut row) = (0.0, 0);
    for series in chart.series.iter().filter(|series| !series.name.is_empty() && !series.named_at_end) {
        let name = cut(&series.name);
        let width = 23.0 + width_of(&name) + 12.0;
        if x > 0.0 && x + width > WIDTH + 12.0 {
            (x, row) = (0.0, row + 1);
        }
        entries.push(Entry { series, name, x, row });
        x += width;
    }
    entries
}

/// A name at the right end of what it names.
struct EndName<'a> {
    series: &'a Series,
    name: String,
    x: f64,
    y: f64,
}

/// Names at the right ends of lines, far enough from each other to be read.
fn names_at_ends(chart: &Chart, frame: &Frame) -> Markup {
    let mut names: Vec<EndName<'_>> = Vec::new();
    for series in chart.series.iter().filter(|series| series.named_at_end) {
        let end = match &series.marks {
            Marks::Line(points) | Marks::Dashed(points) => points.last().copied(),
            Marks::Points(points) => points.last().map(|point| (point.x, point.y)),
            Marks::Band(_) | Marks::Bars(_) => None,
        };
        let place = end.and_then(|(x, y)| Some((frame.x.place(x)?, frame.y.place(y)?)));
        names.extend(place.map(|(x, y)| EndName {
            series,
            name: cut(&series.name),
            x: x.clamp(frame.left, frame.right) + 5.0,
            y: y.clamp(frame.top, frame.bottom),
        }));
    }
    names.sort_by(|a, b| a.y.total_cmp(&b.y));
    let least = LINE - 3.0;
    let beside = |a: &EndName<'_>, b: &EndName<'_>| a.x < b.x + width_of(&b.name) && b.x < a.x + width_of(&a.name);
    for index in 1..names.len() {
        let (above, below) = names.split_at_mut(index);
        let floor = above.iter().filter(|other| beside(other, &below[0])).map(|other| other.y + least);
        below[0].y = floor.fold(below[0].y, f64::max);
    }
    // Those that were pushed below the axis push the others up.
    for index in (0..names.len()).rev() {
        let (above, below) = names.split_at_mut(index + 1);
        let ceiling = below.iter().filter(|other| beside(other, &above[index])).map(|other| other.y - least);
        above[index].y = ceiling.fold(above[index].y.min(frame.bottom + 4.0), f64::min);
    }
    html! {
        @for EndName { series, name, x, y } in names {
            g class=(style::class(series.colour)) { text class="named" x=(at(x)) y=(at(y + 3.8)) { (name) } }
        }
    }
}

fn is_empty(chart: &Chart, frame: &Frame) -> bool {
    let (x, y) = chart.reach();
    !x.into_iter().any(|x| frame.x.holds(x)) || !y.into_iter().any(|y| frame.y.holds(y))
}

/// A path through places, broken where there is none. A place alone is a dot: strokes have round ends.
fn path(places: impl Iterator<Item = Option<(f64, f64)>>) -> String {
    let mut path = String::new();
    let mut drawing = false;
    for place in places {
        let Some((x, y)) = place else {
            drawing = false;
            continue;
        };
        let command = if drawing { format!("L{x:.1},{y:.1}") } else { format!("M{x:.1},{y:.1}h0") };
        path.push_str(&command);
        drawing = true;
    }
    path
}

fn at(place: f64) -> String {
    format!("{place:.1}")
}

fn width_of(text: &str) -> f64 {
    // Raised digits are narrow.
    text.chars().map(|letter| if "⁰¹²³⁴⁵⁶⁷⁸⁹⁻.,:· ".contains(letter) { 0.6 * LETTER } else { LETTER }).sum()
}

fn cut(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chart::Axis;

    fn chart(series: Vec<Series>) -> Chart {
        Chart {
            name: "loss".to_owned(),
            title: "Loss".to_owned(),
            note: "Falls.".to_owned(),
            x: Axis::linear("tokens"),
            y: Axis::logarithmic("loss"),
            series,
            hover: Hover::Along,
        }
    }

    fn line(points: &[(f64, f64)]) -> Series {
        Series::new("training", Colour::Kind(0), Marks::Line(points.to_vec()))
    }

    /// The `d` of the line.
    fn drawn(svg: &str) -> &str {
        let (_, behind) = svg.split_once("<path class=\"line\" d=\"M0.0,27.2h18\"").expect("the legend");
        behind.split_once("class=\"line\" d=\"").and_then(|(_, path)| path.split_once('"')).expect("a line").0
    }

    #[test]
    fn a_line_is_broken_where_a_number_has_no_place() {
        let svg =
            file(&chart(vec![line(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 10.0), (3.0, -1.0), (4.0, 5.0), (5.0, 5.0)])]));
        assert_eq!(drawn(&svg).matches('M').count(), 3, "{svg}");
        assert_eq!(drawn(&svg).matches('L').count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn nothing_and_one_point_are_charts_too() {
        for series in [vec![], vec![line(&[])], vec![line(&[(1.0, f64::NAN)])]] {
            assert!(file(&chart(series)).contains("nothing to show yet"));
        }
        let svg = file(&chart(vec![line(&[(1.0, 2.0)])]));
        assert!(!svg.contains("nothing to show yet") && drawn(&svg).ends_with("h0"), "{svg}");
    }

    #[test]
    fn text_is_escaped_wherever_it_stands() {
        let evil = "<script>&\"'</script>\u{1}";
        let points = vec![Point { x: 1.0, y: 1.0, interval: Some((0.5, 2.0)), text: vec![evil.to_owned()] }];
        let mut chart = chart(vec![
            Series::new(evil, Colour::Kind(1), Marks::Points(points)),
            Series::new(evil, Colour::Muted, Marks::Line(vec![(1.0, 1.0)])).named_at_end(),
            Series::new(
                evil,
                Colour::Muted,
                Marks::Bars(vec![Bar { from: 1.0, to: 2.0, height: 2.0, text: vec![evil.to_owned()] }]),
            ),
        ]);
        (chart.title, chart.note) = (evil.to_owned(), evil.to_owned());
        (chart.x.label, chart.y.label) = (evil.to_owned(), evil.to_owned());
        let svg = file(&chart);
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;&amp;"), "{svg}");
        assert!(!svg.contains('\u{1}'), "XML takes no control characters");
    }

    #[test]
    fn a_point_says_its_configuration() {
        let text = vec!["F 512".to_owned(), "loss 3".to_owned()];
        let points = Marks::Points(vec![Point { x: 1.0, y: 3.0, interval: None, text }]);
        let svg = file(&chart(vec![Series::new("runs", Colour::Step(0.5), points)]));
        assert!(svg.contains("<title>F 512\nloss 3</title>") && svg.contains("class=\"step-4\""), "{svg}");
    }

    #[test]
    fn any_place_says_all_lines() {
        let curve = |y: f64| (0..1000).map(|x| (f64::from(x), y)).collect::<Vec<_>>();
        let held_out = Series::new("held-out", Colour::Kind(1), Marks::Line(vec![(0.0, 4.0), (999.0, 5.0)]));
        let svg = file(&chart(vec![line(&curve(3.0)), held_out]));
        assert!(svg.contains("<title>tokens: 999\ntraining 3 · held-out 5</title>"), "{svg}");
        assert!((100..=PLACES).contains(&svg.matches("class=\"rule\"").count()));
    }

    #[test]
    fn names_at_ends_do_not_cover_each_other() {
        let series = |name: &str, y: f64| {
            Series::new(name, Colour::Muted, Marks::Line(vec![(0.0, 1.0), (1.0, y)])).named_at_end()
        };
        let many: Vec<Series> = (0..12).map(|at| series(&format!("C{at}"), 10.0 + f64::from(at) * 1e-3)).collect();
        let svg = file(&chart(many));
        let mut places: Vec<f64> = svg
            .split("class=\"named\"")
            .skip(1)
            .map(|text| {
                text.split("y=\"")
                    .nth(1)
                    .and_then(|y| y.split_once('"'))
                    .and_then(|(y, _)| y.parse().ok())
                    .expect("a place")
            })
            .collect();
        places.sort_by(f64::total_cmp);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] > 11.9), "{places:?}");
    }

    proptest! {
        #[test]
        fn no_number_breaks_a_chart(points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..40), logarithmic: bool) {
            let mut chart = chart(vec![line(&points)]);
            chart.x.logarithmic = logarithmic;
            let svg = file(&chart);
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf,"), "{}", svg);
        }
    }
}
