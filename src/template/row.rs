//! A decision about every row of a result: compiled once, evaluated row by row.

use std::sync::Arc;

use minijinja::value::{Object, Value, ValueKind};
use serde_json::Value as Json;

use super::evaluate::{ENVIRONMENT, TemplateError, reason};
use super::parse::Expression;
use super::values::{Values, cell, row_value};
use crate::outcome::Column;

/// What an expression says of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowVerdict {
    /// True.
    Holds,
    /// False.
    Fails,
    /// Neither, because this column or value is NULL.
    Null(String),
}

/// An expression that sees a row's columns as names of their own, and `row`.
#[derive(Debug)]
pub struct RowTest<'a> {
    expression: &'a Expression,
    compiled: minijinja::Expression<'a, 'a>,
    values: Values,
    columns: Arc<[Column]>,
}

impl Values {
    /// Prepares a decision about the rows of a result with these columns.
    pub fn row_test<'a>(&self, expression: &'a Expression, columns: &[Column]) -> Result<RowTest<'a>, TemplateError> {
        let failed = |reason: String| TemplateError { expression: expression.text.value.clone(), reason };
        let twice =
            expression.references.iter().find(|reference| columns.iter().filter(|column| column.name == reference.path[0]).count() > 1);
        if let Some(reference) = twice {
            return Err(failed(format!("two columns are called {}; give one another name with AS", reference.path[0])));
        }
        let compiled = ENVIRONMENT.compile_expression(&expression.text).map_err(|error| failed(reason(&error)))?;
        Ok(RowTest { expression, compiled, values: self.clone(), columns: columns.into() })
    }
}

impl RowTest<'_> {
    /// Decides about one row.
    pub fn test(&self, row: &[Json]) -> Result<RowVerdict, TemplateError> {
        let cells = row.iter().zip(&*self.columns).map(|(value, column)| cell(value, &column.type_name)).collect();
        let scope =
            Arc::new(Scope { values: self.values.clone(), columns: self.columns.clone(), cells, row: row_value(&self.columns, row) });
        if !self.expression.handles_null
            && let Some(reference) = self.expression.references.iter().find(|reference| scope.is_null(&reference.path))
        {
            return Ok(RowVerdict::Null(reference.path.join(".")));
        }
        let failed = |reason: String| TemplateError { expression: self.expression.text.value.clone(), reason };
        let value = self.compiled.eval(Value::from_dyn_object(scope as Arc<_>)).map_err(|error| failed(reason(&error)))?;
        match value.kind() {
            ValueKind::Bool if value.is_true() => Ok(RowVerdict::Holds),
            ValueKind::Bool => Ok(RowVerdict::Fails),
            _ => Err(failed(format!("it gives {value}, not true or false"))),
        }
    }
}

/// A row in front of the run's values.
#[derive(Debug)]
struct Scope {
    values: Values,
    columns: Arc<[Column]>,
    cells: Vec<Value>,
    row: Value,
}

impl Scope {
    fn get(&self, name: &str) -> Option<Value> {
        if let Some(index) = self.columns.iter().position(|column| column.name == name) {
            return self.cells.get(index).cloned();
        }
        if name == "row" { Some(self.row.clone()) } else { self.values.get(name).cloned() }
    }

    fn is_null(&self, path: &[String]) -> bool {
        let value = self.get(&path[0]);
        path[1..].iter().fold(value, |value, part| value?.get_attr(part).ok()).is_some_and(|value| value.is_none())
    }
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::{Span, Spanned};

    fn verdict(text: &str, row: &[Json]) -> Result<RowVerdict, String> {
        let columns = ["n", "total", "name"].map(|name| Column { name: name.into(), type_name: "numeric".into() });
        let values = Values::new().with_json("params", &json!({"limit": 5, "nothing": null}));
        let expression = Expression::parse(Spanned::new(text.into(), Span::default())).expect("parses");
        values.row_test(&expression, &columns).and_then(|test| test.test(row)).map_err(|error| error.reason)
    }

    #[test]
    fn a_row_holds_fails_or_is_not_known() {
        let row = [json!(3), json!("10.5"), json!(null)];
        assert_eq!(verdict("n < params.limit and total > 9", &row), Ok(RowVerdict::Holds));
        assert_eq!(verdict("row.n > params.limit", &row), Ok(RowVerdict::Fails));
        assert_eq!(verdict("name == 'x'", &row), Ok(RowVerdict::Null("name".into())));
        assert_eq!(verdict("n < params.nothing", &row), Ok(RowVerdict::Null("params.nothing".into())));
        assert_eq!(verdict("name is none", &row), Ok(RowVerdict::Holds));
        assert!(verdict("n", &row).is_err(), "a number is not a decision");
        assert!(verdict("nowhere == 1", &row).is_err());
    }

    #[test]
    fn a_name_two_columns_share_decides_nothing() {
        let columns = ["n", "n"].map(|name| Column { name: name.into(), type_name: "int8".into() });
        let expression = Expression::parse(Spanned::new("n == 0".into(), Span::default())).expect("parses");
        let error = Values::new().row_test(&expression, &columns).expect_err("ambiguous");
        assert_eq!(error.reason, "two columns are called n; give one another name with AS");
    }
}
