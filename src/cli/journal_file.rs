//! Where the journal is, and which run of it is meant.

use std::path::PathBuf;

use etcetera::BaseStrategy;

use super::Failure;
use crate::journal::Journal;

/// `$XDG_STATE_HOME/runbook/journal.db`.
pub(super) fn default_path() -> Result<PathBuf, Failure> {
    let base = etcetera::base_strategy::Xdg::new()
        .map_err(|error| Failure::usage(format!("no place for the journal: {error}")).hint("name one with --journal FILE"))?;
    let state = base.state_dir().unwrap_or_else(|| base.home_dir().join(".local/state"));
    Ok(state.join("runbook").join("journal.db"))
}

/// The run a person means by a whole id or a unique beginning or end of one.
pub(super) async fn find_run(journal: &mut Journal, wanted: &str) -> Result<String, Failure> {
    let ids = journal.run_ids().await?;
    if ids.iter().any(|id| id == wanted) {
        return Ok(wanted.to_owned());
    }
    let matching: Vec<&String> = ids.iter().filter(|id| id.starts_with(wanted) || id.ends_with(wanted)).collect();
    match matching.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::usage(format!("there is no run `{wanted}`")).hint("`runbook list` shows all runs")),
        several => {
            Err(Failure::usage(format!("`{wanted}` could be {}", several.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", "))))
        }
    }
}
