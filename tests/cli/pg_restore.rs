//! `pg_restore` on the FleetNest example: what comes back, what is refused, and what is left
//! when it is interrupted.

mod crashes;
mod traps;

use crate::environment::{Output, TestEnv};
use crate::postgres::{Database, database};
use crate::stock_audit::run_of;

/// The example's database, with a backup of it.
pub struct Fleet {
    pub env: TestEnv,
    pub database: Database,
}

const TABLES: &[&str] =
    &["companies", "user_company_roles", "company_payment_periods", "loads", "fuel_expenses", "driver_period_calculations"];

impl Fleet {
    pub fn new(more: &[&str]) -> Self {
        let mut env = TestEnv::new();
        let database = env.database();
        env.copy_from_project("examples/fleetnest");
        env.copy_from_project("playbooks");
        let fleet = Self { env, database };
        fleet.generate(more);
        fleet
    }

    pub fn generate(&self, arguments: &[&str]) {
        self.env.command(self.env.path("examples/fleetnest/generate"), arguments).run().exits(0);
    }

    /// A backup as the step makes it.
    pub fn backup(&self, file: &str, fields: &str) {
        self.env.write("backup.yaml", playbook(&format!("pg_dump: {{file: {file}{fields}}}")));
        self.env.runbook(["run", "backup.yaml"]).run().exits(0);
    }

    /// Restores into the database that DATABASE_URL names, or into another.
    pub fn restore(&self, into: &Database, fields: &str) -> Output {
        self.env.write("restore.yaml", playbook(&format!("pg_restore: {{{fields}}}")));
        self.env.runbook(["run", "restore.yaml", "--yes"]).env("DATABASE_URL", into.url()).run()
    }

    pub fn state(&self) -> String {
        state(&self.database)
    }
}

pub fn playbook(action: &str) -> String {
    format!(
        "version: 1\nname: tried\nconnections:\n  main: {{url: \"{{{{ env.DATABASE_URL }}}}\"}}\n\
         defaults: {{lock_timeout: 3s, statement_timeout: 60s}}\nsteps:\n  - id: it\n    {action}\n\
         \x20 - id: after\n    sql: {{query: SHOW search_path, expect: {{value: '\"$user\", public'}}}}\n"
    )
}

/// Everything that matters: rows with their contents, keys, triggers, sequences.
pub fn state(database: &Database) -> String {
    let mut state = String::new();
    for table in TABLES {
        let there = database.psql(&format!("SELECT to_regclass('public.{table}') IS NOT NULL"));
        let content = match there.as_str() {
            "t" => database.psql(&format!("SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} t")),
            _ => "gone".into(),
        };
        state += &format!("{table} {content}\n");
    }
    let more = database.psql(
        "SELECT 'keys ' || count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND convalidated \
         UNION ALL SELECT 'triggers ' || count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O' \
         UNION ALL SELECT 'indexes ' || count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE relnamespace = 'public'::regnamespace AND indisvalid \
         UNION ALL SELECT 'views ' || count(*) FROM pg_views WHERE schemaname = 'public' \
         UNION ALL SELECT sequencename || ' ' || coalesce(last_value, 0) FROM pg_sequences WHERE schemaname = 'public'",
    );
    let mut lines: Vec<&str> = more.lines().collect();
    lines.sort_unstable();
    state + &lines.join("\n")
}

#[track_caller]
pub fn says(output: &Output, texts: &[&str]) {
    let all = format!("{}{}", output.stdout, output.stderr).split_whitespace().collect::<Vec<_>>().join(" ").replace(" │ ", " ");
    for text in texts {
        assert!(all.contains(text), "nothing says {text:?} in {output}");
    }
}

#[test]
fn every_format_comes_back_into_an_empty_database() {
    let fleet = Fleet::new(&[]);
    for format in ["custom", "directory", "tar", "plain"] {
        fleet.backup(format, &format!(", format: {format}"));
        let other = database();
        let done = fleet.restore(&other, &format!("file: {format}")).exits(0);
        says(&done, &["6 tables with 1058 rows restored, counts as when it was dumped"]);
        assert_eq!(state(&other), fleet.state(), "{format}");
        assert_eq!(other.psql("SELECT count(*) FROM runbook.ledger"), "1");
    }
}

#[test]
fn nothing_is_put_over_data() {
    let fleet = Fleet::new(&[]);
    fleet.backup("a.dump", "");
    fleet.generate(&["--plant", "lost-loads"]);
    let before = fleet.state();
    let refused = fleet.restore(&fleet.database, "file: a.dump").exits(3);
    says(
        &refused,
        &[
            "what the backup holds is in the target already; nothing was changed",
            "public.loads with 267 rows",
            "view public.driver_pay",
            "`replace: true` overwrites it, after a safety dump of what is there",
        ],
    );
    assert_eq!(fleet.state(), before);
}

#[test]
fn disasters_are_undone_and_what_was_overwritten_is_kept() {
    for format in ["custom", "plain"] {
        let fleet = Fleet::new(&[]);
        let good = fleet.state();
        fleet.backup("a.dump", &format!(", format: {format}"));
        fleet.generate(&["--plant", "lost-loads", "--plant", "wrong-pay", "--plant", "orphaned-loads"]);
        let bad = fleet.state();
        assert_ne!(bad, good);
        let done = fleet.restore(&fleet.database, "file: a.dump, replace: true").exits(0);
        assert_eq!(fleet.state(), good, "{format}");
        let safety = format!("a.dump.before-{}.dump", run_of(&done));
        let other = database();
        fleet.restore(&other, &format!("file: {safety}")).exits(0);
        assert_eq!(state(&other), bad, "the safety dump holds what was overwritten");

        fleet.generate(&["--plant", "dropped-table"]);
        fleet.restore(&fleet.database, "file: a.dump, replace: true, safety_dump: kept/then.dump").exits(0);
        assert_eq!(fleet.state(), good);
        assert!(fleet.env.path("kept/then.dump.manifest.json").exists());
    }
}

#[test]
fn what_is_not_in_the_backup_is_neither_dropped_nor_broken() {
    let fleet = Fleet::new(&[]);
    fleet.backup("a.dump", "");
    fleet.database.psql("CREATE TABLE invoices (id int, load_id bigint); INSERT INTO invoices VALUES (1, 1)");
    fleet.restore(&fleet.database, "file: a.dump, replace: true").exits(0);
    assert_eq!(fleet.database.psql("SELECT count(*) FROM invoices"), "1");
    fleet.database.psql("ALTER TABLE invoices ADD FOREIGN KEY (load_id) REFERENCES loads");
    let before = fleet.state();
    let refused = fleet.restore(&fleet.database, "file: a.dump, replace: true").exits(3);
    says(&refused, &["invoices", "nothing is dropped that the backup can't bring back"]);
    assert_eq!(fleet.state(), before);
}

#[test]
fn rows_of_some_tables_come_back_and_fit() {
    let fleet = Fleet::new(&[]);
    let good = fleet.state();
    fleet.database.psql(
        "ALTER TABLE fuel_expenses DISABLE TRIGGER fuel_of_open_periods; COMMENT ON CONSTRAINT loads_period_id_fkey ON loads IS 'kept'",
    );
    let good = good.replace("triggers 2", "triggers 1");
    fleet.backup("a.dump", "");
    // What was there before goes on counting from where it is.
    fleet.database.psql("SELECT setval('loads_id_seq', 5000); DELETE FROM driver_period_calculations; ALTER TABLE fuel_expenses DISABLE TRIGGER USER; UPDATE fuel_expenses SET load_id = NULL; DELETE FROM loads WHERE id > 100");
    let done = fleet
        .restore(&fleet.database, "file: a.dump, tables: [loads, public.fuel_expenses, driver_period_calculations], replace: true")
        .exits(0);
    says(&done, &["3 tables with 938 rows restored, counts as when it was dumped"]);
    assert_eq!(fleet.state(), good.replace("loads_id_seq 400", "loads_id_seq 5000"));
    assert_eq!(fleet.database.psql("SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'loads_period_id_fkey'"), "kept");
}

#[test]
fn rows_that_do_not_fit_any_more_change_nothing() {
    let fleet = Fleet::new(&[]);
    fleet.backup("a.dump", "");
    let there = fleet.restore(&fleet.database, "file: a.dump, tables: [loads]").exits(3);
    says(&there, &["there are rows in the tables already; nothing was changed", "public.loads with 400 rows"]);
    let unknown = fleet.restore(&fleet.database, "file: a.dump, tables: [lodas], replace: true").exits(3);
    says(&unknown, &["the backup has no rows of a table `lodas`", "public.loads"]);

    fleet.database.psql("TRUNCATE fuel_expenses, loads, driver_period_calculations; DELETE FROM company_payment_periods WHERE id = 1");
    let before = fleet.state();
    let torn = fleet.restore(&fleet.database, "file: a.dump, tables: [loads, fuel_expenses], replace: true").exits(3);
    says(&torn, &["the rows of the backup do not fit the rest of the database", "is not present in table \"company_payment_periods\""]);
    assert_eq!(fleet.state(), before);

    fleet.database.psql("ALTER TABLE loads DROP COLUMN notes, ADD COLUMN weight int");
    let other = fleet.restore(&fleet.database, "file: a.dump, tables: [loads], replace: true").exits(3);
    says(&other, &["public.loads has other columns than when it was dumped", "only in the backup notes", "only in the target weight"]);
}

#[test]
fn a_stamped_database_is_overwritten_after_its_name_was_typed() {
    let fleet = Fleet::new(&[]);
    let good = fleet.state();
    fleet.backup("a.dump", "");
    fleet.generate(&["--plant", "wrong-pay"]);
    let bad = fleet.state();
    fleet.env.runbook(["stamp", "production"]).run().exits(0);
    fleet.env.write(
        "restore.yaml",
        playbook("pg_restore: {file: a.dump, replace: true}").replace("name: tried\n", "name: tried\nenvironment: production\n"),
    );
    let waiting = fleet.env.runbook(["run", "restore.yaml", "--yes"]).run().exits(5);
    assert_eq!(fleet.state(), bad);
    says(&waiting, &["Overwrite database [DATABASE] (production) with", "public.loads with 400 rows", "before this run", "made first"]);
    let run = run_of(&waiting);
    let wrong = fleet.env.runbook(["approve", &run, "it", "--text", "yes"]).run();
    assert_ne!(wrong.code(), Some(0));
    fleet.env.runbook(["approve", &run, "it", "--text", fleet.database.name(), "--as", "ada"]).run().exits(0);
    fleet.env.runbook(["resume", &run, "--yes"]).run().exits(0);
    assert_eq!(fleet.state(), good);
    assert_eq!(fleet.database.psql("SELECT name FROM runbook.environment"), "production");
}

/// Everything that a schema may hold, in a dump of somebody else's that has runbook's schema too.
#[test]
fn odd_objects_come_back_and_runbooks_own_do_not() {
    let mut env = TestEnv::new();
    let database = env.database();
    let other = crate::postgres::database();
    database.psql(
        "CREATE SCHEMA app; CREATE SCHEMA \"Odd schema\"; CREATE TYPE app.mood AS ENUM ('a;b', 'c'); CREATE DOMAIN app.positive AS int CHECK (value > 0); \
         CREATE TABLE app.t (id serial PRIMARY KEY, x app.positive DEFAULT 1, m app.mood, r int4range, note text); \
         CREATE TABLE \"Odd schema\".\"it's; \"\"odd\"\"\" (\"a b\" text); INSERT INTO \"Odd schema\".\"it's; \"\"odd\"\"\" VALUES (E'x\\n\\\\.\\n\\\\! ls\\n\\ty'), (NULL), (''); \
         INSERT INTO app.t (m, note) SELECT 'a;b', E'\\\\connect ' || n FROM generate_series(1, 50) n; \
         CREATE FUNCTION app.f(a int DEFAULT 1, b text DEFAULT 'x, y', OUT c int) LANGUAGE plpgsql AS E'BEGIN /*\\n\\\\! ls\\n-- Name: x; Type: TABLE; Schema: runbook; Owner: me\\n*/ c := 1; END'; \
         CREATE PROCEDURE app.p(x int) LANGUAGE sql AS 'SELECT 1'; CREATE AGGREGATE app.agg(int) (sfunc = int4pl, stype = int); \
         CREATE FUNCTION app.atomic() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END; \
         CREATE MATERIALIZED VIEW app.mv AS SELECT * FROM app.t; CREATE VIEW app.v AS SELECT * FROM app.mv; \
         CREATE TABLE app.parts (n int) PARTITION BY LIST (n); CREATE TABLE app.one PARTITION OF app.parts FOR VALUES IN (1); INSERT INTO app.parts VALUES (1); \
         CREATE TYPE app.pair AS (a int, b text); CREATE STATISTICS app.st ON id, x FROM app.t; CREATE POLICY pol ON app.t USING (true); \
         CREATE RULE ru AS ON INSERT TO app.v DO INSTEAD NOTHING; COMMENT ON TABLE app.t IS E'one; two\\n\\\\! ls'; \
         CREATE TABLE app.a (id int PRIMARY KEY, b int); CREATE TABLE app.b (id int PRIMARY KEY, a int REFERENCES app.a); \
         ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b; \
         ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO PUBLIC; GRANT SELECT ON app.t TO PUBLIC; \
         SELECT lo_from_bytea(0, 'abc'); CREATE SCHEMA runbook; CREATE TABLE runbook.ledger (run text, step text); INSERT INTO runbook.ledger VALUES ('x', 'y')",
    );
    let about = |database: &crate::postgres::Database| {
        database.psql(
            "SELECT (SELECT count(*) FROM app.t), (SELECT sum(hashtextextended(o::text, 0)::numeric) FROM \"Odd schema\".\"it's; \"\"odd\"\"\" o), \
             (SELECT count(*) FROM app.mv), (SELECT count(*) FROM app.parts), app.f(), app.atomic(), (SELECT count(*) FROM pg_largeobject), \
             (SELECT string_agg(proname || md5(pg_get_function_arguments(oid) || prosrc), ',' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'app'::regnamespace), \
             (SELECT count(*) FROM pg_class WHERE relnamespace = 'app'::regnamespace), nextval('app.t_id_seq'), obj_description('app.t'::regclass), \
             (SELECT count(*) FROM pg_constraint WHERE connamespace = 'app'::regnamespace)",
        )
    };
    let expected = about(&database);
    env.set("PGUSER", "postgres");
    for (file, format) in [("a.dump", "custom"), ("a.sql", "plain")] {
        let whole = format!("--format={format}");
        env.command("pg_dump", ["--dbname", database.url(), &whole, "--file", file]).run().exits(0);
        other.psql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata; DROP SCHEMA IF EXISTS app, \"Odd schema\", runbook CASCADE");
        for replace in ["", ", replace: true"] {
            env.write("restore.yaml", playbook(&format!("pg_restore: {{file: {file}, unverified: true{replace}}}")));
            env.runbook(["run", "restore.yaml"]).env("DATABASE_URL", other.url()).run().exits(0);
            assert_eq!(about(&other).replace("|52|", "|51|"), expected.replace("|52|", "|51|"), "{format}{replace}");
        }
        assert_eq!(other.psql("SELECT count(*) FROM runbook.ledger WHERE run = 'x'"), "0");
    }
}

/// The playbooks for FleetNest, on the example with a disaster in it.
fn in_production(fleet: &Fleet) -> [String; 4] {
    fleet.env.runbook(["stamp", "production"]).run().exits(0);
    ["--param".into(), "env=production".into(), "--param".into(), format!("database={}", fleet.database.name())]
}

#[test]
fn the_planned_restore_puts_a_backup_back_and_checks_it() {
    let fleet = Fleet::new(&[]);
    let good = fleet.state();
    fleet.backup("a.dump", "");
    fleet.generate(&["--plant", "lost-loads", "--plant", "wrong-pay"]);
    let production = in_production(&fleet);
    let run = ["run", "playbooks/restore.yaml", "--yes", "--param", "file=a.dump"].map(str::to_owned).into_iter().chain(production);
    let waiting = fleet.env.runbook(run).run().exits(5);
    let run = run_of(&waiting);
    fleet.env.runbook(["approve", &run, "restore", "--text", fleet.database.name(), "--as", "ada"]).run().exits(0);
    let done = fleet.env.runbook(["resume", &run]).run().exits(0);
    says(&done, &["FleetNest is restored", "1058 rows from", "What was overwritten:"]);
    assert_eq!(fleet.state(), good);
}

#[test]
fn the_emergency_restore_takes_the_newest_backup_and_tells() {
    let fleet = Fleet::new(&[]);
    let good = fleet.state();
    fleet.backup("backups/a.dump", "");
    fleet.generate(&["--plant", "lost-loads", "--plant", "wrong-pay", "--plant", "dropped-table"]);
    let bad = fleet.state();
    let production = in_production(&fleet);
    let run = ["run", "playbooks/emergency-restore.yaml"].map(str::to_owned).into_iter().chain(production);
    let waiting = fleet.env.runbook(run).run().exits(5);
    let run = run_of(&waiting);
    fleet.env.runbook(["approve", &run, "stop", "--text", "ada, 12:03", "--as", "ada"]).run().exits(0);
    let waiting = fleet.env.runbook(["resume", &run]).run().exits(5);
    says(&waiting, &["Overwrite database [DATABASE] (production) with"]);
    assert_eq!(fleet.state(), bad);
    fleet.env.runbook(["approve", &run, "restore", "--text", fleet.database.name(), "--as", "ada"]).run().exits(0);
    let done = fleet.env.runbook(["resume", &run]).run().exits(0);
    says(&done, &["FleetNest is restored", "Writing was stopped: ada, 12:03"]);
    assert_eq!(fleet.state(), good);
    let other = database();
    fleet.restore(&other, &format!("file: backups/emergency/{run}.dump")).exits(0);
    assert_eq!(state(&other), bad, "the safety dump holds what was overwritten");
}

/// It is done, whatever is found afterwards; nobody may read that nothing has happened.
#[test]
fn an_emergency_restore_that_fails_a_check_says_that_it_is_done() {
    let fleet = Fleet::new(&[]);
    fleet.database.psql("DELETE FROM user_company_roles");
    let emptied = fleet.state();
    fleet.backup("backups/a.dump", "");
    fleet.generate(&["--plant", "wrong-pay"]);
    let production = in_production(&fleet);
    let run = ["run", "playbooks/emergency-restore.yaml"].map(str::to_owned).into_iter().chain(production);
    let run = run_of(&fleet.env.runbook(run).run().exits(5));
    fleet.env.runbook(["approve", &run, "stop", "--text", "ada, 12:03", "--as", "ada"]).run().exits(0);
    fleet.env.runbook(["resume", &run]).run().exits(5);
    fleet.env.runbook(["approve", &run, "restore", "--text", fleet.database.name(), "--as", "ada"]).run().exits(0);
    let failed = fleet.env.runbook(["resume", &run]).run().exits(3);
    says(
        &failed,
        &["FleetNest is restored, but a check after it failed", "what was there before is in [DIR]/backups/emergency/[RUN].dump"],
    );
    assert_eq!(fleet.state(), emptied);
}
