//! A check: an action that only looks, used to tell whether something is the case.
//!
//! `done_when` uses it. An expectation that fails means "no"; any other error is an
//! error, for "could not look" is not an answer.

use std::fmt;

use schemars::JsonSchema;
use serde_json::Value;

use serde::de::{Deserialize, Deserializer, Error, MapAccess};

use super::{Class, Inspection, Loader, Need, Perform, Prospect, StepContext, http::Http, shell::Shell, sql::Sql};
use crate::outcome::{Column, ErrorKind, StepError};
use crate::target::{Kind, Statement};
use crate::template::Template;

/// Exactly one way to look.
#[derive(Debug)]
pub enum Check {
    /// A query with expectations.
    Sql(Box<Sql>),
    /// A request with expectations.
    Http(Box<Http>),
    /// A command with expectations.
    Shell(Box<Shell>),
    /// An index of this name exists and is valid and ready.
    IndexValid(Template),
}

const KEYS: &[&str] = &["sql", "http", "shell", "index_valid"];

impl Check {
    /// Whether it holds.
    pub async fn holds(&self, context: &StepContext) -> Result<bool, StepError> {
        let outcome = match self {
            Self::Sql(sql) => Box::pin(sql.run(context)).await,
            Self::Http(http) => Box::pin(http.run(context)).await,
            Self::Shell(shell) => Box::pin(shell.run(context)).await,
            Self::IndexValid(name) => return Box::pin(index_valid(&context.values.text(name)?, context)).await,
        };
        match outcome {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::Expectation => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What it will need when it looks.
    pub async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        match self {
            Self::Http(http) => http.needs(prospect).await,
            Self::Shell(shell) => shell.needs(prospect).await,
            Self::Sql(_) | Self::IndexValid(_) => Vec::new(),
        }
    }

    /// Reads files that belong to it.
    pub fn load(&mut self, loader: &mut Loader<'_>) {
        match self {
            Self::Sql(sql) => sql.load(loader),
            Self::Http(http) => http.load(loader),
            Self::Shell(shell) => shell.load(loader),
            Self::IndexValid(_) => {}
        }
    }

    /// Names everything it refers to; a check that could change something is refused.
    pub fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        match self {
            Self::Sql(sql) => {
                if sql.class() != Class::Read {
                    inspection.diagnostics.push(
                        crate::diagnostic::Diagnostic::error("check-writes", sql.span(), "a check may only read")
                            .help("use `query` instead of `exec`"),
                    );
                }
                sql.inspect(inspection);
            }
            Self::Http(http) => http.inspect(inspection),
            Self::Shell(shell) => shell.inspect(inspection),
            Self::IndexValid(name) => {
                inspection.connection(None);
                inspection.template(name, crate::template::Place::Bind);
            }
        }
    }
}

/// Asks the catalogue: `IF NOT EXISTS` reports success over an index that a failed
/// concurrent build left invalid, so existence alone proves nothing.
async fn index_valid(name: &str, context: &StepContext) -> Result<bool, StepError> {
    let connection = context.connection(None)?;
    let mut session = context.targets.session(connection, &context.step, &context.session).await?;
    let query = match session.identity().kind {
        Kind::Postgres => "SELECT coalesce((SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = to_regclass($1)), false)",
        Kind::Sqlite => "SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'index' AND name = $1",
    };
    let mut valid = false;
    let mut see = |_: &[Column], row: Vec<Value>| valid = row.first().is_some_and(|value| value == true || value == 1);
    session.read(&Statement::query(query).with(&[name.into()]), None, &mut see).await?;
    Ok(valid)
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Check;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "exactly one check ({})", KEYS.join(", "))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Check, A::Error> {
                let key: String = map.next_key()?.ok_or_else(|| A::Error::custom("a check is missing"))?;
                let check = match key.as_str() {
                    "sql" => Check::Sql(map.next_value()?),
                    "http" => Check::Http(map.next_value()?),
                    "shell" => Check::Shell(map.next_value()?),
                    "index_valid" => Check::IndexValid(map.next_value()?),
                    other => return Err(A::Error::unknown_field(other, KEYS)),
                };
                match map.next_key::<String>()? {
                    Some(second) => {
                        Err(A::Error::custom(format!("exactly one check is allowed, but both `{key}` and `{second}` stand here")))
                    }
                    None => Ok(check),
                }
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl JsonSchema for Check {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Check".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let branches: Vec<serde_json::Value> = [
            ("sql", generator.subschema_for::<Sql>()),
            ("http", generator.subschema_for::<Http>()),
            ("shell", generator.subschema_for::<Shell>()),
            (
                "index_valid",
                schemars::json_schema!({ "type": "string", "description": "name of an index, with its schema if it is not on the search path" }),
            ),
        ]
        .into_iter()
        .map(|(key, schema)| serde_json::json!({ "type": "object", "properties": { key: schema }, "required": [key], "additionalProperties": false }))
        .collect();
        schemars::json_schema!({ "oneOf": branches })
    }
}
