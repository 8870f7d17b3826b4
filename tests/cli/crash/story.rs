//! The two playbooks the matrix crashes, and how to tell what they did.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::history::sqlite_file;
use super::hook::Hook;
use crate::environment::TestEnv;
use crate::postgres::Server;

/// A run's surroundings: nothing in it is shared with another case.
pub struct Place<'a> {
    pub env: TestEnv,
    pub server: &'a Server,
    pub database: String,
    pub hook: Hook,
}

impl<'a> Place<'a> {
    /// With a copy of a database.
    pub fn new(server: &'a Server, template: &str, database: &str) -> Self {
        server.psql("postgres", &format!("CREATE DATABASE {database} TEMPLATE {template}"));
        let mut env = TestEnv::new();
        env.set("DATABASE_URL", &server.url(database));
        Self { env, server, database: database.into(), hook: Hook::start() }
    }

    pub fn psql(&self, sql: &str) -> String {
        self.server.psql(&self.database, sql)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.server.psql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.database));
        }
    }
}

/// What the matrix must know of a playbook.
pub trait Story: Sync {
    /// Makes the database that every case copies.
    fn template(&self, server: &Server, name: &str);
    /// Puts everything else in its place.
    fn prepare(&self, place: &Place);
    /// `runbook …`
    fn arguments(&self, place: &Place) -> Vec<String>;
    /// What a person types at a gate, by step.
    fn answers(&self, place: &Place) -> Vec<(&'static str, String)>;
    /// What a person finds who looks whether the effect of an interrupted step is in place.
    fn is_in_place(&self, place: &Place, step: &str) -> bool;
    /// Traces that a second run of a step would leave, by step.
    fn traces(&self, place: &Place) -> BTreeMap<String, String>;
    /// Takes back what closing steps did whenever a failure ended the run.
    fn forget_failures(&self, _place: &Place, _failures: usize) {}
    /// All that must be as if nothing had happened.
    fn world(&self, place: &Place) -> String;
}

/// One playbook of every action and every key that matters here.
pub struct EveryAction;

impl Story for EveryAction {
    fn template(&self, server: &Server, name: &str) {
        server.psql("postgres", &format!("CREATE DATABASE {name}"));
        server.psql(name, "CREATE TABLE marks (step text NOT NULL); CREATE TABLE loaded (n integer PRIMARY KEY)");
    }

    fn prepare(&self, place: &Place) {
        let env = &place.env;
        env.copy_from_project("tests/cli/crash/every_action");
        std::fs::create_dir(env.path("log")).unwrap();
        env.write("rows.csv", (0..3000).fold("n\n".to_owned(), |rows, n| rows + &format!("{n}\n")));
        sqlite_file(&env.path("side.db"), "CREATE TABLE marks (step TEXT NOT NULL); CREATE TABLE loaded (n INTEGER PRIMARY KEY)");
    }

    fn arguments(&self, place: &Place) -> Vec<String> {
        let hook = format!("hook={}", place.hook.url());
        ["run", "tests/cli/crash/every_action/every-action.yaml", "--yes", "--param", &hook].map(Into::into).into()
    }

    fn answers(&self, _place: &Place) -> Vec<(&'static str, String)> {
        vec![("typed", "go".into()), ("observed", "refused".into())]
    }

    fn is_in_place(&self, place: &Place, step: &str) -> bool {
        self.traces(place).contains_key(step)
    }

    fn traces(&self, place: &Place) -> BTreeMap<String, String> {
        let mut traces = BTreeMap::new();
        for line in place.psql("SELECT step, count(*) FROM marks GROUP BY step").lines() {
            let (step, count) = line.split_once('|').unwrap();
            traces.insert(step.to_owned(), format!("{count} rows"));
        }
        // What the instances of `each` are called, by their rows.
        for (index, letter) in ["a", "b", "c", "d"].into_iter().enumerate() {
            if let Some(count) = traces.remove(&format!("each {letter}")) {
                traces.insert(format!("each[{index}]"), count);
            }
        }
        for entry in std::fs::read_dir(place.env.path("log")).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let step = match name.as_str() {
                "lock" | "overlap" => continue,
                "nested-shell" => "nested/shell".into(),
                "nested-argv" => "nested/shell_by_name".into(),
                _ => name.clone(),
            };
            // A script that is killed may have made the file and not yet written to it.
            match std::fs::read_to_string(entry.path()).unwrap().lines().count() {
                0 => {}
                count => drop(traces.insert(step, format!("{count} lines"))),
            }
        }
        let side = sqlite_file(&place.env.path("side.db"), "SELECT count(*) FROM marks WHERE step = 'side_exec'");
        if side != "0" {
            traces.insert("side_exec".into(), format!("{side} rows"));
        }
        if place.psql("SELECT count(*) FROM loaded") != "0" {
            let noted = place.psql("SELECT (SELECT count(*) FROM loaded), count(*), count(DISTINCT key) FROM runbook.imported");
            traces.insert("load".into(), noted);
        }
        if sqlite_file(&place.env.path("side.db"), "SELECT count(*) FROM loaded") != "0" {
            let noted = "SELECT (SELECT count(*) FROM loaded), count(*), count(DISTINCT key) FROM runbook_imported";
            traces.insert("side_load".into(), sqlite_file(&place.env.path("side.db"), noted));
        }
        for (step, path) in [("post", "/post"), ("tell", "/notify")] {
            match place.hook.count(path) {
                0 => {}
                count => drop(traces.insert(step.into(), format!("{count} requests"))),
            }
        }
        let index = place.psql("SELECT oid FROM pg_class WHERE relname = 'marks_step'");
        if !index.is_empty() {
            traces.insert("index".into(), format!("object {index}"));
        }
        for (step, file) in [("dump", "dumps/catalogue.dump"), ("dump_directory", "dumps/catalogue")] {
            if let Some(identity) = identity_of(&place.env.path(file)) {
                traces.insert(step.into(), identity);
            }
        }
        traces
    }

    fn forget_failures(&self, place: &Place, failures: usize) {
        let tidied = place.env.read("log/tidy").lines().count();
        assert!(tidied >= 1 && tidied <= 1 + failures, "`tidy` ran {tidied} times after {failures} failures");
        place.env.write("log/tidy", "done\n");
        let mourned = place
            .psql("DELETE FROM marks WHERE step = 'mourn' RETURNING step; DELETE FROM runbook.ledger WHERE step ~ '^mourn(#|$)'")
            .lines()
            .count();
        assert!(mourned <= failures, "`mourn` ran {mourned} times after {failures} failures");
    }

    fn world(&self, place: &Place) -> String {
        let mut traces = self.traces(place);
        // A message may be sent again after an interruption, as the action's reference says; objects and files
        // are other ones in every run.
        for step in ["tell", "index", "dump", "dump_directory"] {
            assert!(traces.remove(step).is_some(), "{step} left no trace");
        }
        assert!(!place.env.path("log/overlap").exists(), "an attempt began while the one before was still running");
        let traces: String = traces.iter().map(|(step, trace)| format!("{step}: {trace}\n")).collect();
        format!("{traces}{}{}", database(place, &[]), files(&place.env.path("dumps")))
    }
}

/// What the guide's pre-deployment part is made of, on data with some problems in them.
pub struct PreDeploy;

impl Story for PreDeploy {
    fn template(&self, server: &Server, name: &str) {
        server.psql("postgres", &format!("CREATE DATABASE {name}"));
        let generate = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/stock-audit/generate");
        let mut command = Command::new(generate);
        command.args(["--racks", "60", "--sessions", "4", "--users", "12"]);
        for problem in ["missing-indexes", "invalid-index", "users-without-locations", "active-session"] {
            command.args(["--plant", problem]);
        }
        let output = command.env("DATABASE_URL", server.url(name)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn prepare(&self, place: &Place) {
        place.env.copy_from_project("playbooks");
        // A copy of a database is not the database that was stamped.
        place.env.runbook(["stamp", "staging"]).run().exits(0);
    }

    fn arguments(&self, place: &Place) -> Vec<String> {
        let mut arguments = vec!["run".to_owned(), "playbooks/pre-deploy.yaml".into(), "--yes".into()];
        let params = [
            "env=staging",
            "release=2.4.0",
            "maintenance_at=22:00 UTC",
            "default_location=LDN",
            &format!("database={}", place.database),
            &format!("webhook={}/notify", place.hook.url()),
        ];
        arguments.extend(params.iter().flat_map(|param| ["--param".to_owned(), (*param).to_owned()]));
        arguments
    }

    fn answers(&self, place: &Place) -> Vec<(&'static str, String)> {
        vec![("interrupt_work", "interrupt".into()), ("go", place.database.clone())]
    }

    fn is_in_place(&self, _place: &Place, step: &str) -> bool {
        panic!("every step of this playbook says itself how to go on, but {step} does not")
    }

    fn traces(&self, place: &Place) -> BTreeMap<String, String> {
        let tables = "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_class WHERE relname LIKE 'deployment_%' AND relkind = 'r'";
        let mut queries = vec![format!("SELECT 'deployment_records', ({tables})")];
        for index in ["scans_session_scanner", "scans_created", "racks_session_scanner", "racks_status", "users_location_ids"] {
            let object = format!("SELECT indexrelid::text FROM pg_index WHERE indexrelid = to_regclass('idx_{index}') AND indisvalid");
            queries.push(format!("SELECT 'index_{index}', ({object})"));
        }
        // The transaction that wrote the rows.
        if !place.psql("SELECT to_regclass('deployment_location_fixes')").is_empty() {
            for (step, table) in [
                ("record_counts", "deployment_counts"),
                ("record_assignments", "deployment_assignments"),
                ("give_locations", "deployment_location_fixes"),
            ] {
                queries.push(format!("SELECT '{step}', (SELECT string_agg(DISTINCT xmin::text, ' ') FROM {table})"));
            }
        }
        let answer = place.psql(&queries.join(" UNION ALL "));
        let found = answer.lines().filter_map(|line| line.split_once('|')).filter(|(_, trace)| !trace.is_empty());
        let mut traces: BTreeMap<String, String> = found.map(|(step, trace)| (step.into(), trace.into())).collect();
        for entry in std::fs::read_dir(place.env.path("backups")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let step = if name.ends_with("_full.dump") {
                "full_dump"
            } else if name.ends_with("_critical_tables.sql") {
                "critical_tables_dump"
            } else {
                continue;
            };
            traces.insert(step.into(), identity_of(&entry.path()).unwrap());
        }
        traces
    }

    fn world(&self, place: &Place) -> String {
        format!("{}{}", database(place, &["recorded_at", "fixed_at"]), files(&place.env.path("backups")))
    }
}

/// A file that is written again is another one.
fn identity_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = path.metadata().ok()?;
    Some(format!("file {} of {}.{}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Every row of every table, every relation, and which steps the ledger holds. A server that
/// crashed leaves temporary tables in its catalogue whose files are gone.
fn database(place: &Place, volatile_columns: &[&str]) -> String {
    let tables = place.psql("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'runbook') AND schemaname NOT LIKE 'pg\\_temp\\_%' ORDER BY 1");
    let without = volatile_columns.iter().map(|column| format!("'{column}'")).collect::<Vec<_>>().join(", ");
    let rows = tables.lines().map(|table| {
        format!("SELECT '{table} ' || count(*) || ' ' || coalesce(md5(string_agg(r, E'\\n' ORDER BY r)), '') FROM (SELECT (to_jsonb(t) - ARRAY[{without}]::text[])::text AS r FROM {table} t) x;")
    });
    let relations = "SELECT c.relkind::text || ' ' || c.relname || coalesce(' valid ' || i.indisvalid, '') FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid \
                     WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1;";
    let ledger = "SELECT 'ledger ' || string_agg(step, ' ' ORDER BY step) FROM (SELECT regexp_replace(step, '#[0-9]+$', '') AS step FROM runbook.ledger) AS without_rounds;";
    let mut text = place.psql(&format!("{}{relations}{ledger}", rows.collect::<String>()));
    text.push('\n');
    text
}

/// The names of all files below a directory, runs in them left out; dumps can be read to their end.
/// A directory dump's data files are named by a count of all objects, with the namespaces that every
/// server process leaves behind which has ever made a temporary table.
fn files(directory: &Path) -> String {
    let mut names = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display())).flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path.clone());
            }
            if path.extension().is_some_and(|extension| extension == "dump") {
                // The one that belongs to the server: an older one does not know the file's version.
                let path_of_programs = format!("{}:/usr/bin:/bin", crate::postgres::bin_dir().display());
                let output = Command::new("pg_restore").env("PATH", path_of_programs).arg("--file=/dev/null").arg(&path).output().unwrap();
                assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
            }
            names.push(path.strip_prefix(directory).unwrap().display().to_string());
        }
    }
    names.sort();
    let changing = regex::Regex::new(r"\d{8}-\d{6}-[0-9a-z]{4}|\d+(?P<data>\.dat\.gz)").unwrap();
    names.iter().map(|name| format!("file {}\n", changing.replace_all(name, "[]$data"))).collect()
}
