//! The server's answer to an author's statement, row by row.

use futures_util::StreamExt;
use serde_json::Value;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Column as _, Either, Executor, Row, ValueRef};

use super::Database;
use super::command::Command;
use super::decode::Decoder;
use crate::outcome::Column;
use crate::target::spec::{Executed, RowSink};

/// Runs one string; rows of the command that counts go to `rows`.
pub async fn answer(
    connection: &mut PgConnection,
    database: &Database,
    command: &Command,
    rows: RowSink<'_>,
    heard: &mut bool,
) -> Result<Executed, sqlx::Error> {
    let mut executed = Executed::default();
    let mut decoders: Vec<Decoder> = Vec::new();
    let mut completed = 0;
    let mut stream = connection.fetch_many(sqlx::raw_sql(AssertSqlSafe(command.text.clone())));
    while let Some(item) = stream.next().await {
        match item? {
            Either::Left(done) => {
                if completed == command.before {
                    executed.rows_affected = done.rows_affected();
                }
                completed += 1;
            }
            Either::Right(row) if completed == command.before => {
                if executed.row_count == 0 {
                    (executed.columns, decoders) = described(database, row.columns()).await.into_iter().unzip();
                }
                executed.row_count += 1;
                rows(&executed.columns, decoded(&row, &decoders)?);
            }
            Either::Right(_) => {}
        }
        *heard = true;
    }
    Ok(executed)
}

/// Names and decoders of columns.
pub async fn described(database: &Database, columns: &[sqlx::postgres::PgColumn]) -> Vec<(Column, Decoder)> {
    let mut described = Vec::with_capacity(columns.len());
    for column in columns {
        let (type_name, decoder) = match column.type_info().oid() {
            Some(oid) => database.type_of(oid.0).await,
            None => (column.type_info().to_string().to_lowercase(), Decoder::Text),
        };
        described.push((Column { name: column.name().to_owned(), type_name }, decoder));
    }
    described
}

fn decoded(row: &PgRow, decoders: &[Decoder]) -> Result<Vec<Value>, sqlx::Error> {
    let decode = |(index, decoder): (usize, &Decoder)| {
        let value = row.try_get_raw(index)?;
        if value.is_null() {
            return Ok(Value::Null);
        }
        Ok(decoder.decode(value.as_str().map_err(sqlx::Error::Decode)?))
    };
    decoders.iter().enumerate().map(decode).collect()
}
