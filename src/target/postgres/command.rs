//! The string that is sent for a statement.
//!
//! sqlx binds values in binary form, which text of a type that only the server
//! knows has not; so a statement with values is prepared by `PREPARE`, executed with
//! quoted literals, and its result comes as text like every other.

use std::ops::Range;

use serde_json::Value;

use crate::sql::classify;
use crate::target::error::{SqlError, TargetError};
use crate::target::literal::bound;
use crate::target::spec::Statement;

/// One string for the simple protocol, and where the author's statement is in it.
#[derive(Debug, Default)]
pub struct Command {
    /// What is sent.
    pub text: String,
    /// How many commands complete before the one whose result counts.
    pub before: usize,
    /// Where the author's text begins, in characters, and its length.
    statement: Range<usize>,
    /// Where the values are, in characters.
    binds: Vec<Range<usize>>,
}

impl Command {
    /// A command without an author's statement in it yet.
    pub fn after(prefix: &[&str]) -> Self {
        let mut text = prefix.join("; ");
        if !text.is_empty() {
            text.push_str("; ");
        }
        Self { text, before: prefix.len(), ..Self::default() }
    }

    /// Adds a statement without values.
    pub fn plain(mut self, statement: &Statement<'_>) -> Self {
        self.append(statement.text);
        self
    }

    /// Adds `PREPARE name`.
    pub fn prepare(mut self, name: &str, statement: &Statement<'_>) -> Self {
        self.text.push_str(&format!("PREPARE {name} AS "));
        self.append(statement.text);
        self.before += 1;
        self
    }

    /// Adds `EXECUTE name` with values, of which those of `arrays` are wanted as arrays.
    pub fn execute(mut self, name: &str, binds: &[Value], arrays: &[bool]) -> Self {
        if !self.statement.is_empty() {
            // On its own line, because the statement may end in a comment.
            self.text.push_str("\n; ");
        }
        self.text.push_str(&format!("EXECUTE {name}"));
        let mut separator = "(";
        for (index, value) in binds.iter().enumerate() {
            self.text.push_str(separator);
            let start = self.text.chars().count();
            self.text.push_str(&bound(value, arrays.get(index).copied().unwrap_or(false)));
            self.binds.push(start..self.text.chars().count());
            separator = ", ";
        }
        if !binds.is_empty() {
            self.text.push(')');
        }
        self.text.push_str(&format!("; DEALLOCATE {name}"));
        self
    }

    /// Adds a command after the one that counts.
    pub fn then(mut self, command: &str) -> Self {
        self.text.push_str("\n; ");
        self.text.push_str(command);
        self
    }

    fn append(&mut self, statement: &str) {
        let start = self.text.chars().count();
        self.text.push_str(statement);
        self.statement = start..start + statement.chars().count();
    }

    /// Turns a position in the string into one in the author's statement or a value.
    pub fn locate(&self, error: &mut SqlError) {
        let Some(position) = error.position.take() else { return };
        if self.statement.contains(&position) || (position == self.statement.end && !self.statement.is_empty()) {
            error.position = Some(position - self.statement.start);
        } else {
            error.bind = self.binds.iter().position(|range| range.contains(&position));
        }
    }
}

/// Refuses what no server can be given.
pub fn check(statement: &Statement<'_>) -> Result<(), TargetError> {
    if statement.text.contains('\0') {
        return Err(TargetError::Bind { index: None, message: "the statement contains a NUL character".into(), hint: None });
    }
    if let Some(index) = statement.binds.iter().position(holds_nul) {
        return Err(TargetError::Bind {
            index: Some(index),
            message: format!("value ${} contains a NUL character, which PostgreSQL cannot store", index + 1),
            hint: None,
        });
    }
    if statement.binds.is_empty() {
        return Ok(());
    }
    let classified = classify(statement.text);
    if !classified.takes_parameters {
        return Err(TargetError::Bind {
            index: None,
            message: format!("{} takes no values", classified.kind),
            hint: Some(
                "PostgreSQL accepts values only in SELECT, INSERT, UPDATE, DELETE, MERGE and VALUES. \
                 Write the value into the statement, or have a DO block read it from a table."
                    .into(),
            ),
        });
    }
    Ok(())
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_travel_as_literals_of_an_execute() {
        let binds = [json!("o'neil"), json!(3)];
        let statement = Statement::query("SELECT $1, $2 -- both").with(&binds);
        let command = Command::after(&["BEGIN READ ONLY"]).prepare("p", &statement).execute("p", &binds, &[]).then("ROLLBACK");
        insta::assert_snapshot!(command.text, @r"
        BEGIN READ ONLY; PREPARE p AS SELECT $1, $2 -- both
        ; EXECUTE p('o''neil', '3'); DEALLOCATE p
        ; ROLLBACK
        ");
        assert_eq!(command.before, 2);
    }

    #[test]
    fn an_error_is_located_in_the_statement_or_in_a_value() {
        let binds = [json!("é"), json!("x")];
        let statement = Statement::query("SELECT 'é', $1, $2").with(&binds);
        let command = Command::after(&[]).prepare("p", &statement).execute("p", &binds, &[]);
        let place = |needle: &str| {
            let byte = command.text.rfind(needle).unwrap();
            let mut error = SqlError { position: Some(command.text[..byte].chars().count()), ..SqlError::default() };
            command.locate(&mut error);
            (error.position, error.bind)
        };
        assert_eq!(place("$2"), (Some(16), None));
        assert_eq!(place("'x'"), (None, Some(1)));
        assert_eq!(place("DEALLOCATE"), (None, None));
    }
}
