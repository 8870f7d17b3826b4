//! What of a dump is in the target already, by the target's own catalogue.

use std::collections::HashSet;

use serde_json::Value;

use super::backup_file::Contents;
use crate::outcome::{Column, StepError};
use crate::sql::Created;
use crate::target::{Session, Statement, text_literal};
use crate::text::count;

/// Rows are counted up to here before anything is asked: more is "many".
const COUNTED: u64 = 100_000;
/// Named in a message.
const NAMED: usize = 20;

/// What exists.
#[derive(Debug, Default)]
pub(super) struct There {
    /// Tables, as SQL writes them.
    pub tables: Vec<String>,
    /// Views, sequences, types, routines, large objects: kind and name.
    pub others: Vec<(String, String)>,
    /// All schemas and extensions, as SQL writes them.
    pub schemas: HashSet<String>,
    pub extensions: HashSet<String>,
}

const RELATIONS: &str = "SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text \
     FROM unnest(ARRAY[{}]::text[]) WITH ORDINALITY AS wanted(name, place) \
     JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(wanted.name) \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY wanted.place";
const TYPES: &str =
    "SELECT wanted.name FROM unnest(ARRAY[{}]::text[]) AS wanted(name) WHERE pg_catalog.to_regtype(wanted.name) IS NOT NULL";
const ROUTINES: &str = "SELECT DISTINCT format('%I.%I', n.nspname, p.proname) FROM pg_catalog.pg_proc p \
     JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE format('%I.%I', n.nspname, p.proname) = ANY (ARRAY[{}]::text[])";
const LARGE_OBJECTS: &str = "SELECT oid::text FROM pg_catalog.pg_largeobject_metadata WHERE oid::text = ANY (ARRAY[{}]::text[])";

impl There {
    /// Asks the catalogue.
    pub(super) async fn look(session: &mut Session, contents: &Contents) -> Result<Self, StepError> {
        let mut there = Self {
            schemas: names(session, "SELECT format('%I', nspname) FROM pg_catalog.pg_namespace").await?.into_iter().collect(),
            extensions: names(session, "SELECT format('%I', extname) FROM pg_catalog.pg_extension").await?.into_iter().collect(),
            ..Self::default()
        };
        let of = |kinds: &[&str]| -> Vec<String> {
            contents.created.iter().filter(|one| kinds.contains(&one.kind)).map(|one| one.name.clone()).collect()
        };
        let relations = of(&["TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "FOREIGN TABLE"]);
        for row in rows(session, &among(RELATIONS, &relations)).await? {
            let kind = match text(row.get(1)).as_str() {
                "r" | "p" => {
                    there.tables.push(text(row.first()));
                    continue;
                }
                "v" => "VIEW",
                "m" => "MATERIALIZED VIEW",
                "S" => "SEQUENCE",
                "f" => "FOREIGN TABLE",
                _ => continue,
            };
            there.others.push((kind.into(), text(row.first())));
        }
        for (kind, query, wanted) in [
            ("TYPE", TYPES, of(&["TYPE", "DOMAIN"])),
            ("FUNCTION", ROUTINES, of(&["FUNCTION", "PROCEDURE", "AGGREGATE"])),
            ("LARGE OBJECT", LARGE_OBJECTS, contents.large_objects.clone()),
        ] {
            there.others.extend(names(session, &among(query, &wanted)).await?.into_iter().map(|name| (kind.to_owned(), name)));
        }
        there.tables.dedup();
        Ok(there)
    }

    /// Whether the target has nothing of the dump.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.others.is_empty()
    }

    /// Whether a statement makes or describes what every database may have.
    pub(super) fn makes_needless(&self, statement: &str, created: Option<&Created>) -> bool {
        match created {
            Some(Created { kind: "SCHEMA", name, .. }) => self.schemas.contains(name),
            Some(Created { kind: "EXTENSION", name, .. }) => self.extensions.contains(name),
            _ => statement
                .strip_prefix("COMMENT ON EXTENSION ")
                .and_then(|rest| rest.split_whitespace().next())
                .is_some_and(|name| self.extensions.contains(name)),
        }
    }

    /// Tables with their rows and everything else, for people.
    pub(super) async fn described(&self, session: &mut Session) -> Result<Vec<String>, StepError> {
        let mut lines = Vec::new();
        for table in self.tables.iter().take(NAMED) {
            let query = format!("SELECT count(*) FROM (SELECT FROM ONLY {table} LIMIT {}) AS first", COUNTED + 1);
            let rows = rows(session, &query).await?.first().and_then(|row| row.first()?.as_u64()).unwrap_or_default();
            lines.push(if rows > COUNTED {
                format!("{table} with more than {COUNTED} rows")
            } else {
                format!("{table} with {}", count(rows, "row"))
            });
        }
        if self.tables.len() > NAMED {
            lines.push(format!("{} more tables", self.tables.len() - NAMED));
        }
        lines.extend(self.others.iter().take(NAMED).map(|(kind, name)| format!("{} {name}", kind.to_lowercase())));
        if self.others.len() > NAMED {
            lines.push(format!("{} more objects", self.others.len() - NAMED));
        }
        Ok(lines)
    }
}

/// One statement that drops everything of the dump that is there: in the order that works, and
/// nothing that the dump does not bring back. `None`: there is nothing to drop.
pub(super) fn drop_all(there: &There, contents: &Contents) -> Option<String> {
    let mut commands = Vec::new();
    if !there.tables.is_empty() {
        commands.push(format!("DROP TABLE {}", there.tables.join(", ")));
    }
    for (kind, name) in &there.others {
        match kind.as_str() {
            // They are dropped by what the dump says they are; see below.
            "TYPE" | "FUNCTION" => {}
            "LARGE OBJECT" => commands.push(format!("SELECT pg_catalog.lo_unlink({name})")),
            kind => commands.push(format!("DROP {kind} IF EXISTS {name}")),
        }
    }
    for one in &contents.created {
        match one.kind {
            "TABLE" | "VIEW" | "MATERIALIZED VIEW" | "SEQUENCE" | "FOREIGN TABLE" => {}
            // Every database may have them, and more than the dump may need them.
            "SCHEMA" | "EXTENSION" | "ACCESS METHOD" | "SUBSCRIPTION" => {}
            kind => {
                let arguments = one.arguments.as_ref().map_or_else(String::new, |arguments| format!("({arguments})"));
                commands.push(format!("DROP {kind} IF EXISTS {}{arguments}", one.name));
            }
        }
    }
    (!commands.is_empty()).then(|| in_any_order(&commands))
}

/// Drops again and again what nothing depends on any more, without ever a CASCADE.
fn in_any_order(commands: &[String]) -> String {
    let list: Vec<String> = commands.iter().map(|command| text_literal(command)).collect();
    let list = list.join(", ");
    let mut tag = "$runbook$".to_owned();
    while list.contains(&tag) {
        tag.insert(1, 'x');
    }
    format!(
        "DO {tag} DECLARE commands text[] := ARRAY[{list}]; kept text[]; command text; reason text; about text; \
         BEGIN SET LOCAL client_min_messages = warning; LOOP kept := '{{}}'; \
         FOREACH command IN ARRAY commands LOOP BEGIN EXECUTE command; \
         EXCEPTION WHEN dependent_objects_still_exist THEN \
         IF kept = '{{}}' THEN GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT, about = PG_EXCEPTION_DETAIL; END IF; kept := kept || command; \
         WHEN undefined_object OR undefined_table OR undefined_function OR invalid_schema_name THEN NULL; END; END LOOP; \
         EXIT WHEN cardinality(kept) = 0; \
         IF cardinality(kept) = cardinality(commands) THEN \
         RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist', MESSAGE = reason, DETAIL = about; END IF; \
         commands := kept; END LOOP; END {tag}"
    )
}

/// Roles of the dump that the server does not have.
pub(super) async fn missing_roles(session: &mut Session, contents: &Contents) -> Result<Vec<String>, StepError> {
    let wanted: Vec<String> = contents.roles.iter().cloned().collect();
    let query = "SELECT wanted.name FROM unnest(ARRAY[{}]::text[]) AS wanted(name) \
                 WHERE wanted.name NOT LIKE 'pg\\_%' AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = wanted.name)";
    names(session, &among(query, &wanted)).await
}

fn among(query: &str, names: &[String]) -> String {
    let list: Vec<String> = names.iter().map(|name| text_literal(name)).collect();
    query.replacen("{}", &list.join(", "), 1)
}

async fn names(session: &mut Session, query: &str) -> Result<Vec<String>, StepError> {
    Ok(rows(session, query).await?.iter().map(|row| text(row.first())).collect())
}

/// What a query gives, whether or not a transaction is open.
pub(super) async fn rows(session: &mut Session, query: &str) -> Result<Vec<Vec<Value>>, StepError> {
    let mut rows = Vec::new();
    let mut keep = |_: &[Column], row: Vec<Value>| rows.push(row);
    session.execute(&Statement::query(query), &mut keep).await?;
    Ok(rows)
}

pub(super) fn text(cell: Option<&Value>) -> String {
    cell.and_then(Value::as_str).unwrap_or_default().to_owned()
}
