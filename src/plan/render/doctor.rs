//! What `runbook doctor` found, for people: a line a check, what to do below it.

use crate::plan::doctor::{Finding, Group, Verdict};
use crate::text::{Ink, Line, Style, count, paragraph};
use unicode_width::UnicodeWidthStr;

/// The widest verdict.
const VERDICT: usize = 13;
/// Where advice begins.
const ADVICE: usize = 17;

/// All groups; `quiet`: only those with something that is not as it must be.
pub fn groups(groups: &[Group], style: Style, quiet: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for group in groups {
        let shown: Vec<&Finding> = group.checks.iter().filter(|check| !quiet || check.verdict != Verdict::Ok).collect();
        if shown.is_empty() {
            continue;
        }
        lines.push(Line::new().then(Ink::Strong, &group.title));
        let widest = shown.iter().map(|check| check.subject.width()).filter(|width| *width <= 20).max().unwrap_or(0);
        lines.extend(shown.into_iter().flat_map(|check| finding(check, widest, style)));
        lines.push(Line::new());
    }
    lines
}

/// How many of each kind.
pub fn summary(groups: &[Group]) -> Line {
    let all = || groups.iter().flat_map(|group| &group.checks);
    let of = |verdict: Verdict| all().filter(|check| check.verdict == verdict).count();
    let parts = [
        (Verdict::Problem, count(of(Verdict::Problem) as u64, "problem")),
        (Verdict::Warning, count(of(Verdict::Warning) as u64, "warning")),
        (Verdict::NotCheckable, format!("{} not checkable before a run", of(Verdict::NotCheckable))),
        (Verdict::Ok, format!("{} ok", of(Verdict::Ok))),
    ];
    let mut line = Line::plain(format!("{}: ", count(all().count() as u64, "check")));
    for (position, (verdict, text)) in parts.iter().filter(|(verdict, _)| of(*verdict) > 0).enumerate() {
        line.push(Ink::Plain, if position > 0 { ", " } else { "" });
        line.push(ink(*verdict), text);
    }
    line
}

fn finding(check: &Finding, widest: usize, style: Style) -> Vec<Line> {
    let subject = format!("{:<1$}", check.subject, widest);
    let heading = Line::new().then(Ink::Plain, "  ").then(ink(check.verdict), format!("{:<VERDICT$}", word(check.verdict)));
    let mut heading = heading.then(Ink::Plain, format!("  {subject}  "));
    let column = heading.width();
    let mut text = paragraph(Ink::Plain, &check.text, style, column).into_iter();
    heading.append(text.next().unwrap_or_default());
    let mut lines = vec![heading];
    lines.extend(text.map(|line| line.indented(column)));
    for advice in &check.advice {
        lines.extend(paragraph(Ink::Dim, advice, style, ADVICE).into_iter().map(|line| line.indented(ADVICE)));
    }
    lines
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Problem => "PROBLEM",
        Verdict::NotCheckable => "not checkable",
    }
}

fn ink(verdict: Verdict) -> Ink {
    match verdict {
        Verdict::Ok => Ink::Good,
        Verdict::Warning => Ink::Warn,
        Verdict::Problem => Ink::Bad,
        Verdict::NotCheckable => Ink::Accent,
    }
}
