//! Charts as SVG. The page's style sheet sets their colours, for light and dark. Each chart has a
//! text alternative.

use std::fmt::Write as _;

use super::figures::{EngineFacts, Figures};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 210.0;
/// Room for the numbers of the y axis, and for the words of the x axis.
const LEFT: f64 = 48.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 10.0;
/// LVIS's bands, rarest first; others have no band.
pub(super) const BANDS: [&str; 3] = ["r", "c", "f"];

/// A round number that is not below `n`, so that the axis has plain numbers.
fn round_up(n: f64) -> f64 {
    if n <= 0.0 {
        return 1.0;
    }
    let unit = 10f64.powf(n.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|k| k * unit)
        .find(|round| *round >= n * (1.0 - 1e-9))
        .unwrap_or(10.0 * unit)
}

/// A number with as few digits as the axis needs.
fn short(n: f64) -> String {
    if n >= 10_000.0 {
        format!("{}k", (n / 1000.0 * 10.0).round() / 10.0)
    } else {
        format!("{}", (n * 100.0).round() / 100.0)
    }
}

/// `text`, escaped for markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// An SVG with a y axis up to `top` and a label below each end of the x axis.
fn frame(label: &str, top: f64, x: [&str; 2], body: &str) -> String {
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escaped(label)
    );
    for i in 0..=4u8 {
        let value = top * f64::from(i) / 4.0;
        let y = y_of(value, top);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{WIDTH}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(value)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{y}\">{}</text>\
         <text x=\"{WIDTH}\" y=\"{y}\" text-anchor=\"end\">{}</text>{body}</svg>",
        escaped(x[0]),
        escaped(x[1]),
        y = HEIGHT - 6.0
    );
    svg
}

fn y_of(value: f64, top: f64) -> f64 {
    TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value / top).clamp(0.0, 1.0))
}

/// Mosaics of every category, most first, unused ones in full colour, with the target as a line.
pub(super) fn stock(figures: &Figures) -> String {
    let mut columns: Vec<(u64, u64, usize)> = figures
        .categories
        .iter()
        .map(|c| {
            let unused = c.contents.map_or(0, |k| k.unused_mosaics);
            let band = c.frequency.as_deref().unwrap_or_default();
            let band = BANDS.iter().position(|b| *b == band);
            (c.mosaics, unused, band.unwrap_or(BANDS.len()))
        })
        .collect();
    columns.sort_by(|a, b| b.cmp(a));
    let most = columns.iter().map(|c| c.0).max().unwrap_or_default();
    let target = figures.target.unwrap_or_default();
    let top = round_up(most.max(target) as f64);
    let step = (WIDTH - LEFT) / columns.len().max(1) as f64;
    // Gaps where there is room for them.
    let gap = if step > 4.0 { 1.0 } else { 0.0 };
    // One path per band and kind of bar, not an element per category.
    let mut paths = vec![[String::new(), String::new()]; BANDS.len() + 1];
    for (i, &(all, unused, band)) in columns.iter().enumerate() {
        let x = LEFT + step * i as f64;
        let Some(paths) = paths.get_mut(band) else {
            continue;
        };
        for (path, value) in paths.iter_mut().zip([all, unused]) {
            if value > 0 {
                let y = y_of(value as f64, top);
                let _ = write!(
                    path,
                    "M{x:.2} {:.1}V{y:.1}h{:.2}V{:.1}z",
                    HEIGHT - BOTTOM,
                    step - gap,
                    HEIGHT - BOTTOM
                );
            }
        }
    }
    let mut body = String::new();
    for (band, [all, unused]) in BANDS.iter().chain([&"none"]).zip(&paths) {
        for (class, d) in [("used", all), ("unused", unused)] {
            if !d.is_empty() {
                let _ = write!(body, "<path class=\"{class} band-{band}\" d=\"{d}\"/>");
            }
        }
    }
    if target > 0 {
        let y = y_of(target as f64, top);
        let _ = write!(
            body,
            "<path class=\"target\" d=\"M{LEFT} {y:.1}H{WIDTH}\"/>\
             <text class=\"target-text\" x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">target {target}</text>",
            y - 4.0
        );
    }
    let empty = columns.iter().filter(|c| c.0 == 0).count();
    let label = format!(
        "Mosaics of each of {} categories, most first: {most} at most, {empty} categories with \
         none, target {}",
        columns.len(),
        figures.target.map_or("not known".into(), |t| t.to_string())
    );
    let ends = ["most mosaics", "fewest"];
    frame(&label, top, ends, &body)
}

/// Which rate of an engine is drawn.
#[derive(Clone, Copy)]
pub(super) enum Rate {
    /// Instances per minute.
    Instances,
    /// Percent of the regions that gave no instance.
    Rejected,
}

/// (middle, rate) between each two moments; none where nothing was made.
fn rates(engine: &EngineFacts, rate: Rate) -> Vec<(f64, f64)> {
    engine
        .history
        .windows(2)
        .filter_map(|pair| {
            let [a, b] = pair else { return None };
            let since = |f: fn(&super::Moment) -> u64| f(b).saturating_sub(f(a)) as f64;
            let minutes = (b.time - a.time) / 60.0;
            let value = match rate {
                Rate::Instances if minutes > 0.0 => since(|m| m.instances) / minutes,
                Rate::Rejected if since(|m| m.regions) > 0.0 => {
                    100.0 * since(|m| m.rejected) / since(|m| m.regions)
                }
                _ => return None,
            };
            Some((f64::midpoint(a.time, b.time), value))
        })
        .collect()
}

/// Time before the report, in short form.
fn before(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..=119 => format!("{s} s before"),
        120..=7199 => format!("{} min before", s / 60),
        7200..=172_799 => format!("{} h before", s / 3600),
        _ => format!("{} days before", s / 86_400),
    }
}

/// A rate over time, a line per engine; `None` where no engine has a history. `now` is the time
/// of the report, seconds since 1970.
pub(super) fn rate(engines: &[EngineFacts], rate_of: Rate, now: f64) -> Option<String> {
    let lines: Vec<(usize, Vec<(f64, f64)>)> = engines
        .iter()
        .enumerate()
        .map(|(i, e)| (i, rates(e, rate_of)))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let all = || lines.iter().flat_map(|(_, line)| line);
    let from = all().map(|p| p.0).min_by(f64::total_cmp)?;
    let to = all().map(|p| p.0).max_by(f64::total_cmp)?;
    let most = all().map(|p| p.1).fold(0.0, f64::max);
    let (what, top) = match rate_of {
        Rate::Instances => ("Instances per minute", round_up(most)),
        Rate::Rejected => ("Percent of regions that were rejected", 100.0),
    };
    let span = (to - from).max(1e-9);
    let mut body = String::new();
    for (i, line) in &lines {
        let mut d = String::new();
        for (n, (time, value)) in line.iter().enumerate() {
            let x = LEFT + (WIDTH - LEFT) * (time - from) / span;
            let command = if n == 0 { 'M' } else { 'L' };
            let _ = write!(d, "{command}{x:.1} {:.1}", y_of(*value, top));
        }
        // A single point is a line without length; its round ends show it.
        if line.len() == 1 {
            d.push_str("h0");
        }
        let _ = write!(body, "<path class=\"line line-{}\" d=\"{d}\"/>", i % 6);
    }
    let label = format!(
        "{what} of {} engine(s): at most {}",
        lines.len(),
        short(most)
    );
    let ends = [before(now - from), before(now - to)];
    Some(frame(&label, top, [&ends[0], &ends[1]], &body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Moment;

    #[test]
    fn axes_end_at_round_numbers_that_hold_everything() {
        for (n, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (3.0, 5.0),
            (21.0, 25.0),
            (1000.0, 1000.0),
        ] {
            assert!((round_up(n) - top).abs() < 1e-9, "{n}: {}", round_up(n));
        }
    }

    fn engine(history: Vec<Moment>) -> EngineFacts {
        EngineFacts {
            id: "a".into(),
            command: "engine".into(),
            state: "working".into(),
            model: String::new(),
            device: String::new(),
            started: 0.0,
            time: 0.0,
            target: 0,
            mosaics: 0,
            instances: 0,
            regions: 0,
            rejected: 0,
            dropped: 0,
            mosaics_per_second: 0.0,
            instances_per_second: 0.0,
            history,
        }
    }

    #[test]
    fn rates_are_differences_and_silence_is_no_chart() {
        let moment = |time, instances, regions, rejected| Moment {
            time,
            mosaics: 0,
            instances,
            regions,
            rejected,
        };
        let one = engine(vec![
            moment(0.0, 0, 0, 0),
            moment(60.0, 30, 40, 10),
            moment(90.0, 30, 40, 10),
        ]);
        assert_eq!(rates(&one, Rate::Instances), [(30.0, 30.0), (75.0, 0.0)]);
        assert_eq!(rates(&one, Rate::Rejected), [(30.0, 25.0)]);
        let svg = rate(&[one], Rate::Instances, 100.0).unwrap();
        assert!(
            svg.contains("at most 30") && svg.contains("70 s before"),
            "{svg}"
        );
        assert!(rate(&[engine(Vec::new())], Rate::Instances, 1.0).is_none());
        assert!(rate(&[], Rate::Rejected, 1.0).is_none());
    }
}
