//! What a step can do: one file per action, and the registry.
//!
//! An action knows its YAML fields, what it refers to, how it looks in a plan and how
//! it runs. It knows nothing of scheduling, journals or terminals: it talks to the run
//! through its [`StepContext`].

pub mod assert;
mod backup;
pub mod check;
pub mod confirm;
mod context;
mod effect;
pub mod env_backup;
pub mod env_check;
mod environment;
mod exchange;
pub mod expect;
pub mod http;
pub mod import;
mod inspection;
mod json_template;
pub mod manual;
mod needs;
pub mod notify;
pub mod pg_dump;
pub mod pg_restore;
pub mod playbook;
pub mod prune_backups;
pub mod shell;
pub mod snapshot;
pub mod sql;
pub mod sql_batch;
pub mod sqlite_backup;
#[cfg(test)]
mod testing;
pub mod verify_backup;
mod written;

use std::fmt;
use std::future::Future;

use serde::de::{Deserialize, Deserializer, Error, MapAccess};

pub use context::{Answer, Channels, Look, Prompt, PromptKind, Request, StepContext};
pub use environment::ProcessEnvironment;
pub use inspection::{Inspection, Loader, Use};
pub use needs::{Need, Prospect};

use crate::outcome::{StepError, StepResult};
use crate::template::Values;

/// What a step does to the world, as a reviewer reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Only looks.
    Read,
    /// Changes something the plan can show.
    Change,
    /// Waits for a person.
    Gate,
    /// May change something the plan cannot foresee.
    NotPreviewable,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Change => "change",
            Self::Gate => "gate",
            Self::NotPreviewable => "not previewable",
        })
    }
}

/// What an interruption in the middle of a step means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// It left nothing behind: run it again.
    Repeat,
    /// The ledger in the target database says whether it took effect.
    Ledger,
    /// Nobody knows: `done_when`, `idempotent` or a person decides.
    Unknown,
}

/// What a step would do, for the plan.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Description {
    /// One line: the verb and its object.
    pub summary: String,
    /// The exact SQL, command or request, line by line.
    pub details: Vec<String>,
}

/// The behaviour of an action.
pub trait Perform {
    /// What it does to the world.
    fn class(&self) -> Class;
    /// What an interruption in the middle means.
    fn recovery(&self) -> Recovery {
        match self.class() {
            Class::Read | Class::Gate => Recovery::Repeat,
            Class::Change | Class::NotPreviewable => Recovery::Unknown,
        }
    }
    /// Reads files that belong to the playbook (SQL files); called once after decoding.
    fn load(&mut self, _loader: &mut Loader<'_>) {}
    /// Names everything it refers to, and what is wrong with it that types can't say.
    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>);
    /// How it looks in a plan; values that are not known yet stay expressions.
    fn describe(&self, values: &Values) -> Description;
    /// What the databases say of it beforehand; reads only.
    fn preview(&self, _look: &Look<'_>) -> impl Future<Output = Result<Vec<String>, StepError>> + Send {
        async { Ok(Vec::new()) }
    }
    /// What it will need when it runs, besides its connections; for `runbook doctor`.
    fn needs(&self, _prospect: &Prospect<'_>) -> impl Future<Output = Vec<Need>> + Send {
        async { Vec::new() }
    }
    /// Does it.
    fn run(&self, context: &StepContext) -> impl Future<Output = Result<StepResult, StepError>> + Send;
}

/// The registry: a new action is its file and one line here.
macro_rules! registry {
    ($($key:literal => $variant:ident($type:ty)),* $(,)?) => {
        /// Exactly one of the actions.
        #[derive(Debug)]
        pub enum Action {
            $(#[doc = concat!("`", $key, "`")] $variant(Box<$type>)),*
        }

        impl Action {
            /// The keys of all actions.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            /// The key it is written with.
            pub fn key(&self) -> &'static str {
                match self { $(Self::$variant(_) => $key),* }
            }

            /// The schema of each action's fields, by key.
            pub fn schemas(generator: &mut schemars::SchemaGenerator) -> Vec<(&'static str, schemars::Schema)> {
                vec![$(($key, generator.subschema_for::<$type>())),*]
            }

            fn from_entry<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
                match key {
                    $($key => Ok(Self::$variant(Box::new(map.next_value()?))),)*
                    other => Err(A::Error::unknown_field(other, Self::KEYS)),
                }
            }
        }

        impl Perform for Action {
            fn class(&self) -> Class {
                match self { $(Self::$variant(action) => action.class()),* }
            }
            fn recovery(&self) -> Recovery {
                match self { $(Self::$variant(action) => action.recovery()),* }
            }
            fn load(&mut self, loader: &mut Loader<'_>) {
                match self { $(Self::$variant(action) => action.load(loader)),* }
            }
            fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
                match self { $(Self::$variant(action) => action.inspect(inspection)),* }
            }
            fn describe(&self, values: &Values) -> Description {
                match self { $(Self::$variant(action) => action.describe(values)),* }
            }
            async fn preview(&self, look: &Look<'_>) -> Result<Vec<String>, StepError> {
                match self { $(Self::$variant(action) => Box::pin(action.preview(look)).await),* }
            }
            async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
                match self { $(Self::$variant(action) => action.needs(prospect).await),* }
            }
            async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
                // Boxed, for the largest action's future would be every step's size.
                match self { $(Self::$variant(action) => Box::pin(action.run(context)).await),* }
            }
        }
    };
}

registry! {
    "sql" => Sql(sql::Sql),
    "sql_batch" => SqlBatch(sql_batch::SqlBatch),
    "snapshot" => Snapshot(snapshot::Snapshot),
    "import" => Import(import::Import),
    "pg_dump" => PgDump(pg_dump::PgDump),
    "sqlite_backup" => SqliteBackup(sqlite_backup::SqliteBackup),
    "verify_backup" => VerifyBackup(verify_backup::VerifyBackup),
    "pg_restore" => PgRestore(pg_restore::PgRestore),
    "prune_backups" => PruneBackups(prune_backups::PruneBackups),
    "env_check" => EnvCheck(env_check::EnvCheck),
    "env_backup" => EnvBackup(env_backup::EnvBackup),
    "shell" => Shell(shell::Shell),
    "http" => Http(http::Http),
    "confirm" => Confirm(confirm::Confirm),
    "manual" => Manual(manual::Manual),
    "assert" => Assert(assert::Assert),
    "notify" => Notify(notify::Notify),
    "playbook" => Playbook(playbook::SubPlaybook),
}

impl Action {
    /// Reads the action whose key was just read from `map`, and refuses a second one.
    pub fn from_map<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        let action = Self::from_entry(key, map)?;
        match map.next_key::<String>()? {
            Some(second) => Err(A::Error::custom(format!("exactly one action is allowed, but both `{key}` and `{second}` stand here"))),
            None => Ok(action),
        }
    }
}

/// A mapping with exactly one key, the action's.
impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Action;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "exactly one action ({})", Action::KEYS.join(", "))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Action, A::Error> {
                let key: String = map.next_key()?.ok_or_else(|| A::Error::custom("an action is missing"))?;
                Action::from_map(&key, &mut map)
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl schemars::JsonSchema for Action {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Action".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let branches: Vec<serde_json::Value> = Self::schemas(generator)
            .into_iter()
            .map(|(key, schema)| {
                serde_json::json!({ "type": "object", "properties": { key: schema }, "required": [key], "additionalProperties": false })
            })
            .collect();
        schemars::json_schema!({ "oneOf": branches })
    }
}
