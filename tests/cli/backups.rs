//! Backups while others write, while runbook is killed, and in the hands of other tools.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::TestEnv;
use crate::postgres::{Database, Server};

/// FleetNest on a server of its own, so that every database there is a matter of the test.
struct Site {
    env: TestEnv,
    server: Server,
    database: Database,
}

impl Site {
    fn new(loads: u32) -> Self {
        let mut env = TestEnv::new();
        let server = Server::builder().start();
        let database = server.createdb("fleetnest");
        env.use_database(&database);
        env.copy_from_project("examples/fleetnest");
        env.command(env.path("examples/fleetnest/generate"), ["--loads", &loads.to_string()]).run().exits(0);
        Self { env, server, database }
    }

    fn write(&self, steps: &str) {
        let head = "version: 1\nname: backups\nconnections:\n  main: {url: \"{{ env.DATABASE_URL }}\"}\nsteps:\n";
        self.env.write("backups.yaml", format!("{head}{steps}"));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.env.path("backups").join(name)
    }

    fn scratch_databases(&self) -> String {
        self.server.psql("postgres", "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE 'runbook%'")
    }

    /// What passes for a backup is one: whole, and as its checksum says.
    fn holds_no_false_backup(&self) {
        for entry in fs::read_dir(self.env.path("backups")).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "dump") {
                self.env.command("pg_restore", ["--file=/dev/null".into(), path.clone()]).run().exits(0);
                self.checksum_fits(path.file_name().unwrap().to_str().unwrap());
            }
        }
    }

    fn checksum_fits(&self, name: &str) {
        let check = format!("cd backups && sha256sum --check --strict --quiet {name}.sha256");
        self.env.command("sh", ["-c", &check]).run().exits(0);
    }
}

/// A few times in an ordinary run, 50 times with `RUNBOOK_TEST_CRASHES=all`.
fn times() -> usize {
    match std::env::var("RUNBOOK_TEST_CRASHES").as_deref() {
        Ok("all") => 50,
        Ok(count) => count.parse().expect("RUNBOOK_TEST_CRASHES is a number or `all`"),
        Err(_) => 4,
    }
}

/// Kills runs of these steps at random moments, looks at what is there, and resumes each
/// until it is done.
fn kills(steps: &str) {
    let seed = std::env::var("RUNBOOK_TEST_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap());
    let mut random = Rng::with_seed(seed);
    let site = Site::new(20_000);
    site.write(steps);
    let begun = Instant::now();
    site.env.runbook(["run", "backups.yaml"]).run().exits(0);
    let whole = begun.elapsed();
    let mut left = times();
    while left > 0 {
        let mut arguments = vec!["run", "backups.yaml"];
        loop {
            let running = site.env.runbook(arguments.clone()).spawn();
            if left == 0 {
                running.wait().exits(0);
                break;
            }
            left -= 1;
            std::thread::sleep(whole.mul_f64(random.f64()));
            // It may have ended by itself just now.
            let _ = kill(Pid::from_raw(running.pid().cast_signed()), Signal::SIGKILL);
            let ended = running.wait();
            site.holds_no_false_backup();
            if ended.code() == Some(0) {
                break;
            }
            if site.env.runbook(["list", "--json"]).run().stdout.contains("\"crashed\"") {
                arguments = vec!["resume"];
            }
        }
        assert_eq!(site.scratch_databases(), "", "RUNBOOK_TEST_SEED={seed}");
        let mut names = fs::read_dir(site.env.path("backups")).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        assert_eq!(names.find(|name| name.ends_with(".partial")), None, "RUNBOOK_TEST_SEED={seed}");
    }
    println!("{} kills of a run of {whole:?}, RUNBOOK_TEST_SEED={seed}", times());
}

#[test]
fn a_killed_dump_leaves_no_false_backup() {
    kills("  - id: dump\n    pg_dump: {file: \"backups/{{ run.id }}.dump\", with: [count, fingerprint]}\n");
}

#[test]
fn a_killed_proof_leaves_no_scratch_database() {
    kills(
        "  - id: dump\n    pg_dump: {file: \"backups/{{ run.id }}.dump\"}\n\
         \x20 - id: proof\n    verify_backup: {file: \"{{ steps.dump.file }}\", level: restore}\n",
    );
}

/// The dump, its counts and its fingerprints are of one moment, however much is written meanwhile.
#[test]
fn a_dump_under_writes_restores_to_what_its_manifest_says() {
    let site = Site::new(5_000);
    site.write(
        "  - id: dump\n    pg_dump: {file: \"backups/{{ run.id }}\", format: directory, jobs: 2, with: [count, fingerprint]}\n\
         \x20 - id: proof\n    verify_backup: {file: \"{{ steps.dump.file }}\", level: restore}\n",
    );
    let writes = "WITH gone AS (DELETE FROM fuel_expenses WHERE id = (SELECT min(id) FROM fuel_expenses) RETURNING *), \
                  changed AS (UPDATE companies SET name = name || 'x' WHERE id = (SELECT min(id::text)::uuid FROM companies) RETURNING 1) \
                  INSERT INTO user_company_roles (user_id, company_id, role) SELECT gen_random_uuid(), min(id::text)::uuid, 'driver' FROM companies \\watch 0.005\n";
    let writer = site.env.command("psql", ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", site.database.url()]).stdin(writes).spawn();
    let rows = || site.database.psql("SELECT count(*) FROM user_company_roles").parse::<u64>().unwrap();
    let first = rows();
    while rows() == first {
        std::thread::sleep(Duration::from_millis(5));
    }
    let before = rows();
    for _ in 0..3 {
        site.env.runbook(["run", "backups.yaml"]).run().exits(0);
    }
    assert!(!writer.has_ended() && rows() > before, "somebody wrote all the time");
    writer.kill();
}

/// With no runbook installed.
#[test]
fn other_tools_read_the_files() {
    let site = Site::new(400);
    site.write(
        "  - id: custom\n    pg_dump: {file: backups/custom.dump}\n\
         \x20 - id: directory\n    pg_dump: {file: backups/directory, format: directory}\n\
         \x20 - id: tar\n    pg_dump: {file: backups/fleet.tar, format: tar}\n\
         \x20 - id: plain\n    pg_dump: {file: backups/plain.sql, format: plain}\n",
    );
    site.env.runbook(["run", "backups.yaml"]).run().exits(0);
    let content = |database: &str| {
        site.server
            .psql(database, "SELECT count(*), sum(hashtextextended(l::text, 0)::numeric) FROM loads l; SELECT last_value FROM loads_id_seq")
    };
    let expected = content("fleetnest");
    for name in ["custom.dump", "directory", "fleet.tar", "plain.sql"] {
        site.checksum_fits(name);
        let database = name.replace('.', "_");
        let target = site.server.createdb(&database);
        let file = site.file(name);
        if name == "plain.sql" {
            let options = ["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", target.url(), "-f"].map(Into::into);
            site.env.command("psql", options.into_iter().chain([file])).run().exits(0);
        } else {
            let options = ["--exit-on-error", "-d", target.url()].map(Into::into);
            site.env.command("pg_restore", options.into_iter().chain([file])).run().exits(0);
        }
        assert_eq!(content(&database), expected, "{name}");
    }
    // The roles of a whole database are beside it; a server that has none of them takes them.
    let roles = site.env.read("backups/custom.dump.globals.sql");
    let other = Server::builder().start();
    other.psql("postgres", &roles.lines().filter(|line| !line.contains(" postgres")).collect::<Vec<_>>().join("\n"));
}
