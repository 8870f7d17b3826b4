//! What the author wrote: the playbook's types, the one source of the language.
//!
//! The decoder, the JSON Schema and the reference all come from these types and from
//! the actions' own. Nothing here is resolved or executed; `plan` does that.

pub mod check;
pub mod decode;
pub mod load;
mod reference;
pub mod schema;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::action::check::Check;
use crate::action::confirm::Confirm;
use crate::action::notify::Channel;
use crate::action::{Action, Inspection, Perform};
use crate::source::{Span, Spanned};
use crate::template::{Expression, Setting, Template};
use crate::units::{ByteSize, Duration};

/// Names in the order written, each with its place.
pub type Named<T> = IndexMap<Spanned<String>, T>;

/// A whole playbook.
#[derive(Debug)]
pub struct Playbook {
    /// Everything but the steps.
    pub settings: Settings,
    /// The procedure.
    pub steps: Vec<Step>,
    /// Run when the run failed, before `always`.
    pub on_failure: Vec<Step>,
    /// Run when every step succeeded.
    pub on_success: Vec<Step>,
    /// Run at the end in any case.
    pub always: Vec<Step>,
}

/// The top of a playbook.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Version of the language; 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: Spanned<u32>,
    /// Name of the playbook, `[a-z0-9-]`.
    #[schemars(with = "String", regex(pattern = r"^[a-z0-9][a-z0-9-]*$"))]
    pub name: Spanned<String>,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub description: Option<String>,
    /// The environment this run is for, e.g. `production`. Compared with the stamp in the
    /// target database (`runbook stamp`); a mismatch refuses the run.
    #[serde(default)]
    pub environment: Option<Template>,
    /// Typed inputs, given with `--param name=value` or `--params-file`.
    #[serde(default)]
    pub params: Named<Parameter>,
    /// Values that are never shown, journaled, logged or put on a command line.
    #[serde(default)]
    pub secrets: Named<SecretSource>,
    /// The databases this playbook works on.
    #[serde(default)]
    pub connections: Named<Connection>,
    /// Where `notify` sends messages; `console` is always there.
    #[serde(default)]
    pub channels: Named<Channel>,
    /// One run at a time per lock name and target database. Default: the playbook's name.
    #[serde(default)]
    pub lock: Option<String>,
    /// What holds for every step that does not say otherwise.
    #[serde(default)]
    pub defaults: Defaults,
    /// How many steps may run side by side. Default: 4.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub max_parallel: Option<u32>,
    /// How much output of one step is kept on disk, head and tail. Default: 64 MiB.
    #[serde(default)]
    pub max_output: Option<ByteSize>,
}

/// What holds for every step that does not say otherwise.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// The longest a step may take.
    pub timeout: Option<Duration>,
    /// The longest a statement waits for one lock. Default: 3s.
    pub lock_timeout: Option<Duration>,
    /// The longest a statement may take.
    pub statement_timeout: Option<Duration>,
    /// When and how a failed step is tried again.
    pub retry: Option<Retry>,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Any text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// `500ms`, `30s`, `5m` …
    Duration,
    /// One of `values`.
    Enum,
    /// Several texts; on the command line separated by commas.
    List,
    /// A file or directory, relative to where the command is run.
    Path,
}

/// A typed input.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// What it means.
    #[serde(default)]
    pub description: Option<String>,
    /// Must be given on every run.
    #[serde(default)]
    pub required: bool,
    /// Taken when it is not given; may read `env.NAME`.
    #[serde(default)]
    pub default: Option<Setting<serde_json::Value>>,
    /// What an `enum` may be.
    #[serde(default)]
    pub values: Vec<String>,
    /// A regular expression that text must match as a whole.
    #[serde(default)]
    pub pattern: Option<String>,
    /// The smallest number allowed.
    #[serde(default)]
    pub min: Option<f64>,
    /// The largest number allowed.
    #[serde(default)]
    pub max: Option<f64>,
}

/// Where a secret comes from: exactly one of these.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file; one trailing newline is dropped.
    File(String),
}

/// A database.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// `postgres://…` (libpq's variables, `.pgpass` and service files work) or `sqlite:…`.
    /// Over a network use `sslmode=verify-full`. Unlike libpq, a `sslrootcert` file is trusted
    /// in addition to the operating system's authorities, not in their place: `verify-ca`, which
    /// does not compare host names, then accepts any certificate that any of them has signed.
    pub url: Template,
    /// Identity, checked on every connect and on resume.
    #[serde(default)]
    pub expect: IdentityExpectation,
    /// Where the proof of a step's effect is kept: in the target database itself (default), or nowhere.
    #[serde(default)]
    pub ledger: Ledger,
}

/// Where the ledger of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ledger {
    /// Schema `runbook` (on SQLite tables `runbook_…`) in the target; effects happen exactly once.
    #[default]
    Target,
    /// Nothing is written besides the steps' own effects; an interrupted change is `unknown`.
    None,
}

/// What must be true of a database before anything runs on it.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityExpectation {
    /// Name of the database.
    pub database: Option<Setting<String>>,
    /// `primary` or `standby`.
    pub role: Option<ServerRole>,
    /// Lowest major version of the server.
    pub min_version: Option<u32>,
    /// Name of the role we are connected as.
    pub user: Option<Setting<String>>,
    /// The cluster's `system_identifier`.
    pub system_identifier: Option<Setting<String>>,
}

/// Part of a server in replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServerRole {
    /// Accepts writes.
    Primary,
    /// In recovery.
    Standby,
}

/// One step.
#[derive(Debug)]
pub struct Step {
    /// All of it.
    pub span: Span,
    /// The keys every step may have.
    pub settings: StepSettings,
    /// What it does; the span is its key's.
    pub action: Spanned<Action>,
}

/// What a failed expectation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StepSeverity {
    /// Stops the run.
    #[default]
    Error,
    /// Is recorded as a finding; the run goes on.
    Warning,
}

/// The keys every step may have.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSettings {
    /// Stable and unique, `[a-z][a-z0-9_-]*`; how everything else refers to the step.
    #[schemars(with = "String", regex(pattern = r"^[a-z][a-z0-9_-]*$"))]
    pub id: Spanned<String>,
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
    /// For people, at length.
    #[serde(default)]
    pub description: Option<String>,
    /// Ids of the steps this one waits for. Without it: the step above. `[]`: none.
    #[serde(default)]
    pub needs: Option<Vec<Spanned<String>>>,
    /// Run only if this is true; otherwise the step is skipped.
    #[serde(default)]
    pub when: Option<Expression>,
    /// One instance per item: a list, or `"{{ expression }}"` that gives one.
    #[serde(default)]
    pub for_each: Option<Setting<Vec<serde_json::Value>>>,
    /// What the item is called in expressions. Default: `item`.
    #[serde(default, rename = "as")]
    pub item_name: Option<Spanned<String>>,
    /// How many instances may run side by side.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub max_parallel: Option<u32>,
    /// The longest one attempt may take.
    #[serde(default)]
    pub timeout: Option<Setting<Duration>>,
    /// When and how a failed attempt is repeated.
    #[serde(default)]
    pub retry: Option<Retry>,
    /// What a failed expectation does: stop, or record a finding and go on.
    #[serde(default)]
    pub severity: StepSeverity,
    /// The step's failure does not stop the steps that need it.
    #[serde(default)]
    pub continue_on_error: bool,
    /// Asks a person first: a gate in front of the step, or the step itself when it has
    /// no other action.
    #[serde(default)]
    pub confirm: Option<Confirm>,
    /// A check that tells whether the effect is in place.
    #[serde(default)]
    pub done_when: Option<Check>,
    /// May simply be run again after an interruption.
    #[serde(default)]
    pub idempotent: bool,
    /// Takes the effect back.
    #[serde(default)]
    pub undo: Option<Undo>,
    /// Named expressions over the result, read as `steps.ID.outputs.NAME`.
    #[serde(default)]
    pub outputs: Named<Expression>,
    /// For `--only` and `--skip`.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// When and how a failed attempt is repeated.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts after the first. Default: 0.
    pub max: Option<u32>,
    /// Wait before the second attempt. Default: 1s.
    pub delay: Option<Duration>,
    /// What the wait is multiplied by after each attempt. Default: 2.
    pub backoff: Option<f64>,
    /// The longest wait. Default: 1m.
    pub max_delay: Option<Duration>,
    /// What is worth another attempt: classes `transient` (default), `any`, `timeout`,
    /// `connection`, `process`, `http`, `expectation`, or SQLSTATE prefixes such as `40001` or `08`.
    pub on: Option<Vec<Spanned<String>>>,
}

/// How a step's effect is taken back.
#[derive(Debug)]
pub enum Undo {
    /// By this action.
    Action(Action),
    /// Not at all, for this reason.
    Irreversible(Option<String>),
}

/// `irreversible`, `{irreversible: reason}` or an action.
impl<'de> Deserialize<'de> for Undo {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Undo;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an action, `irreversible` or `{irreversible: reason}`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Undo, E> {
                match text {
                    "irreversible" => Ok(Undo::Irreversible(None)),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Undo, A::Error> {
                match map.next_key::<String>()?.as_deref() {
                    Some("irreversible") => Ok(Undo::Irreversible(Some(map.next_value()?))),
                    Some(key) => Action::from_map(key, &mut map).map(Undo::Action),
                    None => Err(serde::de::Error::custom("an undo action is missing")),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Undo {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Undo".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let action = generator.subschema_for::<Action>();
        schemars::json_schema!({
            "description": "an action that takes the effect back, or `irreversible` with the reason",
            "anyOf": [
                { "const": "irreversible" },
                {
                    "type": "object",
                    "properties": { "irreversible": { "type": "string", "description": "Why the effect can't be taken back." } },
                    "required": ["irreversible"],
                    "additionalProperties": false
                },
                action
            ]
        })
    }
}

impl Step {
    /// Names everything the step refers to: its action, its own keys and its undo.
    pub fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        const RESULT: &[&str] = &[
            "value",
            "rows",
            "row_count",
            "rows_affected",
            "stdout",
            "stderr",
            "exit_code",
            "json",
            "http_status",
            "answer",
            "file",
            "status",
        ];
        let settings = &self.settings;
        self.action.value.inspect(inspection);
        if let Some(expression) = &settings.when {
            inspection.expression(expression);
        }
        if let Some(setting) = &settings.for_each {
            inspection.setting(setting);
        }
        if let Some(setting) = &settings.timeout {
            inspection.setting(setting);
        }
        if let Some(confirm) = &settings.confirm {
            confirm.inspect(inspection);
        }
        if let Some(check) = &settings.done_when {
            check.inspect(inspection);
        }
        if let Some(Undo::Action(action)) = &settings.undo {
            action.inspect(inspection);
        }
        for expression in settings.outputs.values() {
            inspection.decision(expression, Some(RESULT));
        }
    }
}
