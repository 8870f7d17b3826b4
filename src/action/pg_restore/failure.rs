//! What the server's refusals mean for a restore, and what to do about them.

use super::backup_file::BackupFile;
use crate::outcome::StepError;
use crate::sql::Fed;
use crate::target::TargetError;
use crate::text::cut;

/// The error of one statement of the dump.
pub(super) fn of_statement(error: TargetError, statement: &Fed, file: &BackupFile) -> StepError {
    let row = match &error {
        TargetError::Sql(error) => error.context.as_deref().and_then(copied_line),
        _ => None,
    };
    let is_sql = matches!(error, TargetError::Sql(_));
    let mut error = explained(error.into(), file);
    if is_sql {
        let first = statement.text.lines().next().unwrap_or_default();
        error = error.fact("statement", cut(first, 100));
        if let Some(place) = file.place(statement.line + row.unwrap_or_default()) {
            error = error.fact("at", place);
        }
    }
    error
}

/// Adds what to do, where that is known.
pub(super) fn explained(error: StepError, file: &BackupFile) -> StepError {
    let code = error.code.clone().unwrap_or_default();
    let says = |text: &str| error.message.contains(text);
    match code.as_str() {
        "42704" if says("role \"") => missing_role(error, file),
        "0A000" | "58P01" | "42704" if says("extension") => {
            error.hint("install the extension's files on the server (e.g. a package postgresql-contrib) before it can be restored")
        }
        "42501" => error.hint(
            "restore as the owner of the objects or as a superuser; `owner: false` and `privileges: false` leave out whom they belong to and who may use them",
        ),
        "42P07" | "42710" | "42723" => error.hint(
            "it is there already; `replace: true` overwrites what the backup holds, after a safety dump; or restore into another, empty database",
        ),
        "2BP01" => error.hint(
            "something that is not in the backup depends on it, and nothing is dropped that the backup can't bring back: \
             drop that first, restore only rows with `tables:`, or restore into another, empty database",
        ),
        "55P03" => error.hint("somebody uses what shall be replaced: stop the application, or give the step a longer `lock_timeout`"),
        "42704" if says("unrecognized configuration parameter") => {
            error.hint("the dump is of a newer PostgreSQL than this server: restore it on a server of that version")
        }
        "42P01" | "3F000" | "42883" => error.hint(
            "a dump of some tables lacks what they need: their schema, types, functions or the tables they refer to; \
             restore it where those are, or a dump of the whole database",
        ),
        _ => error,
    }
}

/// A role that the backup needs is not there.
pub(super) fn missing_role(error: StepError, file: &BackupFile) -> StepError {
    let error = match file.globals() {
        Some(globals) => error.hint(format!("create the roles it was made with: psql -d postgres -f {}", globals.display())),
        None => error.hint("create the role, e.g. from a `pg_dumpall --globals-only` of the old server"),
    };
    error.hint("or set `owner: false` and `privileges: false`: everything then belongs to whoever restores it")
}

/// The number in `COPY loads, line 17`.
fn copied_line(context: &str) -> Option<u64> {
    let (_, behind) = context.strip_prefix("COPY ")?.split_once(", line ")?;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
