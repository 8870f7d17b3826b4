//! A record against its columns: either a row for the database, or what is wrong with it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;

use super::fields::{Column, ColumnType};
use super::records::Record;
use super::value::{self, Bound, Number};

/// What one column's values must be: what the playbook says and what the table can hold.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) kind: ColumnType,
    pub(super) required: bool,
    pub(super) pattern: Option<(String, regex::Regex)>,
    pub(super) low: Option<Bound>,
    pub(super) high: Option<Bound>,
    /// The only values, from the playbook or from the column's own type.
    pub(super) values: Vec<HashSet<String>>,
    /// `varchar(n)`
    pub(super) most_characters: Option<usize>,
    /// `numeric(p, s)`
    pub(super) digits: Option<(i32, i32)>,
    /// The range of the column's integer type.
    pub(super) range: Option<(i64, i64)>,
}

impl Rule {
    pub(super) fn new(name: &str, column: &Column) -> Self {
        let kind = column.kind.value;
        let bound = |bound: &Option<crate::source::Spanned<serde_json::Value>>| {
            bound.as_ref().and_then(|written| Bound::read(kind, &written.value).ok())
        };
        let normal = |text: &String| value::normal(kind, text).map_or_else(|_| text.clone(), Cow::into_owned);
        let listed: HashSet<String> = column.values.iter().map(normal).collect();
        Self {
            name: name.to_owned(),
            kind,
            required: column.required,
            pattern: column.pattern.as_ref().map(|pattern| (pattern.text.clone(), pattern.compiled.clone())),
            low: bound(&column.min),
            high: bound(&column.max),
            values: if listed.is_empty() { Vec::new() } else { vec![listed] },
            most_characters: None,
            digits: None,
            range: None,
        }
    }

    /// The text for the database, or why there can be none.
    fn accept<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, Cow<'static, str>> {
        if text.contains('\0') {
            return Err("holds a NUL character".into());
        }
        let text = value::normal(self.kind, text)?;
        if let Some((written, pattern)) = &self.pattern
            && !pattern.is_match(&text)
        {
            return Err(format!("does not match {written}").into());
        }
        if !self.values.iter().all(|values| values.contains(text.as_ref())) {
            return Err("not one of the allowed values".into());
        }
        if let Some(bound) = &self.low
            && bound.compare(&text).is_none_or(Ordering::is_lt)
        {
            return Err(format!("less than {bound}").into());
        }
        if let Some(bound) = &self.high
            && bound.compare(&text).is_none_or(Ordering::is_gt)
        {
            return Err(format!("more than {bound}").into());
        }
        self.fits(&text)?;
        Ok(text)
    }

    /// Whether the table's column can hold it unchanged.
    fn fits(&self, text: &str) -> Result<(), Cow<'static, str>> {
        if let Some(most) = self.most_characters
            && text.len() > most
            && text.chars().count() > most
        {
            return Err(format!("longer than the {most} characters of the column").into());
        }
        if let Some((precision, scale)) = self.digits
            && !Number::read(text).is_some_and(|number| number.fits(precision, scale))
        {
            return Err(format!("does not fit numeric({precision},{scale}) of the column").into());
        }
        if let Some((lowest, highest)) = self.range
            && !text.parse::<i64>().is_ok_and(|number| (lowest..=highest).contains(&number))
        {
            return Err("out of range for the column".into());
        }
        Ok(())
    }
}

/// How rows are written for the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowFormat {
    /// `COPY`'s text format.
    Copy,
    /// An array of arrays, for `json_each`.
    Json,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) column: String,
    pub(super) reason: String,
}

/// Judges records and writes rows, and counts what is in the good ones.
#[derive(Debug)]
pub(super) struct Checker {
    pub(super) rules: Vec<Rule>,
    /// Text that stands for NULL.
    null: Option<String>,
    format: RowFormat,
    /// What a row begins with instead of its line, as COPY wants it.
    run: Option<Vec<u8>>,
    /// Accepted records that have a value, by column.
    pub(super) present: Vec<u64>,
    /// Texts that a spreadsheet would run, by column.
    pub(super) formulas: Vec<u64>,
    /// Of the record at hand.
    has: Vec<(bool, bool)>,
}

impl Checker {
    pub(super) fn new(rules: Vec<Rule>, null: Option<String>, format: RowFormat, run: Option<String>) -> Self {
        let count = rules.len();
        let run = run.map(|run| {
            let mut escaped = Vec::new();
            escape(run.as_bytes(), &mut escaped);
            escaped
        });
        Self { rules, null, format, run, present: vec![0; count], formulas: vec![0; count], has: vec![(false, false); count] }
    }

    /// Adds the record's row to `rows`, or its problems to `problems`.
    pub(super) fn check(&mut self, record: &Record, rows: &mut Vec<u8>, problems: &mut Vec<Problem>) {
        if let Some(broken) = &record.broken {
            problems.push(Problem { column: String::new(), reason: broken.to_string() });
            return;
        }
        let start = rows.len();
        self.begin(record.line, rows);
        for index in 0..self.rules.len() {
            let rule = &self.rules[index];
            match self.value(rule, record, index) {
                Ok(accepted) => {
                    let text = accepted.as_deref();
                    self.has[index] = (text.is_some(), rule.kind == ColumnType::Text && text.is_some_and(value::is_formula));
                    self.format.append(text, rows);
                }
                Err(reason) => problems.push(Problem { column: rule.name.clone(), reason: reason.into_owned() }),
            }
        }
        if !problems.is_empty() {
            rows.truncate(start);
            return;
        }
        rows.extend_from_slice(if self.format == RowFormat::Copy { b"\n" } else { b"]" });
        for (index, (present, formula)) in self.has.iter().enumerate() {
            self.present[index] += u64::from(*present);
            self.formulas[index] += u64::from(*formula);
        }
    }

    fn begin(&self, line: u64, rows: &mut Vec<u8>) {
        if self.format == RowFormat::Json {
            rows.extend_from_slice(if rows.is_empty() { b"[[" } else { b",[" });
        }
        match &self.run {
            Some(run) => rows.extend_from_slice(run),
            None => rows.extend_from_slice(line.to_string().as_bytes()),
        }
    }

    fn value<'r>(&self, rule: &Rule, record: &'r Record, index: usize) -> Result<Option<Cow<'r, str>>, Cow<'static, str>> {
        let text = match record.values.get(index).cloned().flatten() {
            Some(range) => Some(std::str::from_utf8(&record.buffer[range]).map_err(|_| "not UTF-8 text")?),
            None => None,
        };
        let Some(text) = text.filter(|text| !self.is_null(rule, text)) else {
            return if rule.required { Err("has no value".into()) } else { Ok(None) };
        };
        // What a decoder puts where the bytes stand for nothing.
        if text.contains('\u{FFFD}') {
            return Err("holds bytes that are not text".into());
        }
        rule.accept(text).map(Some)
    }

    fn is_null(&self, rule: &Rule, text: &str) -> bool {
        match &self.null {
            Some(null) if rule.kind == ColumnType::Text => text == null,
            Some(null) => text == null || text.trim().is_empty(),
            None if rule.kind == ColumnType::Text => text.is_empty(),
            None => text.trim().is_empty(),
        }
    }
}

impl RowFormat {
    fn append(self, text: Option<&str>, rows: &mut Vec<u8>) {
        match self {
            Self::Copy => {
                rows.push(b'\t');
                match text {
                    Some(text) => escape(text.as_bytes(), rows),
                    None => rows.extend_from_slice(b"\\N"),
                }
            }
            Self::Json => {
                rows.push(b',');
                // A text always becomes JSON.
                let _ = serde_json::to_writer(rows, &text);
            }
        }
    }
}

/// As COPY's text format wants it.
fn escape(text: &[u8], rows: &mut Vec<u8>) {
    let special = |byte: &u8| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t');
    let mut rest = text;
    while let Some(at) = rest.iter().position(special) {
        rows.extend_from_slice(&rest[..at]);
        rows.push(b'\\');
        rows.push(match rest[at] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            other => other,
        });
        rest = &rest[at + 1..];
    }
    rows.extend_from_slice(rest);
}
