//! What a run leaves running, as `/proc` shows it.

use super::wait_until;

/// Processes that belong to a run, with their command lines.
pub fn of(run: &str) -> Vec<String> {
    let marker = format!("RUNBOOK_CHILD_OF={run}.");
    let processes =
        std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let theirs = processes.filter(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(marker.as_bytes()))
    });
    theirs
        .map(|entry| {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            format!("{} {}", entry.file_name().to_string_lossy(), String::from_utf8_lossy(&command).replace('\0', " "))
        })
        .collect()
}

/// Waits until nothing of a run is left.
pub fn are_gone(run: &str) {
    wait_until(&format!("the children of {run} to end"), || of(run).is_empty());
}

/// Whether a process has ended, also when nobody has waited for it yet.
pub fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
