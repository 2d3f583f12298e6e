//! Charts as SVG, and pages of them in one HTML file that a browser opens from a folder or a bucket without a network.
//!
//! A page has no script, loads nothing, and says so to the browser (`document.rs`). Colours are variables of a style sheet, so the same
//! file is right in light, in dark and on paper; a chart is as wide as a phone and stands beside others where there is room.
//!
//! **Why no plotting crate.** Of those that are kept up, plotters 0.3.7 writes colours into each element, where no style sheet reaches
//! them, has no text for hovering, and marks nothing on a logarithmic axis from 2 to 7; kuva 0.6 has hovering, but 150,000 lines, and
//! axes and text in fixed colours; poloto 19 and splot 0.11 take style sheets and have neither logarithmic axes nor intervals. What
//! must not be got wrong is the escaping of text, and that is a library's: maud.

mod chart;
mod document;
mod draw;
mod number;
mod scale;
mod style;
mod thin;
mod ticks;

pub use chart::{Axis, Bar, Chart, Colour, Hover, Marks, Point, Series};
pub use document::{Block, Fact, Page, Table};
pub use number::{compact, exact, scientific};
pub use thin::Thinned;
