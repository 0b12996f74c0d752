//! The report: one HTML page about a bank that needs neither a network nor a server.
//!
//! ```text
//! counters, regions, uses, engines    figures    (what `mosaicbank stats --json` writes, too)
//! pixels, masks -> thumbnails, paths  pictures
//! records -> what the script reads    records
//! figures -> bars and lines           charts
//! figures, records -> text            render, with report.html, report.css and report.js
//! a bank -> the file                  page
//! ```
//!
//! Nothing here draws from the bank or counts a use, and whatever comes from a record (names,
//! prompts, verdicts) is text on the page and never markup.

mod charts;
mod figures;
mod page;
mod pictures;
mod records;
mod render;

pub use figures::{
    CategoryContents, CategoryFigures, Contents, EngineFacts, Figures, Moment, Reason,
};
pub use page::{Options, Report, build};
