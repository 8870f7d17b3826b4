//! A backup restored into a database that exists for nothing else, and is dropped whatever
//! comes of it: at the end, or when the step is run again after a crash.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::archive::PLAIN;
use super::{Restored, VerifyBackup, compare, moved};
use crate::action::backup::archive::Listing;
use crate::action::backup::catalogue::Backup;
use crate::action::backup::checksum;
use crate::action::backup::client::{Client, MemoryFile, not_passed, succeeded};
use crate::action::backup::contents::Moment;
use crate::action::backup::manifest::{Manifest, schema_and_name};
use crate::action::effect::cancellable;
use crate::action::pg_restore::PgRestore;
use crate::action::{Perform, StepContext};
use crate::outcome::{Column, ErrorKind, StepError};
use crate::source::{Span, Spanned};
use crate::target::{Session, SessionSettings, Statement, Targets, identifier, text_literal};
use crate::template::Template;

/// What a scratch database's name begins with.
const PREFIX: &str = "runbook_verify_";
/// Where nothing else is said.
const JOBS: u32 = 2;

/// Restores, compares, asks, and drops the scratch database again.
pub(super) async fn restore(step: &VerifyBackup, context: &StepContext, backup: &Backup, listing: &Listing) -> Result<Restored, StepError> {
    let connection = context.connection(step.fields.connection.as_ref().map(|name| name.value.as_str()))?;
    let (mut client, _) = Client::find(context, connection).await?;
    let database = scratch_name(context);
    client.database(&database);
    let mut server = Server { context, session: session(context, &context.targets, connection).await? };
    server.can_take(step, &backup.manifest).await?;
    server.create(&database, &backup.manifest).await?;
    let scratch = Scratch {
        step,
        context,
        backup,
        listing,
        connection,
        client: &client,
        targets: context.targets.in_database(connection, &database)?,
    };
    let outcome = scratch.all().await;
    scratch.targets.close().await;
    let dropped = server.drop(&database).await;
    match (outcome, dropped) {
        (Ok(restored), Ok(())) => Ok(restored),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), dropped) => Err(match dropped {
            Ok(()) => error,
            Err(left) => error.fact("left behind", format!("database {database}: {}", left.message)),
        }),
    }
}

/// The same for every attempt of this step in this run, so that a leftover is found.
pub(super) fn scratch_name(context: &StepContext) -> String {
    format!("{PREFIX}{}", &checksum::of_text(&format!("{}/{}", context.run, context.step))[..16])
}

/// Without bounds, for restoring and counting take their time.
async fn session(context: &StepContext, targets: &Targets, connection: &str) -> Result<Session, StepError> {
    let settings = SessionSettings { statement_timeout: None, idle_in_transaction_timeout: None, ..context.session.clone() };
    tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(StepError::new(ErrorKind::Cancelled, "stopped before the restore")),
        session = targets.session(connection, &context.step, &settings) => Ok(session?),
    }
}

/// The server that takes the scratch database.
struct Server<'a> {
    context: &'a StepContext,
    session: Session,
}

impl Server<'_> {
    /// What the server lacks is told before anything is created.
    async fn can_take(&mut self, step: &VerifyBackup, manifest: &Manifest) -> Result<(), StepError> {
        let roles = self.names("SELECT rolname::text FROM pg_roles").await?;
        let missing: Vec<&str> = manifest.roles.iter().filter(|role| !roles.contains(*role)).map(String::as_str).collect();
        if !missing.is_empty() && (step.fields.owner || step.fields.privileges) {
            return Err(StepError::new(ErrorKind::Expectation, format!("the server does not know {}", named("role", &missing)))
                .fact("needed by", "owners and grants in the backup")
                .hint("create the roles, e.g. with the FILE.globals.sql beside the backup; a new server needs them too")
                .hint("`owner: false` and `privileges: false` restore without them"));
        }
        let available = self.names("SELECT name::text FROM pg_available_extensions").await?;
        let missing: Vec<&str> = manifest.extensions.keys().filter(|name| !available.contains(*name)).map(String::as_str).collect();
        if !missing.is_empty() && manifest.objects.contains_key("EXTENSION") {
            return Err(StepError::new(ErrorKind::Expectation, format!("the server lacks {}", named("extension", &missing)))
                .hint("install it there, or restore on another server with `connection`"));
        }
        Ok(())
    }

    /// A database that sorts and stores as the one the backup was made of.
    async fn create(&mut self, database: &str, manifest: &Manifest) -> Result<(), StepError> {
        self.drop(database).await?;
        let locale: Vec<String> =
            manifest.source.locale.iter().map(|(option, value)| format!(" {option} {}", text_literal(value))).collect();
        let made = self.change(&format!("CREATE DATABASE {} TEMPLATE template0{}", identifier(database), locale.concat())).await;
        made.map_err(|error| {
            error.hint(
                "verifying needs a role that may create databases (ALTER ROLE … CREATEDB), here or on another server with `connection`",
            )
        })?;
        let comment = format!("scratch database of runbook, run {}; may be dropped when the run has ended", self.context.run);
        self.change(&format!("COMMENT ON DATABASE {} IS {}", identifier(database), text_literal(&comment))).await
    }

    /// Also when the step is stopped: nothing shall be left behind.
    async fn drop(&mut self, database: &str) -> Result<(), StepError> {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(database));
        self.session.execute(&Statement::change(&drop), &mut |_, _| ()).await?;
        Ok(())
    }

    async fn change(&mut self, sql: &str) -> Result<(), StepError> {
        let canceller = self.session.canceller();
        let statement = Statement::change(sql);
        cancellable(&canceller, &self.context.cancel, self.session.execute(&statement, &mut |_, _| ())).await?;
        Ok(())
    }

    async fn names(&mut self, query: &str) -> Result<BTreeSet<String>, StepError> {
        let mut names = BTreeSet::new();
        let mut keep = |_: &[Column], row: Vec<Value>| names.extend(row.first().and_then(Value::as_str).map(str::to_owned));
        self.session.execute(&Statement::query(query), &mut keep).await?;
        Ok(names)
    }
}

/// The scratch database.
struct Scratch<'a> {
    step: &'a VerifyBackup,
    context: &'a StepContext,
    backup: &'a Backup,
    listing: &'a Listing,
    connection: &'a str,
    client: &'a Client,
    targets: Targets,
}

impl Scratch<'_> {
    async fn all(&self) -> Result<Restored, StepError> {
        let started = Instant::now();
        self.fill().await?;
        let seconds = started.elapsed().as_secs_f64();
        self.context.progress("comparing it with the manifest", None);
        let mut moment = Moment::begin(self.context, session(self.context, &self.targets, self.connection).await?).await?;
        let compared = compare::compare(self.step, self.context, &self.backup.manifest, &mut moment, self.client).await;
        moment.end().await;
        let mut findings = compared?;
        findings.extend(self.left_out());
        for check in &self.step.fields.checks {
            check.ask(&moved(self.context, &self.targets, self.connection)).await?;
        }
        Ok(Restored { seconds, findings })
    }

    async fn fill(&self) -> Result<(), StepError> {
        let manifest = &self.backup.manifest;
        if !manifest.whole {
            self.create_schemas().await?;
        }
        if manifest.format == PLAIN {
            return self.fill_with_text().await;
        }
        let list = MemoryFile::new(&self.listing.without_open_references(manifest)).map_err(|error| not_passed(&error))?;
        let mut argv: Vec<String> = ["pg_restore", "--no-password", "--exit-on-error", "--verbose"].map(str::to_owned).into();
        argv.push(format!("--dbname={}", scratch_name(self.context)));
        argv.push(format!("--use-list={}", list.name()));
        argv.extend((!self.step.fields.owner).then(|| "--no-owner".to_owned()));
        argv.extend((!self.step.fields.privileges).then(|| "--no-privileges".to_owned()));
        let jobs = self.step.fields.jobs.as_ref().map_or(JOBS, |jobs| jobs.value);
        // Neither tar archives nor SQL text can be read from several places at once.
        if matches!(manifest.format.as_str(), "custom" | "directory") && jobs > 1 {
            argv.push(format!("--jobs={jobs}"));
        }
        argv.push(self.backup.path.display().to_string());
        let ended = self.watched(argv).await?;
        succeeded("pg_restore", &ended).map_err(|error| not_restored(error, &ended.captured.stderr))
    }

    /// SQL text goes over our own connection, for `psql` would obey the commands in it.
    async fn fill_with_text(&self) -> Result<(), StepError> {
        let file = Spanned::new(self.backup.path.display().to_string(), Span::default());
        let file = Template::parse(file).map_err(|problem| StepError::new(ErrorKind::Io, problem))?;
        let restore = PgRestore::into_empty(file, self.step.fields.owner, self.step.fields.privileges);
        let restored = Box::pin(restore.run(&moved(self.context, &self.targets, self.connection))).await;
        restored.map(|_| ()).map_err(|error| match error.kind {
            ErrorKind::Sql => not_restored(StepError { kind: ErrorKind::Process, ..error }, ""),
            _ => error,
        })
    }

    /// Runs `pg_restore` and shows at which table it is.
    async fn watched(&self, argv: Vec<String>) -> Result<crate::process::Ended, StepError> {
        let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel::<String>();
        let output = self.context.output.watched(sender);
        let ended = self.client.run(self.context, &output, argv);
        tokio::pin!(ended);
        let all = self.backup.manifest.tables.as_ref().map_or(0, Vec::len) as u64;
        let mut tables = 0;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                ended = &mut ended => return ended,
                Some(line) = lines.recv() => tables += u64::from(line.contains("processing data for table")),
                _ = tick.tick() => self.context.progress(format!("restoring, table {tables} of {all}"), None),
            }
        }
    }

    /// `pg_dump` of some tables does not create the schemas they are in.
    async fn create_schemas(&self) -> Result<(), StepError> {
        let mut session = session(self.context, &self.targets, self.connection).await?;
        let tables = self.backup.manifest.tables.iter().flatten();
        for schema in tables.map(|table| schema_and_name(&table.table).0).collect::<BTreeSet<_>>() {
            session.execute(&Statement::change(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")), &mut |_, _| ()).await?;
        }
        Ok(())
    }

    /// What a part of a database can't have when it is restored alone.
    fn left_out(&self) -> impl Iterator<Item = String> {
        self.backup.manifest.open_references.iter().map(|open| {
            format!("restored without the foreign key {} of {}: {} is not in the backup", open.constraint, open.table, open.references)
        })
    }
}

/// `the role a`, `the roles a, b`
fn named(what: &str, names: &[&str]) -> String {
    format!("the {what}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// The errors of a restore that have a known way out.
fn not_restored(error: StepError, said: &str) -> StepError {
    if error.kind != ErrorKind::Process {
        return error;
    }
    let mut failed = StepError::new(ErrorKind::Expectation, "the backup can't be restored");
    failed.facts.push(("because".into(), error.message));
    failed.facts.extend(error.facts);
    if said.contains("role \"") && said.contains("does not exist") {
        failed = failed
            .hint("create the roles, e.g. with the FILE.globals.sql beside the backup, or set `owner: false` and `privileges: false`");
    } else if said.contains("does not exist") {
        failed = failed
            .hint("a dump of some tables lacks what they need: types, functions, other tables; dump the schema or the whole database");
    }
    failed
}
