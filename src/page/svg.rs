//! What every chart is drawn with: a picture as an SVG text, and its colours as they look on white
//! paper. A page's style sheet finds them by their value and replaces them in the dark.

use plotters::coord::Shift;
use plotters::prelude::*;

/// Where a chart is drawn.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What drawing gives. Drawing into a string has no way to fail but a mistake in the chart.
pub(crate) type Drawn<'a> = Result<(), Box<dyn std::error::Error + 'a>>;

/// Letters and axes.
pub(crate) const INK: RGBColor = RGBColor(0x3A, 0x41, 0x4B);
/// Lines behind the data.
pub(crate) const GRID: RGBColor = RGBColor(0xE4, 0xE7, 0xEB);
/// What is told apart by colour: blue, teal, ochre, crimson, violet, green.
pub(crate) const SERIES: [RGBColor; 6] = [
    RGBColor(0x33, 0x55, 0xC4),
    RGBColor(0x0B, 0x7A, 0x75),
    RGBColor(0xA8, 0x70, 0x1A),
    RGBColor(0xC0, 0x2D, 0x55),
    RGBColor(0x6B, 0x4F, 0xA0),
    RGBColor(0x5A, 0x7D, 0x2A),
];

/// An SVG text of `size` pixels with what `draw` puts there.
///
/// # Panics
/// When `draw` fails.
pub(crate) fn picture(
    size: (u32, u32),
    draw: impl for<'a> FnOnce(&Area<'a>) -> Drawn<'a>,
) -> String {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&root).expect("a chart of finite points");
        root.present().expect("a string takes everything");
    }
    text
}

/// A [`picture`] for a page, which gives it its size; `label` says what it shows.
pub(crate) fn inline(picture: &str, label: &str) -> String {
    // What stands before the viewBox would fix the size.
    let inside = picture.find("viewBox").map_or("", |at| &picture[at..]);
    format!("<svg role=\"img\" aria-label=\"{label}\" {inside}")
}
