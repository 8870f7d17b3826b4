//! SQLite's errors, as this crate's.

use sqlx::sqlite::SqliteError;

use crate::target::error::SqlError;

/// The names of SQLite's result codes, extended ones where they tell more.
const NAMES: &[(i32, &str)] = &[
    (1, "SQLITE_ERROR"),
    (3, "SQLITE_PERM"),
    (4, "SQLITE_ABORT"),
    (5, "SQLITE_BUSY"),
    (6, "SQLITE_LOCKED"),
    (7, "SQLITE_NOMEM"),
    (8, "SQLITE_READONLY"),
    (9, "SQLITE_INTERRUPT"),
    (10, "SQLITE_IOERR"),
    (11, "SQLITE_CORRUPT"),
    (13, "SQLITE_FULL"),
    (14, "SQLITE_CANTOPEN"),
    (17, "SQLITE_SCHEMA"),
    (18, "SQLITE_TOOBIG"),
    (19, "SQLITE_CONSTRAINT"),
    (20, "SQLITE_MISMATCH"),
    (26, "SQLITE_NOTADB"),
    (275, "SQLITE_CONSTRAINT_CHECK"),
    (787, "SQLITE_CONSTRAINT_FOREIGNKEY"),
    (1299, "SQLITE_CONSTRAINT_NOTNULL"),
    (1555, "SQLITE_CONSTRAINT_PRIMARYKEY"),
    (1811, "SQLITE_CONSTRAINT_TRIGGER"),
    (2067, "SQLITE_CONSTRAINT_UNIQUE"),
    (2579, "SQLITE_CONSTRAINT_ROWID"),
    (3091, "SQLITE_CONSTRAINT_DATATYPE"),
];

/// The name of the result code, if SQLite gave one.
pub fn code(error: &sqlx::Error) -> Option<String> {
    let sqlx::Error::Database(error) = error else { return None };
    let number: i32 = error.try_downcast_ref::<SqliteError>().and_then(|error| sqlx::error::DatabaseError::code(error)?.parse().ok())?;
    let name = |wanted: i32| NAMES.iter().find(|(number, _)| *number == wanted).map(|(_, name)| (*name).to_owned());
    name(number).or_else(|| name(number & 0xff)).or_else(|| Some(format!("SQLite error {number}")))
}

/// An error in a few words.
pub fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    }
}

/// Whether a commit that failed so may nevertheless be on the disk.
pub fn leaves_commit_open(error: &sqlx::Error) -> bool {
    code(error).is_none_or(|code| code == "SQLITE_IOERR")
}

/// An error of a statement with this text.
pub fn sql_error(error: &sqlx::Error, statement: &str) -> SqlError {
    let code = code(error).unwrap_or_default();
    let message = words(error);
    SqlError {
        transient: matches!(code.as_str(), "SQLITE_BUSY" | "SQLITE_LOCKED"),
        position: place(&message, statement),
        code,
        message,
        ..SqlError::default()
    }
}

/// SQLite names what it does not understand; if that stands in the statement exactly
/// once, it is the place.
fn place(message: &str, statement: &str) -> Option<usize> {
    let word = match message.strip_prefix("near \"") {
        Some(rest) => rest.split_once("\":")?.0,
        None => ["no such column: ", "no such table: ", "no such function: "].iter().find_map(|start| message.strip_prefix(start))?,
    };
    let (before, after) = statement.split_once(word)?;
    (!word.is_empty() && !after.contains(word)).then(|| before.chars().count())
}
