//! The colours of every chart, as they look on white paper. A page's style sheet finds them by their
//! value and replaces them in the dark.

use plotters::style::RGBColor;

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
