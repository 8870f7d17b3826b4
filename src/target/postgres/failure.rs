//! The server's errors, as this crate's.

use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgSeverity};

use super::connect::words;
use crate::target::error::{SqlError, is_transient};

/// Whether nothing more can be said on the connection.
pub fn ends_session(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)),
        _ => true,
    }
}

/// Everything the server says about an error; positions are those of the string sent.
pub fn sql_error(error: &sqlx::Error) -> SqlError {
    let server = match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    };
    let Some(server) = server else {
        return SqlError { message: words(error), ..SqlError::default() };
    };
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let (position, internal_query) = match server.position() {
        Some(PgErrorPosition::Original(position)) => (position.checked_sub(1), None),
        Some(PgErrorPosition::Internal { query, .. }) => (None, Some(query.to_owned())),
        None => (None, None),
    };
    SqlError {
        code: server.code().to_owned(),
        message: server.message().to_owned(),
        detail: owned(server.detail()),
        hint: owned(server.hint()),
        context: owned(server.r#where()),
        position,
        internal_query,
        schema: owned(server.schema()),
        table: owned(server.table()),
        column: owned(server.column()),
        constraint: owned(server.constraint()),
        transient: is_transient(server.code()),
        ..SqlError::default()
    }
}
