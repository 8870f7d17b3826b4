//! Stops the program at an exact write or sync of its journal; see `shim.c`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::environment::{Invocation, TestEnv};

static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("journal-stop-{}.so", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/crash/shim.c");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).status();
    assert!(status.expect("a C compiler").success(), "the shim does not compile");
    library
});

/// What the journal does to its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Write,
    Sync,
}

/// What happens at that access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    KilledBefore,
    KilledHalfWay,
    KilledAfter,
    Fails,
}

/// Lets the program run until the journal's `number`-th access of its kind (from 1).
pub fn stopped_at<'a>(invocation: Invocation<'a>, access: Access, number: usize, stop: Stop) -> Invocation<'a> {
    let access = if access == Access::Write { "write" } else { "sync" };
    let stop = match stop {
        Stop::KilledBefore => "before",
        Stop::KilledHalfWay => "half",
        Stop::KilledAfter => "after",
        Stop::Fails => "fail",
    };
    invocation.env("LD_PRELOAD", &LIBRARY.display().to_string()).env("JOURNAL_STOP", &format!("{access}:{number}:{stop}"))
}

/// Counts the journal's accesses in a file outside of the working directory.
pub fn counted<'a>(invocation: Invocation<'a>, env: &TestEnv) -> Invocation<'a> {
    invocation.env("LD_PRELOAD", &LIBRARY.display().to_string()).env("JOURNAL_TALLY", &env.home("tally").display().to_string())
}

/// What was counted since the last time: writes and syncs.
pub fn take_tally(env: &TestEnv) -> (usize, usize) {
    let text = std::fs::read_to_string(env.home("tally")).unwrap_or_default();
    let _ = std::fs::remove_file(env.home("tally"));
    let count = |letter| text.matches(letter).count();
    (count('w'), count('s'))
}
