//! Looks at a result's rows as they pass by, keeping only the first few.

use serde_json::Value;

use super::{ErrorRate, Expectations};
use crate::action::expect::number::Number;
use crate::outcome::{Column, Sample};
use crate::template::{RowTest, RowVerdict, TemplateError, Values};

/// What has been seen of one statement's rows.
#[derive(Debug)]
pub struct RowWatch<'a> {
    /// How many rows are kept.
    limit: usize,
    pub(super) expectations: Option<&'a Expectations>,
    values: &'a Values,
    /// The first rows.
    pub rows: Vec<Vec<Value>>,
    /// The first row's first column.
    pub first: Option<Value>,
    /// All rows.
    pub count: u64,
    pub(super) each: Decision<'a>,
    pub(super) any: Decision<'a>,
    pub(super) rate: Option<Result<Rate, String>>,
    pub(super) trouble: Option<TemplateError>,
}

/// A decision about every row and how it went.
#[derive(Debug, Default)]
pub(super) struct Decision<'a> {
    test: Option<RowTest<'a>>,
    pub holds: u64,
    pub fails: u64,
    pub unknown: u64,
    /// The first value found to be NULL.
    pub null: Option<String>,
    /// The first rows for which it does not hold.
    pub broken_by: Vec<Vec<Value>>,
}

/// Sums over all rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rate {
    pub failed: f64,
    pub total: f64,
}

impl<'a> RowWatch<'a> {
    /// Nothing seen yet.
    pub fn new(limit: usize, expectations: Option<&'a Expectations>, values: &'a Values) -> Self {
        let rate = expectations.and_then(|expectations| expectations.error_rate.as_ref()).map(|_| Ok(Rate::default()));
        Self {
            limit,
            expectations,
            values,
            rows: Vec::new(),
            first: None,
            count: 0,
            each: Decision::default(),
            any: Decision::default(),
            rate,
            trouble: None,
        }
    }

    /// Takes a row.
    pub fn row(&mut self, columns: &[Column], row: Vec<Value>) {
        self.count += 1;
        if self.count == 1 {
            self.first = row.first().cloned();
        }
        if let Some(expectations) = self.expectations {
            if let Err(error) = self.decide(expectations, columns, &row) {
                self.trouble.get_or_insert(error);
            }
            if let (Some(Ok(rate)), Some(wanted)) = (&mut self.rate, &expectations.error_rate)
                && let Err(problem) = rate.add(wanted, columns, &row)
            {
                self.rate = Some(Err(problem));
            }
        }
        if self.rows.len() < self.limit {
            self.rows.push(row);
        }
    }

    fn decide(&mut self, expectations: &'a Expectations, columns: &[Column], row: &[Value]) -> Result<(), TemplateError> {
        if self.trouble.is_some() {
            return Ok(());
        }
        for (expression, decision) in [(&expectations.each_row, &mut self.each), (&expectations.any_row, &mut self.any)] {
            let Some(expression) = expression else { continue };
            let test = match decision.test.take() {
                Some(test) => test,
                None => self.values.row_test(expression, columns)?,
            };
            let verdict = test.test(row)?;
            decision.test = Some(test);
            decision.count(verdict, row, self.limit);
        }
        Ok(())
    }

    /// The first rows, for an error.
    pub(super) fn sample(&self, columns: &[Column]) -> Option<Sample> {
        sample(columns, &self.rows, self.count)
    }
}

pub(super) fn sample(columns: &[Column], rows: &[Vec<Value>], total: u64) -> Option<Sample> {
    let columns = columns.iter().map(|column| column.name.clone()).collect();
    (!rows.is_empty()).then(|| Sample { columns, rows: rows.to_vec(), total })
}

impl Decision<'_> {
    fn count(&mut self, verdict: RowVerdict, row: &[Value], limit: usize) {
        match verdict {
            RowVerdict::Holds => {
                self.holds += 1;
                return;
            }
            RowVerdict::Fails => self.fails += 1,
            RowVerdict::Null(name) => {
                self.unknown += 1;
                self.null.get_or_insert(name);
            }
        }
        if self.broken_by.len() < limit {
            self.broken_by.push(row.to_vec());
        }
    }
}

impl Rate {
    fn add(&mut self, wanted: &ErrorRate, columns: &[Column], row: &[Value]) -> Result<(), String> {
        self.failed += cell(&wanted.failed, columns, row)?;
        self.total += cell(&wanted.total, columns, row)?;
        Ok(())
    }
}

fn cell(name: &str, columns: &[Column], row: &[Value]) -> Result<f64, String> {
    let index = columns.iter().position(|column| column.name == name).ok_or_else(|| format!("the query gives no column `{name}`"))?;
    match row.get(index) {
        None | Some(Value::Null) => Err(format!("{name} is NULL")),
        Some(value) => Number::from_json(value)
            .map(|number| number.approximate())
            .filter(|number| *number >= 0.0)
            .ok_or_else(|| format!("{name} is {value}, which is no count")),
    }
}
