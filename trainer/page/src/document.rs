//! A page: one HTML file with everything inside.
//!
//! It is made of text that users wrote (names of runs, places of data), so it forbids what no page of ours has: a policy in its head
//! lets the browser load nothing and run nothing, whatever stands below.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::chart::{Chart, Marks};
use crate::number::exact;
use crate::{draw, style};

/// What a browser may do with a page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Most rows of the numbers behind a chart.
const MOST_ROWS: usize = 2000;

/// A page.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// What it is about.
    pub title: String,
    /// What it is, in a sentence.
    pub lead: String,
    /// What stands on it, from the top.
    pub blocks: Vec<Block>,
}

/// A part of a page.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A heading.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// What a reader must know before anything else.
    Warnings(Vec<String>),
    /// A few numbers, in large.
    Facts(Vec<Fact>),
    /// Charts side by side.
    Charts(Vec<Chart>),
    /// A table.
    Table(Table),
}

/// A number to be seen first.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: String,
    /// What stands below it in small, such as its interval; empty for nothing.
    pub aside: String,
}

/// A table. Cells that are numbers stand under each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What it holds.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
    /// Whether it is opened by hand.
    pub folded: bool,
}

impl Page {
    /// The file.
    pub fn to_html(&self) -> String {
        let markup = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="referrer" content="no-referrer";
                    title { (self.title) }
                    style { (PreEscaped(style::CHART)) (PreEscaped(style::PAGE)) }
                }
                body class="themed" {
                    main {
                        h1 { (self.title) }
                        p class="lead" { (self.lead) }
                        @for block in &self.blocks { (block.markup()) }
                    }
                }
            }
        };
        markup.into_string()
    }
}

impl Block {
    fn markup(&self) -> Markup {
        match self {
            Block::Heading(text) => html! { h2 { (text) } },
            Block::Text(text) => html! { p { (text) } },
            Block::Warnings(warnings) if warnings.is_empty() => html! {},
            Block::Warnings(warnings) => html! { ul class="warnings" { @for one in warnings { li { (one) } } } },
            Block::Facts(facts) => html! {
                dl class="facts" {
                    @for fact in facts {
                        div {
                            dt { (fact.name) }
                            dd { (fact.value) }
                            @if !fact.aside.is_empty() { dd class="aside" { (fact.aside) } }
                        }
                    }
                }
            },
            Block::Charts(charts) => html! { div class="charts" { @for chart in charts { (figure(chart)) } } },
            Block::Table(table) if table.folded => html! {
                details { summary { (table.caption) " (" (table.rows.len()) " rows)" } (table.markup(false)) }
            },
            Block::Table(table) => table.markup(true),
        }
    }
}

fn figure(chart: &Chart) -> Markup {
    let numbers = numbers(chart);
    html! {
        figure {
            (draw::inline(chart))
            figcaption { (chart.note) }
            @if !numbers.rows.is_empty() { details { summary { "Numbers" } (numbers.markup(false)) } }
        }
    }
}

impl Table {
    fn markup(&self, captioned: bool) -> Markup {
        let numeric: Vec<bool> = (0..self.head.len()).map(|column| self.is_numeric(column)).collect();
        let class = |column: usize| if numeric.get(column) == Some(&true) { "number" } else { "text" };
        html! {
            div class=(if self.rows.len() > 40 { "scroll tall" } else { "scroll" }) {
                table {
                    @if captioned { caption { (self.caption) } }
                    thead { tr { @for (column, name) in self.head.iter().enumerate() { th scope="col" class=(class(column)) { (name) } } } }
                    tbody {
                        @for row in &self.rows {
                            tr { @for (column, cell) in row.iter().enumerate() { td class=(class(column)) { (cell) } } }
                        }
                    }
                }
            }
        }
    }

    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some() && cells.all(|cell| cell.parse::<f64>().is_ok())
    }
}

impl Chart {
    /// The chart in a file of its own, right in light and in dark.
    pub fn to_svg(&self) -> String {
        draw::file(self)
    }
}

/// What a chart is drawn from, for those who want the numbers or do not see the drawing.
fn numbers(chart: &Chart) -> Table {
    let mut rows = Vec::new();
    let mut intervals = false;
    for series in &chart.series {
        let mut add = |x: f64, y: f64, interval: Option<(f64, f64)>| {
            intervals |= interval.is_some();
            let (low, high) = interval.map_or_else(Default::default, |(low, high)| (exact(low), exact(high)));
            rows.push(vec![series.name.clone(), exact(x), exact(y), low, high]);
        };
        match &series.marks {
            Marks::Line(points) | Marks::Dashed(points) => points.iter().for_each(|&(x, y)| add(x, y, None)),
            Marks::Points(points) => points.iter().for_each(|point| add(point.x, point.y, point.interval)),
            // Its middle is a line of its own.
            Marks::Band(_) => {}
            Marks::Bars(bars) => bars.iter().for_each(|bar| add(bar.from.max(bar.to), bar.height, None)),
        }
    }
    rows.truncate(MOST_ROWS);
    let mut head = vec![String::new(), chart.x.label.clone(), chart.y.label.clone()];
    if intervals {
        head.extend(["low".to_owned(), "high".to_owned()]);
    } else {
        rows.iter_mut().for_each(|row| row.truncate(3));
    }
    Table { caption: "Numbers".to_owned(), head, rows, folded: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::{Axis, Colour, Hover, Series};

    fn page(text: &str) -> Page {
        let chart = Chart {
            name: "l0".to_owned(),
            title: text.to_owned(),
            note: text.to_owned(),
            x: Axis::linear("tokens"),
            y: Axis::linear("L0"),
            series: vec![Series::new(text, Colour::Kind(0), Marks::Line(vec![(1.0, 0.1 + 0.2)]))],
            hover: Hover::Along,
        };
        let table = Table {
            caption: text.to_owned(),
            head: vec![text.to_owned()],
            rows: vec![vec![text.to_owned()]],
            folded: true,
        };
        Page {
            title: text.to_owned(),
            lead: text.to_owned(),
            blocks: vec![
                Block::Heading(text.to_owned()),
                Block::Text(text.to_owned()),
                Block::Warnings(vec![text.to_owned()]),
                Block::Facts(vec![Fact { name: text.to_owned(), value: text.to_owned(), aside: text.to_owned() }]),
                Block::Charts(vec![chart]),
                Block::Table(table),
            ],
        }
    }

    #[test]
    fn a_page_forbids_the_browser_everything_and_escapes_what_it_is_given() {
        let html = page("<img src=x onerror=alert(1)>&'\"</style></title>").to_html();
        assert!(html.contains("Content-Security-Policy") && html.contains("default-src 'none'"));
        assert!(!html.contains("<img") && !html.contains("<script"), "{html}");
        assert_eq!((html.matches("</style>").count(), html.matches("style=").count()), (1, 0), "{html}");
        for link in ["href", "src=\"", "@import", "url(http"] {
            assert!(!html.contains(link), "{link}: {html}");
        }
    }

    #[test]
    fn the_numbers_of_a_chart_stand_beside_it_in_full() {
        assert!(page("a").to_html().contains("<td class=\"number\">0.30000000000000004</td>"));
    }

    #[test]
    fn nothing_is_said_of_no_warnings() {
        let page = Page { title: "a".to_owned(), lead: String::new(), blocks: vec![Block::Warnings(Vec::new())] };
        assert!(!page.to_html().contains("<ul"));
    }
}
