//! Making a dump: one exported snapshot that `pg_dump` and the counts share, the file read
//! back, described, and only then given its name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{DumpCheck, DumpFormat, Kept, PgDump};
use crate::action::StepContext;
use crate::action::backup::archive::{self, Listing};
use crate::action::backup::checksum;
use crate::action::backup::client::{Client, MemoryFile, not_passed, succeeded};
use crate::action::backup::contents::Moment;
use crate::action::backup::manifest::{GLOBALS, Manifest, SequenceValue, Source, beside, write_private};
use crate::action::backup::partial::{BackupError, Partial, completed};
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::output::printable;
use crate::process::{Ended, Exit};
use crate::target::{Identity, SessionSettings};
use crate::template::Values;
use crate::text::count;
use crate::units::ByteSize;

/// Where nothing else is said.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// The schema of what runbook itself keeps in a database.
const OWN_SCHEMA: &str = "runbook";

pub(super) async fn dump(step: &PgDump, context: &StepContext) -> Result<StepResult, StepError> {
    let file = target(step, context)?;
    if context.uncertain
        && let Some(manifest) = completed(&file, step.format.shape(), &context.run, &context.step)
    {
        return Ok(result(&file, manifest));
    }
    let connection = context.connection(step.connection.as_ref().map(|name| name.value.as_str()))?;
    let (client, identity) = Client::find(context, connection).await?;
    let moment = moment(context, connection).await?;
    let work = Dump { step, context, client: &client, identity, moment, started: context.clock.now() };
    work.make(file).await.map_err(|error| error.aftermath(Aftermath::Unchanged))
}

struct Dump<'a> {
    step: &'a PgDump,
    context: &'a StepContext,
    client: &'a Client,
    identity: Identity,
    moment: Moment<'a>,
    started: jiff::Timestamp,
}

impl Dump<'_> {
    async fn make(mut self, file: PathBuf) -> Result<StepResult, StepError> {
        self.check_space(&file).await?;
        let snapshot = self.moment.export().await?;
        let partial = Partial::create(&file, self.step.format.shape())?;
        let warnings = self.write(&partial, &snapshot).await?;
        let listing = self.read_back(&partial).await?;
        let mut manifest = self.manifest(&file, snapshot);
        manifest.warnings = warnings;
        self.describe(&mut manifest, &partial, &listing).await?;
        self.moment.end().await;
        manifest.globals_sha256 = globals(self.step, self.context, self.client, &self.identity.database, &file).await?;
        manifest.seconds = (self.context.clock.now() - self.started).total(jiff::Unit::Second).unwrap_or_default();
        let wanted = self.step.manifest;
        let published = tokio::task::spawn_blocking(move || partial.publish(manifest, wanted)).await;
        let published = published.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?;
        Ok(result(&file, published?))
    }

    /// A dump that fails for want of space after hours is known to fail now.
    async fn check_space(&mut self, file: &Path) -> Result<(), StepError> {
        if !self.step.check_space || !self.step.is_whole() {
            return Ok(());
        }
        let Some(free) = free_space(file) else { return Ok(()) };
        let tables = self.moment.size().await?;
        let share = if matches!(self.step.format, DumpFormat::Custom | DumpFormat::Directory) { 8 } else { 2 };
        if free >= tables / share {
            return Ok(());
        }
        let message = format!("{} free where the dump shall go are probably too little", ByteSize(free));
        Err(StepError::new(ErrorKind::Io, message)
            .fact("tables", ByteSize(tables).to_string())
            .fact("expected", format!("at least {}", ByteSize(tables / share)))
            .hint("make room or dump to another disk; `check_space: false` tries it all the same"))
    }

    /// Runs `pg_dump` and shows how far it is. Gives what it warned of.
    async fn write(&self, partial: &Partial, snapshot: &str) -> Result<Vec<String>, StepError> {
        let (sender, mut lines) = unbounded_channel();
        let output = self.context.output.watched(sender);
        let ended = self.client.run(self.context, &output, argv(self.step, self.context, partial.path(), snapshot)?);
        tokio::pin!(ended);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut seen = Seen::default();
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut ended => break ended?,
                Some(line) = lines.recv() => seen.line(&line),
                _ = tick.tick() => seen.show(self.context, partial.size()),
            }
        };
        seen.rest(&mut lines);
        dumped(&ended)?;
        Ok(seen.warnings)
    }

    /// What is in it; reading an archive's table of contents alone would not notice that its
    /// end is missing.
    async fn read_back(&self, partial: &Partial) -> Result<Listing, StepError> {
        let path = partial.path();
        if self.step.format == DumpFormat::Plain {
            if !archive::is_complete_text(path).map_err(|error| not_read(&error))? {
                return Err(StepError::new(ErrorKind::Io, "the dump does not end as pg_dump ends it"));
            }
            return Listing::of_text(path).map_err(|error| not_read(&error));
        }
        if self.step.verify == DumpCheck::Archive {
            self.context.progress("reading it to its end", None);
            self.client.must(self.context, vec!["pg_restore".into(), "--file=/dev/null".into(), path.display().to_string()]).await?;
        }
        let name = path.display().to_string();
        let list =
            self.client.text(self.context, |file| vec!["pg_restore".into(), "--list".into(), format!("--file={file}"), name]).await?;
        Ok(Listing::of_archive(&list))
    }

    fn manifest(&self, file: &Path, snapshot: String) -> Manifest {
        let identity = self.identity.clone();
        Manifest {
            version: 1,
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            format: self.step.format.name().into(),
            run: self.context.run.clone(),
            step: self.context.step.clone(),
            created_at: self.started,
            program: self.client.version.clone(),
            whole: self.step.is_whole(),
            source: Source {
                database: identity.database,
                host: identity.host,
                server_version: identity.version,
                major_version: identity.major_version,
                system_identifier: identity.system_identifier,
                environment: identity.environment,
                snapshot: Some(snapshot),
                ..Source::default()
            },
            ..Manifest::default()
        }
    }

    /// Adds what the dump holds, and what the snapshot says of it.
    async fn describe(&mut self, manifest: &mut Manifest, partial: &Partial, listing: &Listing) -> Result<(), StepError> {
        manifest.objects = listing.objects();
        manifest.sequences = self.sequences(partial, listing).await?;
        manifest.source.locale = self.moment.locale().await?;
        manifest.extensions = self.moment.extensions().await?;
        self.look_for_large_objects(manifest, listing).await?;
        let tables = listing.with_rows(self.moment.tables().await?);
        if manifest.whole {
            // The server's first role depends on nothing, even where tables are its own.
            let owners = tables.iter().map(|table| table.owner.clone());
            manifest.roles = self.moment.roles().await?.into_iter().chain(owners).collect();
        }
        if tables.len() as u64 != listing.count("TABLE DATA") {
            manifest.warnings.push(format!(
                "the rows of {} tables are in the dump, but only {} of them are found in the database to be counted",
                listing.count("TABLE DATA"),
                tables.len()
            ));
        }
        let dumped: Vec<String> = tables.iter().map(|table| table.sql.clone()).collect();
        self.look_for_open_references(manifest, &dumped).await?;
        if self.step.manifest && !self.step.with.is_empty() {
            let fingerprint = self.step.with.contains(&Kept::Fingerprint);
            let mut contents = Vec::with_capacity(dumped.len());
            for (index, table) in dumped.iter().enumerate() {
                self.context.progress(format!("counting table {} of {}: {table}", index + 1, dumped.len()), None);
                contents.push(self.moment.content(table, fingerprint).await?);
            }
            manifest.tables = Some(contents);
        }
        Ok(())
    }

    /// As the dump sets them: a sequence moves on even within a snapshot.
    async fn sequences(&self, partial: &Partial, listing: &Listing) -> Result<BTreeMap<String, SequenceValue>, StepError> {
        if listing.count("SEQUENCE SET") == 0 {
            return Ok(BTreeMap::new());
        }
        if self.step.format == DumpFormat::Plain {
            return archive::sequences_of_text(partial.path()).map_err(|error| not_read(&error));
        }
        let list = MemoryFile::new(&listing.lines("SEQUENCE SET")).map_err(|error| not_passed(&error))?;
        let options = ["pg_restore".into(), format!("--use-list={}", list.name()), partial.path().display().to_string()];
        let text = self.client.text(self.context, |file| options.into_iter().chain([format!("--file={file}")]).collect()).await?;
        Ok(archive::sequences(text.lines()))
    }

    /// `pg_dump` leaves them out of a part of a database and says nothing.
    async fn look_for_large_objects(&mut self, manifest: &mut Manifest, listing: &Listing) -> Result<(), StepError> {
        let there = self.moment.large_objects().await?;
        let dumped = listing.count("BLOBS") + listing.count("BLOB METADATA") + listing.count("BLOB") > 0;
        if there > 0 && !dumped {
            let (objects, are, them) = if there == 1 { ("object", "is", "it") } else { ("objects", "are", "them") };
            manifest
                .warnings
                .push(format!("{there} large {objects} of the database {are} not in this dump; `large_objects: true` takes {them} along"));
        }
        manifest.large_objects = Some(if dumped { there } else { 0 });
        Ok(())
    }

    /// A part of a database may not be restorable by itself.
    async fn look_for_open_references(&mut self, manifest: &mut Manifest, dumped: &[String]) -> Result<(), StepError> {
        if manifest.whole {
            return Ok(());
        }
        let references = self.moment.references().await?.into_iter();
        manifest.open_references =
            references.filter(|reference| dumped.contains(&reference.table) && !dumped.contains(&reference.references)).collect();
        Ok(())
    }
}

/// What `pg_dump` has said so far.
#[derive(Default)]
struct Seen {
    tables: u64,
    table: String,
    warnings: Vec<String>,
    /// Bytes written when it was last shown.
    written: u64,
}

impl Seen {
    fn line(&mut self, line: &str) {
        let Some(text) = line.strip_prefix("pg_dump: ") else { return };
        if let Some(warning) = text.strip_prefix("warning: ") {
            self.warnings.push(printable(warning).into_owned());
        }
        if let Some(table) = text.strip_prefix("dumping contents of table ") {
            self.tables += 1;
            self.table = printable(table.trim_matches('"')).into_owned();
        }
    }

    fn rest(&mut self, lines: &mut UnboundedReceiver<String>) {
        while let Ok(line) = lines.try_recv() {
            self.line(&line);
        }
    }

    fn show(&mut self, context: &StepContext, written: u64) {
        if written == 0 {
            return;
        }
        let rate = ByteSize(written.saturating_sub(self.written));
        let table = if self.table.is_empty() { String::new() } else { format!(", table {}: {}", self.tables, self.table) };
        context.progress(format!("{} written, {rate}/s{table}", ByteSize(written)), None);
        self.written = written;
    }
}

/// A session without bounds: counting a large table takes its time, and while `pg_dump` works
/// the transaction that shares its snapshot says nothing.
async fn moment<'a>(context: &'a StepContext, connection: &str) -> Result<Moment<'a>, StepError> {
    let settings = SessionSettings { statement_timeout: None, idle_in_transaction_timeout: None, ..context.session.clone() };
    let session = tokio::select! {
        biased;
        () = context.cancel.cancelled() => return Err(StepError::new(ErrorKind::Cancelled, "stopped before the dump")),
        session = context.targets.session(connection, &context.step, &settings) => session?,
    };
    Moment::begin(context, session).await
}

fn argv(step: &PgDump, context: &StepContext, path: &Path, snapshot: &str) -> Result<Vec<String>, StepError> {
    let values: &Values = &context.values;
    let path = path.to_str().ok_or_else(|| StepError::new(ErrorKind::Io, "a backup's file name must be UTF-8"))?;
    let wait = step.lock_wait_timeout.as_ref().map(|timeout| values.setting(timeout)).transpose()?;
    let wait = wait.map_or(LOCK_WAIT, |timeout| timeout.0).as_millis().max(1);
    let mut argv = vec!["pg_dump".into(), "--no-password".into(), "--verbose".into(), format!("--snapshot={snapshot}")];
    argv.extend([format!("--format={}", step.format.name()), format!("--file={path}"), format!("--lock-wait-timeout={wait}")]);
    argv.extend(step.compress().map(|level| format!("--compress={level}")));
    argv.extend(step.connections().map(|jobs| format!("--jobs={jobs}")));
    let chosen = [
        ("schema", &step.schemas),
        ("table", &step.tables),
        ("exclude-schema", &step.exclude_schemas),
        ("exclude-table", &step.exclude_tables),
        ("exclude-table-data", &step.exclude_rows),
    ];
    for (option, templates) in chosen {
        for template in templates {
            argv.push(format!("--{option}={}", values.text(template)?));
        }
    }
    if step.schemas.is_empty() && step.tables.is_empty() {
        argv.push(format!("--exclude-schema={OWN_SCHEMA}"));
    } else {
        // A table that is not there must not be missing from the backup unnoticed.
        argv.push("--strict-names".into());
    }
    // The options' names of all versions.
    argv.extend(step.large_objects.map(|wanted| if wanted { "--blobs" } else { "--no-blobs" }.to_owned()));
    Ok(argv)
}

fn target(step: &PgDump, context: &StepContext) -> Result<PathBuf, StepError> {
    let file = context.directory.join(context.values.text(&step.file)?);
    std::path::absolute(&file).map_err(|error| StepError::new(ErrorKind::Io, format!("`{}` is not a file name: {error}", file.display())))
}

/// Writes the roles beside the dump that comes; gives the file's checksum.
async fn globals(step: &PgDump, context: &StepContext, client: &Client, database: &str, file: &Path) -> Result<Option<String>, StepError> {
    if !step.globals.unwrap_or(step.is_whole()) || !step.manifest {
        return Ok(None);
    }
    let options = ["pg_dumpall", "--no-password", "--globals-only", "--no-role-passwords"].map(str::to_owned);
    let places = |path| [format!("--database={database}"), format!("--file={path}")];
    let text = client.text(context, |path| options.into_iter().chain(places(path)).collect()).await?;
    let path = beside(file, GLOBALS);
    write_private(&path, &text).map_err(|source| BackupError::Io { path, source })?;
    Ok(Some(checksum::of_text(&text)))
}

/// Free space on the disk that will hold a file; `None`: not known.
fn free_space(file: &Path) -> Option<u64> {
    let existing = file.ancestors().skip(1).find(|directory| directory.exists())?;
    let disk = nix::sys::statvfs::statvfs(existing).ok()?;
    Some(disk.blocks_available() as u64 * disk.fragment_size() as u64)
}

/// What went wrong, with what to do about it where that is known.
fn dumped(ended: &Ended) -> Result<(), StepError> {
    let error = match succeeded("pg_dump", ended) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let said = |text: &str| ended.captured.stderr.contains(text);
    Err(if said("row-level security") {
        error.hint("dump with the tables' owner, a superuser, or a role with BYPASSRLS: a dump of the rows one role sees is no backup")
    } else if said("lock timeout") || said("due to lock timeout") {
        error.hint("somebody holds a lock on a table; `lock_wait_timeout` says how long to wait for it")
    } else if matches!(ended.exit, Exit::Signal(_)) {
        error.hint("nothing of the dump is left")
    } else {
        error
    })
}

fn result(file: &Path, manifest: Manifest) -> StepResult {
    let tables = manifest.tables.as_ref().map(Vec::len);
    let counted = match (tables, manifest.rows()) {
        (Some(tables), Some(rows)) => format!(", {} with {}", count(tables as u64, "table"), count(rows, "row")),
        _ => String::new(),
    };
    let mut findings = manifest.warnings;
    findings.extend(manifest.open_references.iter().map(|open| {
        format!(
            "{} refers to {}, which is not in this dump: restored alone, its foreign key {} is left out",
            open.table, open.references, open.constraint
        )
    }));
    StepResult {
        summary: format!("{}{counted}, sha256 {}…", ByteSize(manifest.size), &manifest.sha256[..12.min(manifest.sha256.len())]),
        file: Some(file.display().to_string()),
        json: Some(json!({
            "size": manifest.size,
            "sha256": manifest.sha256,
            "format": manifest.format,
            "tables": manifest.tables.unwrap_or_default(),
        })),
        findings,
        ..StepResult::default()
    }
}

fn not_read(error: &std::io::Error) -> StepError {
    StepError::new(ErrorKind::Io, format!("cannot read the dump back: {error}"))
}
