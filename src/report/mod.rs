//! The report: one HTML page about a bank that needs neither a network nor a server.
//!
//! ```text
//! counters, regions, uses, engines    figures    (what `mosaicbank stats --json` writes, too)
//! records -> thumbnails, outlines     pictures
//! figures -> bars and lines           charts
//! all of it -> one file               page, with report.html, report.css and report.js
//! ```
//!
//! Nothing here draws from the bank or counts a use, and whatever comes from a record (names,
//! prompts, verdicts) is text on the page and never markup.

mod charts;
mod figures;
mod page;
mod pictures;

pub use figures::{
    CategoryContents, CategoryFigures, Contents, EngineFacts, Figures, Moment, Reason,
};
pub use page::{Options, Report, build};
