//! `import`: a file of records into a table, all of the good ones or none.
//!
//! The file is read and judged in bounded memory while its rows are staged; then rejects
//! are counted at the gate, and one statement in one transaction loads what is staged,
//! together with its ledger row. What reads a file, judges a value or writes the SQL is
//! in the modules below.

mod batches;
mod catalogue;
mod check;
mod direct;
mod fields;
mod json;
mod load;
mod parse;
mod privileges;
mod records;
mod rejects;
mod statements;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::path::{Path, PathBuf};

use encoding_rs::Encoding;
use schemars::JsonSchema;
use serde::Deserialize;

use self::fields::{Character, Columns, Format, OnDuplicate, Rejects};
use self::records::Layout;
use self::statements::Statements;
use super::written::shown;
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::source::Spanned;
use crate::target::{Kind, SessionSettings};
use crate::template::{Place, Setting, Template, Values};
use crate::units::Duration;

/// Loads a CSV or NDJSON file into a table: reads and checks every record, judges the share
/// of rejects, and loads the good ones in one transaction, or in batches, exactly once.
///
/// Every row stays attributable to its run: by `run_column`, or without one by its primary
/// key in the table `runbook.imported` (run, step, table_name, key), on SQLite
/// `runbook_imported`. Rows that were only updated are not attributed.
///
/// ```yaml
/// import:
///   file: "{{ params.file }}"
///   table: orders
///   columns:
///     order_no: {type: text, required: true, pattern: "[A-Z]{2}-\\d{6}"}
///     customer_id: {type: bigint, required: true, references: customers.id}
///     amount: {type: numeric, min: 0, from: Total}
///     note: {type: text, completeness: 90%}
///   rejects: {max_ratio: 10%, warn_ratio: 5%, file: rejects.csv}
///   on_duplicate: skip
///   key: [order_no]
///   run_column: import_run
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The file; relative to where runbook is run.
    pub(super) file: Template,
    /// Default: by the file's name, `.ndjson` and `.jsonl` for NDJSON, anything else for CSV.
    #[serde(default)]
    format: Option<Spanned<Format>>,
    /// What stands between two fields: one character, `\t` for a tab. Default: a comma.
    #[serde(default)]
    delimiter: Option<Spanned<Character>>,
    /// What stands around a field that holds delimiters or line ends; `""` for nothing. Default: `"`.
    #[serde(default)]
    quote: Option<Spanned<Character>>,
    /// Whether the first line holds the names of the fields. Without it they are those of
    /// `columns`, in this order. Default: true.
    #[serde(default = "yes")]
    header: bool,
    /// A name of the WHATWG list, such as `windows-1252` or `utf-16le`. Default: `utf-8`.
    #[serde(default)]
    encoding: Option<Spanned<String>>,
    /// Text that stands for NULL; then an empty text is kept as it is. Default: an empty field is NULL.
    #[serde(default)]
    null: Option<String>,
    /// The table, with its schema where it is not on the search path; as the catalogue has it.
    table: Spanned<String>,
    /// The columns that are loaded. What else the file holds is left out, and said.
    #[schemars(with = "std::collections::BTreeMap<String, fields::Column>")]
    columns: Columns,
    /// How many records may be rejected.
    #[serde(default)]
    rejects: Rejects,
    /// What happens to records whose rows are there already. Default: `fail`.
    #[serde(default)]
    on_duplicate: OnDuplicate,
    /// Columns that make a row unique; they need a unique index. Needed for `update`.
    #[serde(default)]
    key: Vec<Spanned<String>>,
    /// Loads this many rows in each transaction, for a file that would keep one open for too
    /// long. Each transaction moves a cursor in `runbook.importing`, on SQLite
    /// `runbook_importing`, by which `runbook resume` goes on with the same file without
    /// loading anything twice. What is loaded stays when a later batch fails, or until
    /// somebody takes the run's rows back. Default: all rows in one transaction.
    #[serde(default)]
    #[schemars(range(min = 1))]
    batch_size: Option<std::num::NonZeroU64>,
    /// Only read and check the file and judge its rejects; load nothing and ask nobody. Default: false.
    #[serde(default)]
    check_only: bool,
    /// A text column of the table that gets the run's id.
    #[serde(default)]
    run_column: Option<Spanned<String>>,
    /// The database. Default: the only connection, or `main`.
    #[serde(default)]
    connection: Option<Spanned<String>>,
    /// The longest wait for one lock.
    #[serde(default)]
    lock_timeout: Option<Setting<Duration>>,
    /// The longest time the statement that loads everything, or a batch, may take; a batch is
    /// then tried again with half as many rows.
    #[serde(default)]
    statement_timeout: Option<Setting<Duration>>,
}

fn yes() -> bool {
    true
}

impl Perform for Import {
    fn class(&self) -> Class {
        if self.check_only { Class::Read } else { Class::Change }
    }

    fn recovery(&self) -> Recovery {
        if self.check_only { Recovery::Repeat } else { Recovery::Ledger }
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.connection.as_ref());
        for template in [Some(&self.file), self.rejects.file.as_ref()].into_iter().flatten() {
            inspection.template(template, Place::Argument);
        }
        for timeout in [&self.lock_timeout, &self.statement_timeout].into_iter().flatten() {
            inspection.setting(timeout);
        }
        inspection.diagnostics.extend(self.problems());
    }

    fn describe(&self, values: &Values) -> Description {
        let mut details = vec![self.layout_in_words()];
        details.extend(self.columns.iter().map(|(name, column)| describe_column(&name.value, column)));
        let limits = &self.rejects;
        details.push(format!("more than {} rejected: a finding, to be confirmed where an environment is declared", limits.warn_ratio));
        details.push(format!("more than {} rejected: nothing is loaded", limits.max_ratio));
        if let Some(file) = &limits.file {
            details.push(format!("rejected records go to {}", shown(file, values)));
        }
        let verb = if self.check_only { "check" } else { "import" };
        if self.check_only {
            details.push("nothing is loaded".into());
        } else {
            if direct::may_be_possible(self) {
                details.push("by COPY straight into the table, on PostgreSQL and without rules or row security; otherwise".into());
            }
            details.push(self.statements(Kind::Postgres, "{{ run.id }}", "").insert());
            if let Some(size) = self.batch_size {
                details.push(format!("{size} rows in each transaction, which moves the cursor in runbook.importing"));
            }
            if self.run_column.is_none() {
                details.push("each row's primary key is noted in runbook.imported".into());
            }
        }
        Description {
            summary: format!("{verb} {} {} {}", shown(&self.file, values), if self.check_only { "for" } else { "into" }, self.table.value),
            details,
        }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let rejects = self.rejects.file.as_ref().map(|file| prospect.writable("rejects", file, true));
        [prospect.readable("file", &self.file)].into_iter().chain(rejects).collect()
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        load::run(self, context).await
    }
}

impl Import {
    /// What is wrong that types can't say.
    fn problems(&self) -> Vec<Diagnostic> {
        let mut found: Vec<Diagnostic> = self.columns.iter().flat_map(|(name, column)| column.problems(name)).collect();
        let mut wrong = |code, span, message: String| found.push(Diagnostic::error(code, span, message));
        if self.columns.is_empty() {
            wrong("import-columns", self.table.span, "at least one column is needed".into());
        }
        for name in [&self.table].into_iter().chain(self.columns.keys()).chain(&self.run_column) {
            if name.value.is_empty() || name.value.contains("{{") || name.value.contains('\0') {
                wrong(
                    "import-name",
                    name.span,
                    "names of tables and columns are written out: what is loaded must be known before the run".into(),
                );
            }
        }
        for name in &self.key {
            if !self.columns.contains_key(name.value.as_str()) {
                wrong("import-key", name.span, format!("`{}` is not one of the columns", name.value));
            }
        }
        if self.on_duplicate == OnDuplicate::Update && self.key.is_empty() {
            wrong("import-key", self.table.span, "`on_duplicate: update` needs `key`, the columns by which a row is found".into());
        }
        if let Some(run_column) = &self.run_column
            && self.columns.contains_key(run_column.value.as_str())
        {
            wrong("import-run-column", run_column.span, "the column for the run's id can't come from the file as well".into());
        }
        if let Some(encoding) = &self.encoding
            && Encoding::for_label(encoding.value.as_bytes()).is_none()
        {
            wrong(
                "import-encoding",
                encoding.span,
                format!("`{}` is no encoding that is known; utf-8, windows-1252, utf-16le …", encoding.value),
            );
        }
        if self.rejects.warn_ratio > self.rejects.max_ratio {
            wrong("import-rejects", self.table.span, "`warn_ratio` can't be above `max_ratio`".into());
        }
        match &self.delimiter {
            Some(delimiter) if delimiter.value.0.is_none() => {
                wrong("import-delimiter", delimiter.span, "a delimiter is one character".into())
            }
            Some(delimiter) if delimiter.value.0 == self.quote_byte() => {
                wrong("import-delimiter", delimiter.span, "delimiter and quote can't be the same".into());
            }
            _ => {}
        }
        found
    }

    fn quote_byte(&self) -> Option<u8> {
        self.quote.as_ref().map_or(Some(b'"'), |quote| quote.value.0)
    }

    fn format_of(&self, file: &str) -> Format {
        let lower = file.to_ascii_lowercase();
        let by_name = if lower.ends_with(".ndjson") || lower.ends_with(".jsonl") { Format::Ndjson } else { Format::Csv };
        self.format.as_ref().map_or(by_name, |format| format.value)
    }

    fn layout(&self, file: &Path) -> Result<Layout, StepError> {
        let label = self.encoding.as_ref().map_or("utf-8", |encoding| encoding.value.as_str());
        let encoding = Encoding::for_label(label.as_bytes())
            .ok_or_else(|| StepError::new(ErrorKind::Io, format!("`{label}` is no encoding that is known")))?;
        let field = |(name, column): (&Spanned<String>, &fields::Column)| column.from.as_ref().unwrap_or(name).value.clone();
        Ok(Layout {
            format: self.format_of(&file.to_string_lossy()),
            delimiter: self.delimiter.as_ref().and_then(|delimiter| delimiter.value.0).unwrap_or(b','),
            quote: self.quote_byte(),
            header: self.header,
            encoding,
            fields: self.columns.iter().map(field).collect(),
        })
    }

    fn layout_in_words(&self) -> String {
        let encoding = self.encoding.as_ref().map_or("utf-8", |encoding| encoding.value.as_str());
        let format = match &self.format {
            Some(format) if format.value == Format::Ndjson => "NDJSON",
            Some(_) => "CSV",
            None if self.format_of(&self.file.text.value) == Format::Ndjson => "NDJSON",
            None => "CSV, or NDJSON by its name",
        };
        let header = if self.header { "" } else { ", without a header" };
        format!("{format}, {encoding}{header}")
    }

    fn references(&self) -> Vec<(String, String)> {
        let reference =
            |(name, column): (&Spanned<String>, &fields::Column)| Some((name.value.clone(), column.references.as_ref()?.value.clone()));
        self.columns.iter().filter_map(reference).collect()
    }

    fn statements(&self, kind: Kind, run: &str, step: &str) -> Statements {
        Statements {
            kind,
            table: self.table.value.clone(),
            columns: self.columns.keys().map(|name| name.value.clone()).collect(),
            key: self.key.iter().map(|name| name.value.clone()).collect(),
            on_duplicate: self.on_duplicate,
            run: run.to_owned(),
            step: step.to_owned(),
            run_column: self.run_column.as_ref().map(|name| name.value.clone()),
            noted_by: Vec::new(),
            lines: None,
        }
    }

    fn session(&self, context: &StepContext) -> Result<SessionSettings, StepError> {
        let mut settings = context.session.clone();
        if let Some(timeout) = &self.lock_timeout {
            settings.lock_timeout = Some(context.values.setting(timeout)?.0);
        }
        if let Some(timeout) = &self.statement_timeout {
            settings.statement_timeout = Some(context.values.setting(timeout)?.0);
        }
        Ok(settings)
    }

    fn path(&self, template: &Template, context: &StepContext) -> Result<PathBuf, StepError> {
        let path = context.directory.join(context.values.text(template)?);
        std::path::absolute(&path)
            .map_err(|error| StepError::new(ErrorKind::Io, format!("`{}` is not a file name: {error}", path.display())))
    }
}

/// The column and everything its values must be, on one line.
fn describe_column(name: &str, column: &fields::Column) -> String {
    let mut words = vec![format!("{name} {}", column.kind.value.name())];
    let mut add = |word: &str, value: Option<String>| words.extend(value.map(|value| format!("{word} {value}")));
    add("from", column.from.as_ref().map(|from| format!("`{}`", from.value)));
    add("matching", column.pattern.as_ref().map(|pattern| pattern.text.clone()));
    add("from", column.min.as_ref().map(|bound| crate::template::plain(&bound.value)));
    add("to", column.max.as_ref().map(|bound| crate::template::plain(&bound.value)));
    add("one of", (!column.values.is_empty()).then(|| column.values.join("|")));
    add("in", column.references.as_ref().map(|reference| reference.value.clone()));
    add("complete to", column.completeness.map(|share| share.to_string()));
    if column.required {
        words.push("required".into());
    }
    format!("  {}", words.join(", "))
}
