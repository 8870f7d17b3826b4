//! `prune_backups`: old backups go, but never the last ones that are proven.
//!
//! Only what has a manifest is a backup here; whatever else lies in the directory is left
//! alone. Whether a backup is good is `verify_backup`'s business.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::backup::catalogue::{Backup, Catalogue, catalogue};
use super::backup::checksum::Shape;
use super::backup::manifest::{CHECKSUM, GLOBALS, Level, MANIFEST, VERIFIED, beside};
use super::written::{shown, shown_setting};
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::outcome::{Column, ErrorKind, StepError, StepResult};
use crate::template::{Place, Setting, Template, Values};
use crate::text::count;
use crate::units::ByteSize;

/// What a manifest is called once its backup is being removed; a later step finishes that.
const REMOVING: &str = ".removing.json";

/// Removes backups that are older than needed.
///
/// Backups of one database made by one step are a series; each is judged by itself, newest
/// first. A backup goes only if it is older than `keep_days`, is not among the newest
/// `keep_last`, a newer one of its series is proven (`verify_backup`, at least at the level
/// `proven`), and at least `minimum_redundancy` proven ones stay. Files without a manifest,
/// and links, are never touched.
///
/// ```yaml
/// prune_backups: {dir: backups, keep_days: 7, minimum_redundancy: 2}
/// prune_backups: {dir: backups, keep_days: 30, keep_last: 5, proven: restore, dry_run: true}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneBackups {
    /// The directory; relative to where runbook is run.
    pub dir: Template,
    /// Younger backups stay.
    pub keep_days: Setting<u32>,
    /// So many of the newest of each series stay, however old. Default: 1.
    #[serde(default)]
    pub keep_last: Option<Setting<u32>>,
    /// So many proven backups of each series stay. Default: 2.
    #[serde(default)]
    pub minimum_redundancy: Option<Setting<u32>>,
    /// How a backup must have been proven to count. Default: `archive`.
    #[serde(default)]
    pub proven: Level,
    /// Only tells what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// The rules, resolved.
struct Rules {
    before: Timestamp,
    keep_last: usize,
    redundancy: usize,
    proven: Level,
}

/// What becomes of a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Stays(&'static str),
    Goes,
}

impl Perform for PruneBackups {
    fn class(&self) -> Class {
        if self.dry_run { Class::Read } else { Class::Change }
    }

    /// What is gone is gone, and the rules are asked anew.
    fn recovery(&self) -> Recovery {
        Recovery::Repeat
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.template(&self.dir, Place::Argument);
        for setting in [Some(&self.keep_days), self.keep_last.as_ref(), self.minimum_redundancy.as_ref()].into_iter().flatten() {
            inspection.setting(setting);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let optional = |setting: &Option<Setting<u32>>, default: &str| {
            setting.as_ref().map_or_else(|| default.to_owned(), |setting| shown_setting(setting, values))
        };
        let verb = if self.dry_run { "tell which backups could go from" } else { "remove old backups from" };
        Description {
            summary: format!("{verb} {}", shown(&self.dir, values)),
            details: vec![
                format!(
                    "older than {} days, not among the newest {}",
                    shown_setting(&self.keep_days, values),
                    optional(&self.keep_last, "1")
                ),
                format!(
                    "only with a newer one proven by {}; at least {} proven ones of each series stay",
                    self.proven.name(),
                    optional(&self.minimum_redundancy, "2")
                ),
            ],
        }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        vec![prospect.path("backups", &self.dir).map_or_else(|unknown| unknown, Need::Directory)]
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.dir.text.span);
        self.prune(context).map_err(|error| error.at(location))
    }
}

impl PruneBackups {
    fn prune(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let directory = context.directory.join(context.values.text(&self.dir)?);
        let rules = self.rules(context)?;
        let failed =
            |error: io::Error| StepError::new(ErrorKind::Io, format!("cannot look for backups in {}: {error}", directory.display()));
        if fs::symlink_metadata(&directory).map_err(failed)?.is_symlink() {
            return Err(StepError::new(ErrorKind::Io, format!("{} is a link; nothing was removed", directory.display()))
                .hint("name the directory itself: what a link points to may have changed"));
        }
        if !self.dry_run {
            finish_removals(&directory).map_err(failed)?;
        }
        let found = catalogue(&directory).map_err(failed)?;
        let judged = judge(&found, &rules);
        let going = judged.iter().filter(|(_, verdict)| *verdict == Verdict::Goes && !self.dry_run);
        for (gone, (backup, _)) in going.enumerate() {
            if context.cancel.is_cancelled() || context.finish_up.is_cancelled() {
                return Err(StepError::new(ErrorKind::Cancelled, format!("stopped after {}", count(gone as u64, "backup"))));
            }
            remove(backup).map_err(|error| not_removed(backup, &error))?;
            context.output.note(&format!("removed {}", backup.path.display()));
        }
        Ok(self.result(&judged, &found))
    }

    fn rules(&self, context: &StepContext) -> Result<Rules, StepError> {
        let setting = |setting: &Option<Setting<u32>>, default: u32| {
            Ok::<_, StepError>(setting.as_ref().map(|setting| context.values.setting(setting)).transpose()?.unwrap_or(default) as usize)
        };
        let days = context.values.setting(&self.keep_days)?;
        let age = jiff::SignedDuration::from_hours(i64::from(days) * 24);
        let before = context.clock.now().checked_sub(age).map_err(|error| StepError::new(ErrorKind::Template, error.to_string()))?;
        Ok(Rules {
            before,
            keep_last: setting(&self.keep_last, 1)?,
            redundancy: setting(&self.minimum_redundancy, 2)?,
            proven: self.proven,
        })
    }

    fn result(&self, judged: &[(&Backup, Verdict)], found: &Catalogue) -> StepResult {
        let gone: Vec<&Backup> = judged.iter().filter(|(_, verdict)| *verdict == Verdict::Goes).map(|(backup, _)| *backup).collect();
        let freed = ByteSize(gone.iter().map(|backup| backup.manifest.size).sum());
        let went = if self.dry_run { "would go" } else { "removed" };
        let column = |name: &str| Column { name: name.to_owned(), type_name: "text".to_owned() };
        let row = |(backup, verdict): &(&Backup, Verdict)| -> Vec<Value> {
            let proof = backup.verified.as_ref().map_or("none", |proof| proof.level.name());
            let what = match verdict {
                Verdict::Goes => went,
                Verdict::Stays(why) => why,
            };
            vec![
                json!(backup.manifest.file),
                json!(backup.manifest.created_at),
                json!(ByteSize(backup.manifest.size).to_string()),
                json!(proof),
                json!(what),
            ]
        };
        StepResult {
            summary: format!("{} {went}, {freed}; {} stay", count(gone.len() as u64, "backup"), judged.len() - gone.len()),
            value: Some(json!(gone.len())),
            columns: ["backup", "made", "size", "proven", "fate"].map(column).into(),
            rows: judged.iter().map(row).collect(),
            row_count: Some(judged.len() as u64),
            findings: found.unusable.iter().map(|(path, error)| format!("left alone: {}: {error}", path.display())).collect(),
            ..StepResult::default()
        }
    }
}

/// What becomes of each backup, the newest first.
fn judge<'a>(found: &'a Catalogue, rules: &Rules) -> Vec<(&'a Backup, Verdict)> {
    let mut series: BTreeMap<(&str, Option<&str>, &str), Vec<&Backup>> = BTreeMap::new();
    for backup in &found.backups {
        let source = &backup.manifest.source;
        let key = (source.database.as_str(), source.system_identifier.as_deref(), backup.manifest.step.as_str());
        series.entry(key).or_default().push(backup);
    }
    let mut judged: Vec<(&Backup, Verdict)> = series.into_values().flat_map(|series| judge_series(&series, rules)).collect();
    judged.sort_by(|(a, _), (b, _)| (b.manifest.created_at, &b.path).cmp(&(a.manifest.created_at, &a.path)));
    judged
}

/// Of one series, the newest first. Counting proven ones from the newest on, each that would
/// be one too few without it stays.
fn judge_series<'a>(series: &[&'a Backup], rules: &Rules) -> Vec<(&'a Backup, Verdict)> {
    let mut proven = 0;
    let verdict = |(position, backup): (usize, &&'a Backup)| {
        let is_proven = backup.verified.as_ref().is_some_and(|proof| proof.level >= rules.proven);
        let verdict = if backup.manifest.created_at > rules.before {
            Verdict::Stays("stays: young enough")
        } else if position < rules.keep_last {
            Verdict::Stays("stays: one of the newest")
        } else if proven == 0 {
            Verdict::Stays("stays: no newer one is proven")
        } else if is_proven && proven < rules.redundancy {
            Verdict::Stays("stays: one of the proven ones that must")
        } else if proven < rules.redundancy {
            Verdict::Stays("stays: too few newer ones are proven")
        } else {
            Verdict::Goes
        };
        proven += usize::from(is_proven);
        (*backup, verdict)
    };
    series.iter().enumerate().map(verdict).collect()
}

/// From here on it is no backup any more, whatever happens.
fn remove(backup: &Backup) -> io::Result<()> {
    fs::rename(beside(&backup.path, MANIFEST), beside(&backup.path, REMOVING))?;
    if let Some(directory) = backup.path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    finish(&backup.path)
}

/// Ends what a killed step has begun.
fn finish_removals(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(REMOVING)) {
            finish(&directory.join(name))?;
        }
    }
    Ok(())
}

fn finish(path: &Path) -> io::Result<()> {
    match Shape::of(path) {
        Ok(Shape::File) => fs::remove_file(path)?,
        Ok(Shape::Directory) => fs::remove_dir_all(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let companions: [PathBuf; 4] = [CHECKSUM, GLOBALS, VERIFIED, REMOVING].map(|ending| beside(path, ending));
    for companion in companions {
        match fs::remove_file(companion) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn not_removed(backup: &Backup, error: &io::Error) -> StepError {
    StepError::new(ErrorKind::Io, format!("cannot remove {}: {error}", backup.path.display()))
        .hint("what was removed before stays removed; run the step again when the cause is gone")
}

#[cfg(test)]
mod tests;
