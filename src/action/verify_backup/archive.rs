//! Whether a dump can be read to its end and holds what its manifest says.
//!
//! A table of contents proves nothing: `pg_restore --list` accepts a truncated archive and a
//! directory with a missing data file.

use std::collections::BTreeSet;
use std::path::Path;

use crate::action::StepContext;
use crate::action::backup::archive::{self, Listing};
use crate::action::backup::catalogue::Backup;
use crate::action::backup::client::Client;
use crate::outcome::{ErrorKind, StepError};
use crate::process::major_version;

/// The format of SQL text.
pub(super) const PLAIN: &str = "plain";

/// What is in it, by its own account.
pub(super) async fn read(context: &StepContext, backup: &Backup) -> Result<Listing, StepError> {
    let name = backup.path.display().to_string();
    let listing = if backup.manifest.format == PLAIN {
        let complete = archive::is_complete_text(&backup.path).map_err(|error| unreadable(&backup.path, &error.to_string()))?;
        if !complete {
            return Err(unreadable(&backup.path, "it does not end as pg_dump ends it: it was cut off"));
        }
        Listing::of_text(&backup.path).map_err(|error| unreadable(&backup.path, &error.to_string()))?
    } else {
        context.progress("reading it to its end", None);
        // Programs as new as those that wrote it.
        let client =
            Client::local(context, major_version(&backup.manifest.program).unwrap_or(backup.manifest.source.major_version)).await?;
        let whole = client.must(context, vec!["pg_restore".into(), "--file=/dev/null".into(), name.clone()]).await;
        whole.map_err(|error| if error.kind == ErrorKind::Process { unreadable(&backup.path, &error.message) } else { error })?;
        let list = client.text(context, |file| vec!["pg_restore".into(), "--list".into(), format!("--file={file}"), name]).await?;
        Listing::of_archive(&list)
    };
    let objects = listing.objects();
    if objects == backup.manifest.objects {
        return Ok(listing);
    }
    let mut error = StepError::new(ErrorKind::Expectation, "the backup does not hold the objects its manifest tells of");
    for kind in objects.keys().chain(backup.manifest.objects.keys()).collect::<BTreeSet<_>>() {
        let (found, told) = (objects.get(kind).copied().unwrap_or(0), backup.manifest.objects.get(kind).copied().unwrap_or(0));
        if found != told {
            error = error.fact(kind.to_lowercase(), format!("{found}, in the manifest {told}"));
        }
    }
    Err(error)
}

fn unreadable(path: &Path, why: &str) -> StepError {
    StepError::new(ErrorKind::Expectation, "the backup can't be read to its end")
        .fact("backup", path.display().to_string())
        .fact("because", why)
        .hint("it can't be restored; take another backup")
}
